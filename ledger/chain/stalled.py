"""Whether settlement stands still: since when no epoch was finalised, and the word that then no lease is granted.

Customers' DC are redeemable only by finalised roots; while none comes, nobody's are spent. Works in the caller's
transaction.
"""

from typing import Any

from sqlalchemy import BigInteger, Table
from sqlmodel import Field, Session, SQLModel

from ledger.tables import table_of

NO_LEASE_AFTER_MS = 3 * 86_400_000


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


class FinalisedRow(SQLModel, table=True):
    """How many epochs the chain has finalised, as far as it was read, and since when it is that many: one row."""

    __tablename__ = _named("chain_finalised")

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    epochs: int = Field(sa_type=BigInteger)
    since_ms: int = Field(sa_type=BigInteger)


def stalled_tables() -> list[Table]:
    """All tables of this module."""
    return [table_of(FinalisedRow)]


def saw(session: Session, epochs: int, now_ms: int) -> None:
    """The chain has finalised so many epochs."""
    row = session.get(FinalisedRow, 1)
    if row is None:
        session.add(FinalisedRow(epochs=epochs, since_ms=now_ms))
    elif row.epochs != epochs:
        row.epochs, row.since_ms = epochs, now_ms
        session.add(row)
    session.flush()


def stalled(session: Session, now_ms: int) -> str:
    """Why no lease may be granted now; empty where settlement goes on, or there is no chain."""
    row = session.get(FinalisedRow, 1)
    if row is None or now_ms - row.since_ms <= NO_LEASE_AFTER_MS:
        return ""
    days = (now_ms - row.since_ms) // 86_400_000
    return (
        f"no epoch was finalised on the chain for {days} days, and after 3 days no lease is granted; running leases go "
        "on, and new ones come with the next finalised epoch: see `fabric chain status`"
    )
