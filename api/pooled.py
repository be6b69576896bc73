"""What a close needs of pools: the terms of the time of use, and what time of their GPUs was available then.

Reads rows; `ledger.availability` decides what counts. The audit asks the same again for every closed epoch.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sqlalchemy import or_, select
from sqlmodel import Session, col

from api.lifecycle import OPEN_WITHIN_MS
from api.plane import Plane
from api.tables import GpuRow, LeaseGpuRow, LeaseRow, OperatorRow
from api.verified import verified_between
from fabric.wire.reasons import Reason
from ledger.availability import available_lines
from ledger.chain.holders import holders_of
from ledger.closing import Pooled
from ledger.epoch import EpochClock
from ledger.poolbook import PoolBook
from ledger.pools import as_of, pool_and_epoch, terms_at
from ledger.split import AvailableLine, PoolTerms
from ledger.uptime import Uptime

LET_DOWN = (Reason.STARTUP_TIMEOUT, Reason.OPERATOR_LOST, Reason.GPU_UNHEALTHY, Reason.VERIFICATION_FAILED)
"""Why a lease ended that its operator granted in the end nobody: unopened, or given up."""


class _Stood(NamedTuple):
    """A pool as it stood in an epoch."""

    pool: str
    epoch: int


def pooled(plane: Plane, session: Session, names: Collection[str]) -> Pooled:
    """Terms and availability of the pools that usage names; names of operators, of GPUs that stood alone, have none."""
    stood = sorted({_Stood(*found) for name in names if (found := pool_and_epoch(name)) is not None})
    terms: dict[str, PoolTerms] = {}
    available: list[AvailableLine] = []
    book = PoolBook(session, plane.pool_rules)
    for one in stood:
        held = terms_at(book.history(one.pool), one.epoch)
        if held is not None:
            name = as_of(*one)
            terms[name] = held.terms
            if held.terms.shared_bps:
                available += _available(plane, session, book, one, held.terms)
    return Pooled(terms, available)


def let_down(session: Session, start_ms: int, end_ms: int) -> set[str]:
    """Public ids of the GPUs whose agent got a lease in [start, end) and never opened it, or lost it."""
    rows = session.scalars(
        select(GpuRow.id)  # type: ignore[call-overload]
        .join(LeaseGpuRow, col(LeaseGpuRow.gpu) == col(GpuRow.uuid))
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseGpuRow.lease))
        .where(
            col(LeaseRow.closed_ms) >= start_ms,
            col(LeaseRow.closed_ms) < end_ms,
            col(LeaseRow.opened_ms).is_(None),
            col(LeaseRow.reason).in_([reason.value for reason in LET_DOWN]),
            ~col(LeaseRow.given_back),  # the reason is its customer's word
            or_(  # who asks for less time than everybody else gets cannot make others refuse him
                col(LeaseRow.reason) != Reason.STARTUP_TIMEOUT.value,
                col(LeaseRow.startup_timeout_ms) >= OPEN_WITHIN_MS,
            ),
        )
    )
    return set(rows)


def _available(plane: Plane, session: Session, book: PoolBook, stood: _Stood, terms: PoolTerms) -> list[AvailableLine]:
    clock = EpochClock(plane.ledger_settings.genesis_ms, plane.ledger_settings.epoch_ms)
    start, end = clock.start(stood.epoch), clock.end(stood.epoch)
    members = _members(book, stood)
    return available_lines(
        as_of(*stood),
        terms,
        Uptime(session).stretches(start, end, members),
        members=members,
        verified=verified_between(session, start, end, gpu_ids=members),
        refused=let_down(session, start, end),
        holders=holders_of(session, members),
        payouts=_payouts(session),
    )


def _members(book: PoolBook, stood: _Stood) -> list[str]:
    stays = book.members(stood.pool)
    return sorted(
        gpu for gpu, ever in stays.items() if any(s.pool == stood.pool and s.covers(stood.epoch) for s in ever)
    )


def _payouts(session: Session) -> Mapping[str, str]:
    return {row.id: row.payout for row in session.scalars(select(OperatorRow))}
