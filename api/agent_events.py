"""What an agent says about its leases, nodes and tasks, written to the rows; receipts go to `api.metering`."""

from typing import Any

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from api import conditions, gangs, inventory, notices, rounds, transitions
from api.acceptance import agents_word
from api.distances import write_rtts
from api.lifecycle import ENDED_MS, LeaseEvent
from api.plane import Plane
from api.tables import AttemptRow, ClusterRow, GpuRow, LeaseGpuRow, LeaseRow, LeaseRunRow, RunRow
from fabric.wire import link
from fabric.wire.machines import (
    ACTIVE_LEASE_STATES,
    RUN_EDGES,
    TASK_EDGES,
    LeaseState,
    RunState,
    TaskState,
    is_terminal,
    step,
)
from fabric.wire.reasons import EXPLANATIONS, Reason

_log = structlog.get_logger(__name__)

_MAX_WORDS = 20_000
"""Of what a task ended with, so many characters are kept."""
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands there for NUL, which no column holds."""
_EXIT_CODES = 256
"""A process ends with one below that, or by a signal, whose number is then below zero."""


class AgentEvents:
    """The messages of one cluster's agent, in their order. An answer that is not empty ends the connection."""

    def __init__(self, plane: Plane, operator: str, cluster: str) -> None:
        self._plane = plane
        self._operator = operator
        self._cluster = cluster
        self._lost: list[str] = []

    def news(self, heartbeat: link.Heartbeat) -> bool:
        """Whether a heartbeat says something new."""
        return sorted(heartbeat.lost_nodes) != self._lost or bool(heartbeat.conditions)

    def handle(self, message: Any) -> str:
        """Write one message; returns why the connection ends, or "" to go on."""
        if isinstance(message, link.Logs):
            self._logs(message)
            return ""
        if isinstance(message, link.Proved):
            rounds.heard(self._plane, self._cluster, message)
            return ""
        with self._plane.database.write() as session:
            if isinstance(message, link.Opened):
                self._opened(session, message)
            elif isinstance(message, link.Ended):
                self._ended(session, message)
            elif isinstance(message, link.WorkDone):
                self._work_done(session, message)
            elif isinstance(message, link.Heartbeat):
                self._heartbeat(session, message)
            elif isinstance(message, link.Rtts):
                self._rtts(session, message)
            elif isinstance(message, link.Inventory):
                return self._inventory(session, message)
            else:
                return f"a {message.kind} is not for the control plane"
        return ""

    def _lease(self, session: Session, lease: str, generation: int) -> LeaseRow | None:
        row = session.get(LeaseRow, lease)
        if row is None or row.cluster != self._cluster or row.generation != generation:
            _log.info("message about a lease that is over", lease=lease, generation=generation, cluster=self._cluster)
            return None
        return row

    def _opened(self, session: Session, message: link.Opened) -> None:
        lease = self._lease(session, message.lease, message.generation)
        if lease is not None:
            transitions.lease_event(self._plane, session, lease, LeaseEvent.OPENED)

    def _ended(self, session: Session, message: link.Ended) -> None:
        """Before OPEN it is over at once; after it, the CLOSE receipt says how long it was."""
        lease = self._lease(session, message.lease, message.generation)
        if lease is None or LeaseState(lease.state) not in ACTIVE_LEASE_STATES:
            return
        reason = notices.reason_of(session, lease.id) or agents_word(message.reason)
        if lease.opened_ms is None and lease.last_seq < 0:
            transitions.lease_event(self._plane, session, lease, LeaseEvent.ENDED_UNOPENED, reason)
            return
        if reason is Reason.OPERATOR_LOST:
            transitions.own_up(lease)
        transitions.lease_event(self._plane, session, lease, LeaseEvent.RELEASE, reason)
        lease.lost_at_ms = self._plane.now_ms() + ENDED_MS
        session.add(lease)

    def _work_done(self, session: Session, message: link.WorkDone) -> None:
        """The end of a detached task; one of an older attempt or generation changes nothing."""
        attempt = session.get(AttemptRow, (message.run, message.task, message.attempt))
        lease = self._lease(session, message.lease, message.generation)
        if attempt is None or lease is None or attempt.lease != lease.id or attempt.state != TaskState.SENT.value:
            return
        reason = _reason(message.reason)
        ended = TaskState.DONE if reason is Reason.DONE else TaskState.FAILED
        attempt.state = step(TASK_EDGES, TaskState(attempt.state), ended).value
        said = message.message[:_MAX_WORDS].replace("\0", _UNKNOWN)
        attempt.reason, attempt.message, attempt.exit_code = reason, said, _exit_code(message.exit_code)
        attempt.ended_ms = self._plane.now_ms()
        session.add(attempt)
        run = session.get_one(RunRow, message.run)
        if is_terminal(RUN_EDGES, RunState(run.state)) or run.state == RunState.CANCELLING.value:
            return
        if gangs.is_gang(run):
            transitions.rank_ended(self._plane, session, run, attempt, lease, message.result)
            return
        run.result_blob, run.result_message = message.result, said
        text = said or EXPLANATIONS[reason]
        transitions.attempt_ended(self._plane, session, run, reason, text, exit_code=attempt.exit_code)
        transitions.lease_event(self._plane, session, lease, LeaseEvent.RELEASE, reason)

    def _heartbeat(self, session: Session, message: link.Heartbeat) -> None:
        """Leases on a node that was lost end; what the agent can still close, it closes."""
        conditions.write(session, self._cluster, message.conditions, self._plane.now_ms())
        if sorted(message.lost_nodes) == self._lost:
            return
        self._lost = sorted(message.lost_nodes)
        newly = inventory.write_lost(session, self._plane.now_ms(), self._cluster, message.lost_nodes)
        active = [state.value for state in ACTIVE_LEASE_STATES]
        leases = select(LeaseRow).where(
            col(LeaseRow.cluster) == self._cluster, col(LeaseRow.node).in_(newly), col(LeaseRow.state).in_(active)
        )
        for lease in session.scalars(leases):
            transitions.own_up(lease)
            transitions.lease_event(self._plane, session, lease, LeaseEvent.RELEASE, Reason.OPERATOR_LOST)
            lease.lost_at_ms = self._plane.now_ms() + ENDED_MS
            session.add(lease)

    def _rtts(self, session: Session, message: link.Rtts) -> None:
        known = set(session.scalars(select(ClusterRow.id)))  # type: ignore[call-overload]
        write_rtts(session, self._cluster, message.rtts, known, self._plane.now_ms())

    def _inventory(self, session: Session, message: link.Inventory) -> str:
        problem = inventory.problem_of(message.nodes, allow_simulated=self._plane.settings.allow_simulated)
        if not problem:
            cluster = session.get_one(ClusterRow, self._cluster)
            inventory.write_nodes(self._plane, session, cluster, message.nodes)
            self._end_unhealthy(session)
        return problem

    def _end_unhealthy(self, session: Session) -> None:
        """Leases with a GPU that is no longer healthy end; new ones are not placed there."""
        active = [LeaseState.GRANTED.value, LeaseState.OPEN.value]
        leases = (
            select(LeaseRow)
            .join(LeaseGpuRow, col(LeaseGpuRow.lease) == col(LeaseRow.id))
            .join(GpuRow, col(GpuRow.uuid) == col(LeaseGpuRow.gpu))
            .where(col(LeaseRow.cluster) == self._cluster, col(LeaseRow.state).in_(active), ~col(GpuRow.healthy))
            .order_by(col(LeaseRow.id))
        )
        for lease in {row.id: row for row in session.scalars(leases)}.values():
            transitions.lease_event(self._plane, session, lease, LeaseEvent.RELEASE, Reason.GPU_UNHEALTHY)

    def _logs(self, message: link.Logs) -> None:
        """Kept when the run used a lease of this operator."""
        with self._plane.database.read() as session:
            mine = (
                select(LeaseRunRow)
                .join(LeaseRow, col(LeaseRow.id) == col(LeaseRunRow.lease))
                .where(col(LeaseRunRow.run) == message.run, col(LeaseRow.operator) == self._operator)
                .limit(1)
            )
            known = session.scalar(mine) is not None
        if known and message.lines:
            self._plane.logs.append(message.run, message.lines)


def _exit_code(said: int | None) -> int | None:
    """None for what no process can end with: the task is over all the same."""
    return said if said is not None and abs(said) < _EXIT_CODES else None


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.INTERNAL_ERROR
