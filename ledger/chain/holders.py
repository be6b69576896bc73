"""Who held a GPU's NFT, and since when: from final blocks only, so that what was paid by it stays right."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session

from ledger.bulk import among
from ledger.chain.index import Index
from ledger.chain.tables import CursorRow, OwnerRow, StandInRow
from ledger.holding import Holders, holder_at
from ledger.tables import table_of

OWNER, CURSOR, STAND_IN = table_of(OwnerRow), table_of(CursorRow), table_of(StandInRow)

_NEVER = 1 << 62


def known_ms(session: Session) -> int:
    """Up to which moment the holders are known: the time of the last final block; 0 while none is final."""
    status = Index(session).status()
    return 0 if status is None else status.final_ms


def holders_of(session: Session, gpu_ids: Collection[str], through: int | None = None) -> dict[str, Holders]:
    """All who earn for GPUs by an NFT, for `ledger.holding`; a GPU that never had to do with one is not in the answer.

    A transfer counts from the time of its block, and is known once that block is final, or not after block ``through``.
    Until its own NFT is minted a GPU earns for the holder of the NFT in whose place it stands (`standing_in`); an empty
    holder is who earns without an NFT.
    """
    stands = _stands(session, gpu_ids)
    wanted = {*gpu_ids, *(place for spans in stands.values() for _, place in spans if place)}
    minted = _minted(session, wanted, final_number() if through is None else through)
    found = {gpu_id: minted[gpu_id] for gpu_id in gpu_ids if gpu_id in minted}
    for gpu_id, spans in stands.items():
        own = found.get(gpu_id, [])
        found[gpu_id] = [*_standing(spans, minted, before_ms=own[0][0] if own else _NEVER), *own]
    return dict(found)


def final_number() -> Any:
    """The number of the last final block, as part of a query."""
    return select(CURSOR.c.final_number).scalar_subquery()


def _stands(session: Session, gpu_ids: Collection[str]) -> dict[str, list[tuple[int, str]]]:
    """(from when, the NFT's GPU in whose place) of GPUs that ever stood in one, in order; empty: in none any more."""
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    columns = (STAND_IN.c.gpu_id, STAND_IN.c.from_ms, STAND_IN.c.nft_gpu_id)
    rows = session.execute(select(*columns).where(among(STAND_IN.c.gpu_id, gpu_ids)).order_by(STAND_IN.c.from_ms))
    for gpu_id, from_ms, place in rows:
        found[gpu_id].append((from_ms, place))
    return found


def _standing(
    spans: Sequence[tuple[int, str]], minted: Mapping[str, Holders], *, before_ms: int
) -> Iterator[tuple[int, str]]:
    """The holders of the places, each while the GPU stood there."""
    ends = [*(from_ms for from_ms, _ in spans[1:]), before_ms]
    for (from_ms, place), end_ms in zip(spans, ends, strict=True):
        holders = minted.get(place, ())
        if from_ms < before_ms:
            yield from_ms, holder_at(holders, from_ms) or ""
        yield from ((at, holder) for at, holder in holders if from_ms < at < min(end_ms, before_ms))


def _minted(session: Session, gpu_ids: Collection[str], final: Any) -> dict[str, list[tuple[int, str]]]:
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    rows = session.execute(
        select(OWNER.c.gpu_id, OWNER.c.from_ms, OWNER.c.holder)
        .where(among(OWNER.c.gpu_id, gpu_ids), OWNER.c.block_number <= final)
        .order_by(OWNER.c.block_number, OWNER.c.log_index)
    )
    for gpu_id, from_ms, holder in rows:
        found[gpu_id].append((from_ms, holder))
    return dict(found)
