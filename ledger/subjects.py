"""Of whom the ledger tells: a GPU, a pool, an operator or a holder; which rows and which GPU time are theirs.

Reads only. A tenure is a span of time in which a GPU was the subject's, whether it was there or not.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlmodel import Session

from ledger.bulk import among
from ledger.chain.holders import OWNER, STAND_IN, holders_of
from ledger.closing import REWARD
from ledger.epoch import EpochClock
from ledger.holding import Holders
from ledger.meters import METER, USAGE
from ledger.poolbook import MOVE, stays_of
from ledger.pools import Membership, as_of
from ledger.uptime import UPTIME

Span = tuple[int, int]
"""From, to before, in Unix ms."""

FOR_EVER = 2**62
Tenures = Mapping[str, Sequence[Span]]
"""By GPU; the spans of one are in order and apart."""


class Kind(StrEnum):
    """What the ledger tells of."""

    GPU = "gpu"
    POOL = "pool"
    OPERATOR = "operator"
    HOLDER = "holder"


@dataclass(frozen=True, slots=True)
class Subject:
    """One of them by name: a GPU by its public id, a holder by address."""

    kind: Kind
    name: str

    @classmethod
    def of(cls, kind: Kind, name: str) -> "Subject":
        return cls(kind, name.lower() if kind in (Kind.GPU, Kind.HOLDER) else name)

    def uses(self) -> Any:
        """The condition on usage and its meter that they are the subject's."""
        if self.kind is Kind.GPU:
            return METER.c.gpu_id == self.name
        if self.kind is Kind.OPERATOR:
            return METER.c.operator == self.name
        return self._named(USAGE.c[self.kind.value])

    def rewards(self) -> Any:
        """The condition on rewards that they are the subject's."""
        return self._named(REWARD.c["gpu_id" if self.kind is Kind.GPU else self.kind.value])

    def _named(self, column: Any) -> Any:
        """A pool counts in whatever epoch it stood."""
        if self.kind is Kind.POOL:
            return or_(column == self.name, column.startswith(as_of(self.name, 0)[:-1], autoescape=True))
        return column == self.name


def tenures(session: Session, subject: Subject, epochs: EpochClock, payees: Mapping[str, str]) -> Tenures:
    """When which GPUs were the subject's, from when each was first seen.

    Args:
        session: to read with.
        subject: whose.
        epochs: in which pools change.
        payees: whom each operator is paid to for GPUs without an NFT.
    """
    if subject.kind is Kind.POOL:
        return _of_pool(session, subject.name, epochs)
    if subject.kind is Kind.HOLDER:
        operators = {operator for operator, payee in payees.items() if payee.lower() == subject.name}
        return _of_holder(session, subject.name, operators)
    if subject.kind is Kind.OPERATOR:
        return _of_operators(session, {subject.name})
    return {gpu_id: [(seen, FOR_EVER)] for gpu_id, seen in _first_seen(session, [subject.name]).items()}


def is_known(session: Session, gpu_id: str) -> bool:
    """Whether a GPU was ever seen or used."""
    looked = (select(table.c.gpu_id).where(table.c.gpu_id == gpu_id).limit(1) for table in (UPTIME, METER))
    return any(session.execute(query).first() is not None for query in looked)


def within(spans: Iterable[Span], start_ms: int, end_ms: int) -> list[Span]:
    """The parts of spans in [start, end)."""
    cut = ((max(since, start_ms), min(until, end_ms)) for since, until in spans)
    return [(since, until) for since, until in cut if since < until]


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """The parts of spans that lie in none of ``taken``."""
    left = list(spans)
    for since, until in taken:
        left = [piece for span in left for piece in (*within([span], 0, since), *within([span], until, FOR_EVER))]
    return left


def length_ms(spans: Iterable[Span]) -> int:
    return sum(until - since for since, until in spans)


def _of_operators(session: Session, operators: Collection[str]) -> dict[str, list[Span]]:
    """Under one of these operators, until the GPU is seen under another."""
    mine = select(UPTIME.c.gpu_id).where(UPTIME.c.operator.in_(sorted(operators)))
    rows = session.execute(_stretches().where(UPTIME.c.gpu_id.in_(mine)))
    found: dict[str, list[Span]] = {}
    before: tuple[str, str] | None = None
    for gpu_id, from_ms, operator in rows:
        if before is not None and before[0] == gpu_id and before[1] in operators and operator != before[1]:
            spans = found[gpu_id]
            spans[-1] = (spans[-1][0], from_ms)
        if operator in operators and before != (gpu_id, operator):
            found.setdefault(gpu_id, []).append((from_ms, FOR_EVER))
        before = (gpu_id, operator)
    return found


def _of_pool(session: Session, pool: str, epochs: EpochClock) -> Tenures:
    """Members' stays; and the GPUs of an operator of that name while they stood alone."""
    members = session.execute(select(MOVE.c.gpu_id).where(MOVE.c.pool == pool).distinct()).scalars().all()
    alone = _of_operators(session, {pool})
    stays = stays_of(session, {*members, *alone})
    seen = _first_seen(session, members)
    found = {gpu_id: without(spans, _spans(stays.get(gpu_id, ()), epochs)) for gpu_id, spans in alone.items()}
    for gpu_id in members:
        inside = _spans([stay for stay in stays[gpu_id] if stay.pool == pool], epochs)
        spans = within(inside, seen.get(gpu_id, FOR_EVER), FOR_EVER)
        found[gpu_id] = sorted([*found.get(gpu_id, []), *spans])
    return found


def _of_holder(session: Session, holder: str, operators: Collection[str]) -> Tenures:
    """While the holder had the NFT, of the GPU or of the one in whose place it stood.

    Without any, the GPUs of operators that are paid to the same address.
    """
    owned = set(session.scalars(select(OWNER.c.gpu_id).where(func.lower(OWNER.c.holder) == holder)))
    stood = session.scalars(select(STAND_IN.c.gpu_id).where(among(STAND_IN.c.nft_gpu_id, owned)))
    paid = _of_operators(session, operators)
    gpu_ids = {*owned, *stood, *paid}
    nfts, seen = holders_of(session, gpu_ids), _first_seen(session, gpu_ids)
    found = {}
    for gpu_id in gpu_ids:
        nft = nfts.get(gpu_id, ())
        minted = nft[0][0] if nft else FOR_EVER
        without_nft = [(0, minted), *_held(nft, "")]
        unminted = [piece for span in without_nft for piece in within(paid.get(gpu_id, ()), *span)]
        held = within(_held(nft, holder), seen.get(gpu_id, FOR_EVER), FOR_EVER)
        found[gpu_id] = sorted([*unminted, *held])
    return found


def _held(nft: Holders, holder: str) -> list[Span]:
    ends = [from_ms for from_ms, _ in nft[1:]] + [FOR_EVER] * bool(nft)
    return [(since, until) for (since, who), until in zip(nft, ends, strict=True) if who.lower() == holder]


def _spans(stays: Iterable[Membership], epochs: EpochClock) -> list[Span]:
    return [
        (epochs.start(stay.from_epoch), FOR_EVER if stay.until_epoch is None else epochs.start(stay.until_epoch))
        for stay in stays
    ]


def _first_seen(session: Session, gpu_ids: Collection[str]) -> dict[str, int]:
    columns = (UPTIME.c.gpu_id, func.min(UPTIME.c.from_ms))
    query = select(*columns).where(among(UPTIME.c.gpu_id, gpu_ids)).group_by(UPTIME.c.gpu_id)
    return dict(tuple(row) for row in session.execute(query))


def _stretches() -> Select:
    return select(UPTIME.c.gpu_id, UPTIME.c.from_ms, UPTIME.c.operator).order_by(UPTIME.c.gpu_id, UPTIME.c.from_ms)
