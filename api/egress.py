"""What customers download of their blobs: counted per day, and no more a day than they may store.

A download counts whole when it begins, be it broken off. What agents fetch for runs is not counted: those are paid for.
"""

from typing import Any

from sqlalchemy import BigInteger, Table, delete
from sqlmodel import Field, Session, SQLModel, col

from api.errors import PayloadTooLarge
from ledger.tables import table_of

DAY_MS = 86_400_000


class EgressRow(SQLModel, table=True):
    """Bytes of blobs that a customer has downloaded in one day (days since 1970, UTC)."""

    __tablename__: Any = "blob_egress"

    customer: str = Field(primary_key=True, foreign_key="customers.id")
    day: int = Field(primary_key=True)
    downloaded_bytes: int = Field(sa_type=BigInteger)


def egress_tables() -> list[Table]:
    """For the migration."""
    return [table_of(EgressRow)]


def downloaded(session: Session, customer: str, now_ms: int) -> int:
    """Bytes so far today."""
    row = session.get(EgressRow, (customer, now_ms // DAY_MS))
    return 0 if row is None else row.downloaded_bytes


def count(session: Session, customer: str, size: int, quota: int, now_ms: int) -> None:
    """Count a download that begins now; the first of a day forgets the days before.

    Raises:
        PayloadTooLarge: it would pass what the customer may download in this day.
    """
    day = now_ms // DAY_MS
    row = session.get(EgressRow, (customer, day), with_for_update=True)
    if row is None:
        session.execute(delete(EgressRow).where(col(EgressRow.customer) == customer, col(EgressRow.day) < day))
        row = EgressRow(customer=customer, day=day, downloaded_bytes=0)
    if row.downloaded_bytes + size > quota:
        wait_s = ((day + 1) * DAY_MS - now_ms) // 1000 + 1
        raise PayloadTooLarge(
            f"{row.downloaded_bytes} bytes of blobs were downloaded today (UTC), {size} more would pass the {quota} of "
            f"a day; the next day begins in {wait_s} s",
            quota_bytes=quota,
            used_bytes=row.downloaded_bytes,
        )
    row.downloaded_bytes += size
    session.add(row)
    session.flush()
