"""Notices: a lease is told that it ends, and why, before it does. Works inside the caller's transaction.

A notice that is given stands: whoever heard it may have stopped already. The node keeps the deadline; the control plane
ends a lease whose node did not.
"""

from sqlalchemy import select
from sqlmodel import Session, col

from api import transitions
from api.acceptance import MINIMUM_MS, NOT_THE_CUSTOMERS
from api.commitments import noticed
from api.database import say
from api.fleets import note_change
from api.lifecycle import LeaseEvent, run_preempted
from api.notice_tables import NoticeRow
from api.plane import Plane
from api.signals import cluster_topic
from api.tables import LeaseRow, RunRow
from fabric.wire import link
from fabric.wire.machines import ACTIVE_LEASE_STATES, LeaseState, RunState
from fabric.wire.reasons import EXPLANATIONS, Reason

OVERDUE_MS = 2_000
"""So long after a deadline the control plane ends the lease itself."""


def give(plane: Plane, session: Session, lease: LeaseRow, reason: Reason, notice_ms: int) -> int:
    """Let the lease end `notice_ms` from now; returns when it does. Of two notices the earlier end counts.

    Nothing runs in a lease that is not open yet: it ends at once.
    """
    now = plane.now_ms()
    if LeaseState(lease.state) is LeaseState.GRANTED:
        transitions.lease_event(plane, session, lease, LeaseEvent.RELEASE, reason)
    if LeaseState(lease.state) is not LeaseState.OPEN:
        return now
    known = session.get(NoticeRow, lease.id)
    until = now + notice_ms
    if known is not None and known.until_ms <= until:
        return known.until_ms
    if reason in NOT_THE_CUSTOMERS:
        lease.least_ms = MINIMUM_MS  # who gives it back now does so because it was told to
        session.add(lease)
    session.merge(NoticeRow(lease=lease.id, reason=reason, given_ms=now, until_ms=until))
    session.flush()
    note_change(session, now, lease.cluster, [lease.node])
    say(session, cluster_topic(lease.cluster))
    for run in transitions.live_runs(session, lease.id):
        _tell(plane, session, run, reason)
    return until


def reason_of(session: Session, lease: str) -> Reason | None:
    """Why the lease was told that it ends; None when it was not."""
    known = session.get(NoticeRow, lease)
    return Reason(known.reason) if known is not None else None


def to_send(session: Session, cluster: str, now_ms: int) -> list[tuple[tuple[object, ...], link.Notice]]:
    """The notices that the cluster's agent must have, each under a name that is new when its deadline is."""
    query = (
        select(NoticeRow, LeaseRow)
        .join(LeaseRow, col(LeaseRow.id) == col(NoticeRow.lease))
        .where(col(LeaseRow.cluster) == cluster, col(LeaseRow.state) == LeaseState.OPEN.value)
        .order_by(col(NoticeRow.until_ms), col(NoticeRow.lease))
    )
    return [
        (
            ("notice", lease.id, lease.generation, notice.until_ms),
            link.Notice(
                lease=lease.id,
                generation=lease.generation,
                reason=notice.reason,
                notice_ms=max(0, notice.until_ms - now_ms),
            ),
        )
        for notice, lease in session.execute(query)
    ]


def end_overdue(plane: Plane, session: Session) -> None:
    """End the leases whose deadline is over and whose node has not said so."""
    query = (
        select(NoticeRow, LeaseRow)
        .join(LeaseRow, col(LeaseRow.id) == col(NoticeRow.lease))
        .where(col(NoticeRow.until_ms) <= plane.now_ms() - OVERDUE_MS, col(LeaseRow.state) == LeaseState.OPEN.value)
    )
    for notice, lease in list(session.execute(query)):
        transitions.lease_event(plane, session, lease, LeaseEvent.RELEASE, notice.reason)


def _tell(plane: Plane, session: Session, run: RunRow, reason: Reason) -> None:
    """A run is being preempted when every lease that it has is."""
    leases = [row.id for row in transitions.leases_of(session, run.id, active=True) if row.state in _USABLE]
    if leases and noticed(session, leases) == set(leases):
        decided = run_preempted(RunState(run.state), reason, EXPLANATIONS[reason])
        transitions.run_step(plane, session, run, decided)


_USABLE = {state.value for state in ACTIVE_LEASE_STATES if state is not LeaseState.CLOSING}
