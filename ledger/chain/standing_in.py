"""Which new GPU stands in the place of an NFT's GPU that left, so that exchanging a device moves no income.

DESIGN §7: a GPU that enrols within 30 days after an NFT's GPU of that model and operator left stands in its place. It
does so while that GPU is away; taking the old one back for a moment and away again does not set the new one free, nor
does putting another new one in the place of the first. A GPU with an NFT of its own stands in nobody's. Works inside
the caller's transaction; what it decides counts from the moment of the decision on.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import exists, func, insert, select
from sqlmodel import Session

from ledger.bulk import among
from ledger.chain.holders import OWNER, STAND_IN, final_number, holders_of
from ledger.pool_tables import GpuUptimeRow
from ledger.store import Ledger
from ledger.tables import table_of
from ledger.uptime import overlap_ms

UPTIME = table_of(GpuUptimeRow)

WITHIN_MS = 30 * 86_400_000
"""Who enrols later than this after a GPU left does not stand in for it; who was back for as long is no leaver."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an NFT's GPU: when that GPU was there, and when others were that stood in for it."""

    gpu_id: str
    spans: tuple[tuple[int, int], ...]
    stood_in: tuple[tuple[int, int], ...] = ()

    @property
    def left_ms(self) -> int:
        return max(until for _, until in self.spans)

    def is_open_to(self, entered_ms: int, now_ms: int) -> bool:
        """Whether a GPU that entered then may stand here: it was empty then, and not for longer than 30 days."""
        if any(since <= entered_ms < until for since, until in self.spans):
            return False
        ended = [until for _, until in (*self.spans, *self.stood_in) if until <= entered_ms]
        is_fresh = bool(ended) and entered_ms - max(ended) <= WITHIN_MS
        return is_fresh and overlap_ms(self.spans, entered_ms, now_ms) < WITHIN_MS


@dataclass(frozen=True, slots=True)
class Entrant:
    """A GPU without an NFT: when it was first there, and whether it is now."""

    gpu_id: str
    entered_ms: int
    is_there: bool


def stand_ins(places: Iterable[Place], entrants: Iterable[Entrant], now_ms: int) -> dict[str, str]:
    """Which entrant stands in which place, all of one operator and model; each in one at most. Pure.

    The place that is empty longest is filled first, by who is there and entered first; ties go by id.
    """
    free = sorted(entrants, key=lambda one: (not one.is_there, one.entered_ms, one.gpu_id))
    found: dict[str, str] = {}
    for place in sorted(places, key=lambda one: (one.left_ms, one.gpu_id)):
        fits = (one for one in free if one.gpu_id not in found and place.is_open_to(one.entered_ms, now_ms))
        if (first := next(fits, None)) is not None:
            found[first.gpu_id] = place.gpu_id
    return found


def look(session: Session, ledger: Ledger, operators: Collection[str], now_ms: int) -> int:
    """Decide again who stands in for whom among these operators' GPUs; returns how many changed.

    Call it with the operators of GPUs that came or went, after `ledger.uptime` has noted that.
    """
    changed = 0
    for operator in sorted(operators):
        was, gone = _standing(session, operator), _gone(session, operator)
        if was or gone:
            changed += _note(session, ledger, was, _wanted(session, operator, gone, now_ms), now_ms)
    return changed


def _note(session: Session, ledger: Ledger, was: dict[str, str], wanted: dict[str, str], now_ms: int) -> int:
    changed = {gpu: wanted.get(gpu, "") for gpu in was.keys() | wanted.keys() if was.get(gpu) != wanted.get(gpu)}
    if changed:
        rows = [{"gpu_id": gpu, "from_ms": now_ms, "nft_gpu_id": place} for gpu, place in sorted(changed.items())]
        session.execute(insert(STAND_IN), rows)
        for gpu, holders in sorted(holders_of(session, changed).items()):
            ledger.reassign(gpu, holders, f"stand-in/{gpu}/{now_ms}")
    return len(changed)


def _wanted(session: Session, operator: str, gone: dict[str, str], now_ms: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for model in sorted(set(gone.values())):
        places = _places(session, [gpu for gpu, was in gone.items() if was == model], now_ms)
        found |= stand_ins(places, _entrants(session, operator, model), now_ms)
    return found


def _standing(session: Session, operator: str) -> dict[str, str]:
    """Who stands in for whom by now, of an operator's GPUs."""
    later = STAND_IN.alias()
    is_last = ~exists().where(later.c.gpu_id == STAND_IN.c.gpu_id, later.c.from_ms > STAND_IN.c.from_ms)
    mine = exists().where(UPTIME.c.gpu_id == STAND_IN.c.gpu_id, UPTIME.c.operator == operator)
    rows = session.execute(
        select(STAND_IN.c.gpu_id, STAND_IN.c.nft_gpu_id).where(STAND_IN.c.nft_gpu_id != "", is_last, mine)
    )
    return dict(tuple(row) for row in rows)


def _gone(session: Session, operator: str) -> dict[str, str]:
    """NFTs' GPUs that are not there and were this operator's last, with their model."""
    other = UPTIME.alias()
    is_there = exists().where(other.c.gpu_id == UPTIME.c.gpu_id, other.c.until_ms.is_(None))
    later = exists().where(other.c.gpu_id == UPTIME.c.gpu_id, other.c.from_ms > UPTIME.c.from_ms)
    minted = exists().where(OWNER.c.gpu_id == UPTIME.c.gpu_id, OWNER.c.block_number <= final_number())
    rows = session.execute(
        select(UPTIME.c.gpu_id, UPTIME.c.model).where(UPTIME.c.operator == operator, minted, ~is_there, ~later)
    )
    return dict(tuple(row) for row in rows)


def _places(session: Session, gpu_ids: Sequence[str], now_ms: int) -> list[Place]:
    stood = defaultdict(list)
    rows = session.execute(
        select(STAND_IN.c.nft_gpu_id, STAND_IN.c.gpu_id).where(among(STAND_IN.c.nft_gpu_id, gpu_ids))
    )
    for place, gpu in rows:
        stood[place].append(gpu)
    spans = _spans(session, {*gpu_ids, *(gpu for ever in stood.values() for gpu in ever)}, now_ms)
    return [
        Place(gpu, tuple(spans[gpu]), tuple(span for one in stood.get(gpu, ()) for span in spans[one]))
        for gpu in gpu_ids
    ]


def _spans(session: Session, gpu_ids: Collection[str], now_ms: int) -> dict[str, list[tuple[int, int]]]:
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    columns = (UPTIME.c.gpu_id, UPTIME.c.from_ms, func.coalesce(UPTIME.c.until_ms, now_ms + 1))
    for gpu, since, until in session.execute(select(*columns).where(among(UPTIME.c.gpu_id, gpu_ids))):
        found[gpu].append((since, until))
    return found


def _entrants(session: Session, operator: str, model: str) -> list[Entrant]:
    """GPUs of the model, now the operator's, that have no NFT."""
    mine = select(UPTIME.c.gpu_id).where(UPTIME.c.operator == operator, UPTIME.c.model == model)
    minted = exists().where(OWNER.c.gpu_id == UPTIME.c.gpu_id, OWNER.c.block_number <= final_number())
    rows = session.execute(
        select(UPTIME.c.gpu_id, func.min(UPTIME.c.from_ms), func.count(), func.count(UPTIME.c.until_ms))
        .where(UPTIME.c.gpu_id.in_(mine), ~minted)
        .group_by(UPTIME.c.gpu_id)
    )
    return [Entrant(gpu, entered_ms, ended < stretches) for gpu, entered_ms, stretches, ended in rows]
