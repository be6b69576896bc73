"""The table of time slots, as operators signed them and as customers hold them."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(table: str) -> Any:
    """The base class types a table's name as something it computes; a plain name needs this."""
    return table


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


class SlotRow(SQLModel, table=True):
    """The right to one GPU from ``from_ms`` to before ``to_ms``; one row for each holder it had.

    Its price is held in the ledger under `key` from the purchase on; ``counts_from_ms`` is when that money began to
    count, ``billed_ms`` what was charged of it in ``seq`` steps. A row that has ended (``ended_ms``) says why: over,
    split, merged, transferred. The issue's signature stays with every part.
    """

    __tablename__ = _named("ledger_slot")
    __table_args__ = (
        CheckConstraint("to_ms > from_ms", name="ledger_slot_lasts"),
        Index("ledger_slot_gpu", "gpu_id", "from_ms"),
        Index("ledger_slot_holder", "holder"),
    )

    id: str = Field(primary_key=True)
    tenure: int = Field(primary_key=True)
    gpu_id: str
    uuid: str
    operator: str
    cluster: str
    model: str
    price_dc_per_gpu_hour: int = _big()
    from_ms: int = _big()
    to_ms: int = _big()
    counts_from_ms: int = _big()
    holder: str = ""
    paid_dc: int = _big(default=0)
    billed_ms: int = _big(default=0)
    seq: int = _big(default=0)
    accrued_ms: int = _big(default=0)
    parents: str = ""
    digest: str
    body: str
    signer: str
    signature: bytes
    issued_ms: int = _big()
    bought_ms: int | None = _big(default=None, nullable=True)
    ended_ms: int | None = _big(default=None, nullable=True)
    ended: str = ""

    @property
    def key(self) -> str:
        """Under which the ledger holds its money."""
        return f"{self.id}.{self.tenure}"


def slot_tables() -> list[Table]:
    """All tables of this module."""
    return [table_of(SlotRow)]
