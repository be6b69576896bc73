"""What time alone does: queues that end, grants that never open, agents and customers that fall silent, what expires.

Called about once a second; each sweep is one transaction and may run late or twice.
"""

from collections.abc import Callable

from sqlalchemy import select, update
from sqlmodel import Session, col

from api import distances, evictions, fleets, nonces, notices, transitions
from api.broker import Broker
from api.lifecycle import CLIENT_SILENT_MS, CLOSE_WITHIN_MS, LOST_AFTER_MS, NEAR_SILENT_MS, OPEN_WITHIN_MS, LeaseEvent
from api.plane import Plane
from api.queueing import queue
from api.tables import ClusterRow, LeaseRow, RunRow, SessionRow, UptimeRow
from fabric.wire.machines import ACTIVE_LEASE_STATES, RUN_EDGES, LeaseState, RunState, is_terminal
from fabric.wire.reasons import Reason

_ACTIVE = [state.value for state in ACTIVE_LEASE_STATES]


def sweep(plane: Plane) -> None:
    """Everything that is due now."""
    with plane.database.write() as session:
        _live(plane, session)
        for one in _SWEEPS:
            one(plane, session)


def place_queued(plane: Plane) -> int:
    """Try the queue once; returns how many runs were placed."""
    with plane.database.write() as session:
        return queue(plane, session).place()


def refit(plane: Plane) -> bool:
    """Fit the map of distances anew when it is due; returns whether it was."""
    with plane.database.read() as session:
        return plane.distances.refit(session, plane.now_ms())


def _live(plane: Plane, session: Session) -> None:
    session.execute(update(UptimeRow).where(col(UptimeRow.id) == plane.life).values(last_seen_ms=plane.now_ms()))


def _promised(plane: Plane, session: Session) -> None:
    """Deadlines that nodes did not keep, and room that nobody waits for."""
    notices.end_overdue(plane, session)
    evictions.forget_idle(plane, session)


def _queue(plane: Plane, session: Session) -> None:
    waiting = queue(plane, session)
    waiting.expire()
    waiting.place()


def _unopened(plane: Plane, session: Session) -> None:
    """A grant that is not open in time ends; before OPEN nothing was billed."""
    now = plane.now_ms()
    granted = select(LeaseRow).where(col(LeaseRow.state) == LeaseState.GRANTED.value)
    for lease in session.scalars(granted):
        if now - lease.granted_ms >= min(OPEN_WITHIN_MS, lease.startup_timeout_ms):
            transitions.lease_event(plane, session, lease, LeaseEvent.RELEASE, Reason.STARTUP_TIMEOUT)


def _silent_agents(plane: Plane, session: Session) -> None:
    """After five minutes an agent has lost its leases; one that must close a lease has a minute."""
    now, since = plane.now_ms(), _up_since(plane, session)
    pairs = (
        select(LeaseRow, ClusterRow)
        .join(ClusterRow, col(ClusterRow.id) == col(LeaseRow.cluster))
        .where(col(LeaseRow.state).in_(_ACTIVE))
    )
    for lease, cluster in list(session.execute(pairs)):
        silent = now - max(cluster.last_heard_ms, since)
        if _is_lost(lease, silent, now, since):
            transitions.lease_event(plane, session, lease, LeaseEvent.LOST, Reason.OPERATOR_LOST)


def _is_lost(lease: LeaseRow, silent_ms: int, now: int, since: int) -> bool:
    if silent_ms >= LOST_AFTER_MS or (lease.lost_at_ms is not None and lease.lost_at_ms <= now):
        return True
    if lease.state != LeaseState.CLOSING.value or lease.release_ms is None:
        return False
    return silent_ms >= NEAR_SILENT_MS or now - max(lease.release_ms, since) >= CLOSE_WITHIN_MS


def _silent_clients(plane: Plane, session: Session) -> None:
    """A process that was not heard for three minutes is gone; sessions with nothing to lose are only closed."""
    limit = plane.now_ms() - CLIENT_SILENT_MS
    if _up_since(plane, session) > limit:
        return
    silent = select(SessionRow).where(col(SessionRow.ended_ms).is_(None), col(SessionRow.last_heard_ms) <= limit)
    for row in list(session.scalars(silent)):
        if not _only_detached(session, row.id):
            Broker(plane, session).end_session(row, Reason.CLIENT_LOST)


def _only_detached(session: Session, name: str) -> bool:
    """Nobody waits for a detached run; its session may stay silent while it runs, if it holds no lease besides."""
    runs = list(session.scalars(select(RunRow).where(col(RunRow.session) == name)))
    kept = select(LeaseRow.id).join(RunRow, col(RunRow.id) == col(LeaseRow.run))  # type: ignore[call-overload]
    kept = kept.where(col(LeaseRow.session) == name, col(LeaseRow.state).in_(_ACTIVE), ~col(RunRow.detached))
    if session.scalar(kept.limit(1)) is not None:
        return False
    return any(run.detached and not is_terminal(RUN_EDGES, RunState(run.state)) for run in runs) and all(
        run.detached or is_terminal(RUN_EDGES, RunState(run.state)) for run in runs
    )


def _forget(plane: Plane, session: Session) -> None:
    nonces.forget_old(session, plane.now_ms())
    distances.forget_old(session, plane.now_ms())
    fleets.forget_old(session, plane.now_ms())


def _up_since(plane: Plane, session: Session) -> int:
    """Silence counts only while somebody could have been heard."""
    return session.get_one(UptimeRow, plane.life).started_ms


_SWEEPS: tuple[Callable[[Plane, Session], None], ...] = (
    _unopened,
    _silent_agents,
    _silent_clients,
    _promised,
    _queue,
    _forget,
)
