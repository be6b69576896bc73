"""Which GPUs have sold slots, now or to come: what placement has to know of them."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import Session, col

from ledger.slot_tables import SlotRow

CLEAR_MS = 10_000
"""Other leases on a GPU end so long before its slot begins: `ends_at` of its offers, so that it is free in time."""
CLOSED_MS = 60_000
"""Nothing else is leased on the GPU in the last minute before."""


@dataclass(frozen=True, slots=True)
class Sold:
    """What placement knows of a GPU: the slot that owns it now, and when leases of others on it end."""

    cluster: str
    slot: str
    ends_at_ms: int | None


def sold_now(session: Session, now_ms: int) -> dict[str, Sold]:
    """By UUID, the GPUs on which a sold slot runs or is to come."""
    found: dict[str, Sold] = {}
    rows = session.scalars(standing().where(col(SlotRow.to_ms) > now_ms, col(SlotRow.holder) != ""))
    for row in rows:
        before = found.get(row.uuid, Sold(row.cluster, "", None))
        runs = row.from_ms - CLOSED_MS <= now_ms
        slot = row.id if runs and not before.slot else before.slot
        ends = before.ends_at_ms if before.ends_at_ms is not None or runs else row.from_ms - CLEAR_MS
        found[row.uuid] = Sold(row.cluster, slot, ends)
    return found


def standing():  # noqa: ANN201 - a query; its type is the library's affair
    return select(SlotRow).where(col(SlotRow.ended_ms).is_(None)).order_by(col(SlotRow.from_ms), col(SlotRow.id))
