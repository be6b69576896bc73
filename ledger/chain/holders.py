"""Who held a GPU's NFT, and since when: from final blocks only, so that what was paid by it stays right."""

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import select
from sqlmodel import Session

from ledger.bulk import among
from ledger.chain.index import Index
from ledger.chain.tables import CursorRow, OwnerRow
from ledger.holding import Holders
from ledger.tables import table_of

OWNER, CURSOR = table_of(OwnerRow), table_of(CursorRow)


def known_ms(session: Session) -> int:
    """Up to which moment the holders are known: the time of the last final block; 0 while none is final."""
    status = Index(session).status()
    return 0 if status is None else status.final_ms


def holders_of(session: Session, gpu_ids: Collection[str], through: int | None = None) -> dict[str, Holders]:
    """All holders of the NFTs of GPUs, for `ledger.holding`; a GPU without an NFT is not in the answer.

    A transfer counts from the time of its block, and is known once that block is final, or not after block ``through``.
    """
    final = select(CURSOR.c.final_number).scalar_subquery() if through is None else through
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    rows = session.execute(
        select(OWNER.c.gpu_id, OWNER.c.from_ms, OWNER.c.holder)
        .where(among(OWNER.c.gpu_id, gpu_ids), OWNER.c.block_number <= final)
        .order_by(OWNER.c.block_number, OWNER.c.log_index)
    )
    for gpu_id, from_ms, holder in rows:
        found[gpu_id].append((from_ms, holder))
    return dict(found)
