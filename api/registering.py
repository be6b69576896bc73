"""Runs that a session sent straight to a lease it holds, told of afterwards, several at a time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlmodel import Session, col, select

from api import transitions
from api.broker import Broker, reason_of
from api.errors import NotFound
from api.lifecycle import run_finished
from api.plane import Plane
from api.receipt_rows import take_untold
from api.schemas import ToldRun
from api.tables import LeaseRow, LeaseRunRow, RunRow
from fabric.wire.errors import InvalidRequest
from fabric.wire.machines import RUN_EDGES, RunState, is_terminal
from fabric.wire.reasons import EXPLANATIONS, Reason
from fabric.wire.receipts import RunLine


class _Held(NamedTuple):
    """A lease of the session, the run that opened it, and what its receipts said of these runs before they were told.

    The rows are held here so that the session, which forgets what nobody holds, reads them once for all runs.
    """

    lease: LeaseRow
    opener: RunRow
    lines: dict[str, RunLine]


def register(plane: Plane, session: Session, customer: str, name: str, told: Sequence[ToldRun]) -> list[str]:
    """Note runs on leases of this session, and how those that are over ended; told again only the state moves on.

    A lease may be over by the time its runs are told of: they ran, and their part of its time is read from its
    receipts.

    Raises:
        NotFound: the session holds no such lease, nor ever did.
        InvalidRequest: a run without `lease`, of another session, or that needs a lease of its own.
    """
    broker = Broker(plane, session)
    for one in told:
        if one.request.session != name:
            raise InvalidRequest(f"run {one.request.id} names session {one.request.session}, this is {name}")
    broker.heartbeat(customer, name)
    known = set(session.scalars(select(RunRow.id).where(col(RunRow.id).in_([one.request.id for one in told]))))
    held: dict[str, _Held] = {}
    by_lease = _by_lease(told)
    parts: list[LeaseRunRow] = []
    with session.no_autoflush:
        for one in told:
            lease = one.request.lease.id if one.request.lease else ""
            if one.request.id not in known and lease and is_terminal(RUN_EDGES, RunState(one.state)):
                parts.append(broker.told_over(customer, one, _held(session, held, lease, by_lease).lines))
            else:
                _move_on(plane, session, broker.told(customer, one.request), one)
            known.add(one.request.id)
    session.flush()
    session.add_all(parts)
    return [one.request.id for one in told]


def _move_on(plane: Plane, session: Session, run: RunRow, told: ToldRun) -> None:
    state = RunState(run.state)
    if is_terminal(RUN_EDGES, state):
        return
    if told.state in (RunState.SUCCEEDED, RunState.FAILED):
        decided = run_finished(state, RunState(told.state), reason_of(told.reason or Reason.DONE), told.message)
        transitions.run_step(plane, session, run, decided)
        return
    lease = transitions.leases_of(session, run.id)[-1]
    if lease.closed_ms is not None and lease.reason != Reason.DONE:
        reason = Reason(lease.reason)
        transitions.attempt_ended(plane, session, run, reason, EXPLANATIONS[reason])


def _by_lease(told: Sequence[ToldRun]) -> dict[str, list[str]]:
    runs: dict[str, list[str]] = {}
    for one in told:
        if one.request.lease is not None:
            runs.setdefault(one.request.lease.id, []).append(one.request.id)
    return runs


def _held(session: Session, known: dict[str, _Held], lease_id: str, runs: Mapping[str, Sequence[str]]) -> _Held:
    if lease_id not in known:
        lease = session.get(LeaseRow, lease_id)
        if lease is None:
            raise NotFound(f"this session holds no lease {lease_id}")
        lines = take_untold(session, lease_id, runs.get(lease_id, ()))
        known[lease_id] = _Held(lease, session.get_one(RunRow, lease.run), lines)
    return known[lease_id]
