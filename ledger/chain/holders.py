"""Who held a GPU's NFT, and when: from final blocks only, so that what was paid by it stays right."""

from sqlalchemy import select
from sqlmodel import Session

from ledger.chain.tables import CursorRow, OwnerRow
from ledger.tables import table_of

OWNER, CURSOR = table_of(OwnerRow), table_of(CursorRow)


def holder_at(session: Session, gpu_id: str, at_ms: int) -> str | None:
    """The NFT's holder at a moment, a 0x-address in lower case; None when the GPU had no NFT then.

    A transfer counts from the time of its block, and for this answer once that block is final.
    """
    since = holders_since(session, gpu_id)
    return next((holder for from_ms, holder in reversed(since) if from_ms <= at_ms), None)


def holders_since(session: Session, gpu_id: str) -> list[tuple[int, str]]:
    """(from when, holder) of a GPU's NFT, in order; each until the next begins."""
    final = select(CURSOR.c.final_number).scalar_subquery()
    rows = session.execute(
        select(OWNER.c.from_ms, OWNER.c.holder)
        .where(OWNER.c.gpu_id == gpu_id, OWNER.c.block_number <= final)
        .order_by(OWNER.c.block_number, OWNER.c.log_index)
    )
    return [(from_ms, holder) for from_ms, holder in rows]
