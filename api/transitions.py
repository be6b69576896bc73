"""Writes what `api.lifecycle` decided about leases and runs, inside the caller's transaction.

The only place that changes the state of a lease or a run once it exists.
"""

import structlog
from sqlalchemy import func, select, update
from sqlmodel import Session, col

from api import gangs, nonces
from api.database import say
from api.fleet import node_key
from api.fleets import note_change
from api.kept import checkpointed_ms
from api.lifecycle import (
    BAD_NODE,
    NOT_BILLED_BACK,
    Act,
    LeaseEvent,
    RunFacts,
    RunStep,
    billed_back_ms,
    lease_step,
    run_attempt_ended,
    run_cancelled,
    run_opened,
)
from api.plane import Plane
from api.receipt_rows import OpenLease
from api.schemas import RunRequest
from api.signals import CAPACITY, cluster_topic, logs_topic, run_topic
from api.tables import AttemptRow, BlobRow, GpuRow, LeaseGpuRow, LeaseRow, LeaseRunRow, RunRow
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
from fabric.wire.retry import Retry
from ledger.errors import UsageIsFinal
from ledger.leaves import gpu_id_hex

_log = structlog.get_logger(__name__)
_ACTIVE = [state.value for state in ACTIVE_LEASE_STATES]
_USABLE = (LeaseState.GRANTED.value, LeaseState.OPEN.value)
_FAILURES = 32
"""So many failed attempts of a run are remembered."""


def lease_event(plane: Plane, session: Session, lease: LeaseRow, event: LeaseEvent, reason: str = "") -> bool:
    """Apply an event to a lease and what follows from it to its runs; False when it came too late to matter."""
    decided = lease_step(LeaseState(lease.state), event)
    if decided is None:
        return False
    ending = lease.state in _USABLE
    lease.state = decided.state.value
    if event is LeaseEvent.CLOSE_ACCEPTED and reason == Reason.OPERATOR_LOST:
        own_up(lease)
    if event is LeaseEvent.LOST and lease.reason == Reason.INTERNAL_ERROR:
        lease.reason = reason  # who could not reach its node was right
    lease.reason = lease.reason or reason
    if ending and lease.reason in BAD_NODE:
        _avoid_node(session, lease)
    if event is LeaseEvent.OPENED:
        lease.opened_ms = plane.now_ms()
        say(session, CAPACITY)
    for act in decided.acts:
        _ACTS[act](plane, session, lease)
    session.add(lease)
    session.flush()
    _tell_runs(plane, session, lease)
    return True


def give_back(lease: LeaseRow) -> None:
    """Its customer ends it; what ends already by another's word keeps that word."""
    lease.given_back = lease.given_back or lease.state in _USABLE


def own_up(lease: LeaseRow) -> None:
    """Its agent says that the node is lost: a customer who could not reach it, and said so first, was right.

    The reason is the operator's own word from now on, so it counts for the operator's reputation, and bills no least.
    """
    if unreachable(lease):
        lease.reason, lease.given_back = Reason.OPERATOR_LOST, False


def unreachable(lease: LeaseRow | OpenLease) -> bool:
    """Whether it ends because its customer could not reach the node."""
    return lease.given_back and lease.reason == Reason.INTERNAL_ERROR


def _avoid_node(session: Session, lease: LeaseRow) -> None:
    """The lease ended by its node's fault: its runs try elsewhere first."""
    for run in live_runs(session, lease.id):
        run.excluded_nodes = [*run.excluded_nodes, node_key(lease.cluster, lease.node)][-_FAILURES:]
        session.add(run)


def run_step(plane: Plane, session: Session, run: RunRow, decided: RunStep | None) -> bool:
    """Write a run's next state; a run that is over gives back the leases that nobody else uses."""
    if decided is None:
        return False
    run.state = decided.state.value
    run.reason, run.message = decided.reason, decided.message
    now = plane.now_ms()
    if decided.state is RunState.RUNNING and run.started_ms is None:
        run.started_ms = now
    if decided.retry_after_ms is not None:
        wait = RunRequest.model_validate(run.request).queue_timeout_ms
        run.retry_at_ms, run.queued_until_ms = now + decided.retry_after_ms, now + decided.retry_after_ms + wait
        say(session, CAPACITY)
    if is_terminal(RUN_EDGES, decided.state):
        run.ended_ms = now
        _fail_attempts(session, run.id, None, now, decided.reason)
        _forget_secrets(session, run)
    session.add(run)
    session.flush()
    say(session, run_topic(run.id), logs_topic(run.id))
    if is_terminal(RUN_EDGES, decided.state) or decided.state is RunState.CANCELLING:
        _release_unused(plane, session, run, decided)
    return True


def cancel(plane: Plane, session: Session, run: RunRow) -> bool:
    """Cancel a run: its own leases are released; leases that other runs use go on."""
    own = [lease for lease in leases_of(session, run.id, active=True) if not _others(session, lease.id, run.id)]
    facts = RunFacts(RunState(run.state), run.placements, retry_of(run), len(own))
    return run_step(plane, session, run, run_cancelled(facts))


def attempt_ended(
    plane: Plane, session: Session, run: RunRow, reason: Reason, message: str, *, exit_code: int | None = None
) -> bool:
    """An attempt of a run ended; a run that still has a lease goes on with it, a detached one has one at a time."""
    leases = [] if run.code else leases_of(session, run.id, active=True)
    if RunState(run.state) is RunState.CANCELLING:
        leases = [lease for lease in leases_of(session, run.id, active=True) if not _others(session, lease.id, run.id)]
    facts = RunFacts(RunState(run.state), run.placements, retry_of(run), len(leases))
    return run_step(plane, session, run, run_attempt_ended(facts, reason, message, exit_code))


def rank_ended(plane: Plane, session: Session, run: RunRow, attempt: AttemptRow, lease: LeaseRow, result: str) -> None:
    """One rank's task ended, as its row says: a gang is done when all its ranks are, and fails with the first of them.

    The value of a gang is that of rank 0; whether the others' could travel does not matter.
    """
    reason, leader = Reason(attempt.reason), attempt.task == 0
    if reason is Reason.RESULT_NOT_TRANSPORTABLE and not leader:
        reason = Reason.DONE
    if leader or reason is not Reason.DONE:
        run.result_blob, run.result_message = result, attempt.message
        session.add(run)
    if reason is not Reason.DONE:
        if reason in BAD_NODE:
            lease_event(plane, session, lease, LeaseEvent.RELEASE, reason)
        text = attempt.message or EXPLANATIONS[reason]
        gang_failed(plane, session, run, lease, reason, text, exit_code=attempt.exit_code)
    elif not gangs.at_work(session, run):
        attempt_ended(plane, session, run, Reason.DONE, EXPLANATIONS[Reason.DONE])


def gang_failed(
    plane: Plane,
    session: Session,
    run: RunRow,
    lease: LeaseRow,
    reason: Reason,
    text: str,
    *,
    exit_code: int | None = None,
) -> None:
    """A gang's attempt ends with what happened to one rank: the others stop, good leases stay for a retry."""
    message = gangs.named(session, run, lease, text)
    gangs.stop_ranks(session, run, reason, message, plane.now_ms())
    attempt_ended(plane, session, run, reason, message, exit_code=exit_code)


def retry_of(run: RunRow) -> Retry:
    """The run's rule."""
    given = RunRequest.model_validate(run.request).retry
    return Retry(tuple(given.on), given.max, given.backoff_ms / 1000, tuple(given.exit_codes))


def leases_of(session: Session, run: str, *, active: bool = False) -> list[LeaseRow]:
    """The leases that a run uses or used, oldest first."""
    query = (
        select(LeaseRow)
        .join(LeaseRunRow, col(LeaseRunRow.lease) == col(LeaseRow.id))
        .where(col(LeaseRunRow.run) == run)
        .order_by(col(LeaseRow.granted_ms), col(LeaseRow.id))
    )
    return list(session.scalars(query.where(col(LeaseRow.state).in_(_ACTIVE)) if active else query))


def is_closing(session: Session, run: str) -> bool:
    """Whether a lease that the run used is about to be free."""
    return any(lease.state == LeaseState.CLOSING.value for lease in leases_of(session, run, active=True))


def live_runs(session: Session, lease: str) -> list[RunRow]:
    """The runs that use a lease and are not over."""
    rows = session.scalars(
        select(RunRow).join(LeaseRunRow, col(LeaseRunRow.run) == col(RunRow.id)).where(col(LeaseRunRow.lease) == lease)
    )
    return [row for row in rows if not is_terminal(RUN_EDGES, RunState(row.state))]


def _tell_runs(plane: Plane, session: Session, lease: LeaseRow) -> None:
    state = LeaseState(lease.state)
    for run in live_runs(session, lease.id):
        say(session, run_topic(run.id))
        if state is LeaseState.OPEN:
            run_step(plane, session, run, run_opened(RunState(run.state)))
            if gangs.is_gang(run):
                gangs.send_when_complete(session, run, plane.now_ms())
            elif run.detached:
                _send_work(plane, session, run, lease)
        elif state not in ACTIVE_LEASE_STATES:
            _lease_gone(plane, session, run, lease)


def _lease_gone(plane: Plane, session: Session, run: RunRow, lease: LeaseRow) -> None:
    """A lease that its own customer gave back ends no run; any other end of the last lease is an attempt's end."""
    reason, text = _why_gone(lease)
    _fail_attempts(session, run.id, lease.id, plane.now_ms(), reason)
    state = RunState(run.state)
    if state is RunState.QUEUED or (reason is Reason.DONE and state is not RunState.CANCELLING):
        return
    if gangs.is_gang(run) and state is not RunState.CANCELLING:
        if gangs.is_current(session, run, lease.id):
            gang_failed(plane, session, run, lease, reason, text)
        return
    if run.detached and _has_newer_lease(session, run, lease):
        return
    attempt_ended(plane, session, run, reason, text)


def _why_gone(lease: LeaseRow) -> tuple[Reason, str]:
    """What a run hears. A node that only its customer could not reach is lost to the run; the lease is billed."""
    reason = Reason(lease.reason or Reason.OPERATOR_LOST)
    if lease.given_back and reason is Reason.INTERNAL_ERROR:
        return Reason.OPERATOR_LOST, f"node {lease.node} could not be reached from the process that used the lease"
    return reason, EXPLANATIONS[reason]


def _has_newer_lease(session: Session, run: RunRow, lease: LeaseRow) -> bool:
    """Whether a detached run's present attempt is on another lease than this one, whose end comes late."""
    return any(other.id != lease.id and other.state in _USABLE for other in leases_of(session, run.id, active=True))


def _send_work(plane: Plane, session: Session, run: RunRow, lease: LeaseRow) -> None:
    """The attempt of a detached run; the cluster's agent gets it from the row."""
    session.add(
        AttemptRow(
            run=run.id,
            task=0,
            attempt=run.placements,
            lease=lease.id,
            generation=lease.generation,
            state=step(TASK_EDGES, TaskState.PENDING, TaskState.SENT).value,
            started_ms=plane.now_ms(),
        )
    )
    say(session, cluster_topic(lease.cluster))


def _fail_attempts(session: Session, run: str, lease: str | None, now_ms: int, reason: str) -> None:
    """Attempts that were under way end with their lease or their run."""
    query = select(AttemptRow).where(col(AttemptRow.run) == run, col(AttemptRow.state) == TaskState.SENT.value)
    for row in session.scalars(query if lease is None else query.where(col(AttemptRow.lease) == lease)):
        row.state = step(TASK_EDGES, TaskState(row.state), TaskState.FAILED).value
        row.reason, row.ended_ms = reason, now_ms
        session.add(row)


def _forget_secrets(session: Session, run: RunRow) -> None:
    """Arguments that carry secrets are gone from now on; the next sweep removes their bytes."""
    if (run.request.get("work") or {}).get("secret"):
        row = session.get(BlobRow, (run.customer, run.args))
        if row is not None:
            row.expires_ms = 0
            session.add(row)


def _release_unused(plane: Plane, session: Session, run: RunRow, decided: RunStep) -> None:
    """A detached, cancelled or single-lease run takes its leases with it; a session's lease waits for its session."""
    if not (run.detached or run.own_lease or decided.state in (RunState.CANCELLING, RunState.CANCELLED)):
        return
    for lease in leases_of(session, run.id, active=True):
        if not _others(session, lease.id, run.id):
            if decided.told:
                give_back(lease)
            lease_event(plane, session, lease, LeaseEvent.RELEASE, decided.lease_reason)


def _others(session: Session, lease: str, run: str) -> bool:
    return any(other.id != run for other in live_runs(session, lease))


def _send_release(plane: Plane, session: Session, lease: LeaseRow) -> None:
    lease.release_ms = plane.now_ms()
    lease.release_nonce = nonces.issue(session, lease.cluster, lease.release_ms).seq
    say(session, cluster_topic(lease.cluster))


def _free_gpus(plane: Plane, session: Session, lease: LeaseRow) -> None:
    for row in gpus_of(session, lease.id):
        if row.active:
            row.active = False
            session.add(row)
            session.execute(
                update(GpuRow).where(col(GpuRow.uuid) == row.gpu).values(used_milli=GpuRow.used_milli - row.share_milli)
            )
    lease.closed_ms = plane.now_ms()
    note_change(session, lease.closed_ms, lease.cluster, [lease.node])
    say(session, CAPACITY)


def _end_hold(plane: Plane, session: Session, lease: LeaseRow) -> None:
    if Reason(lease.reason or Reason.DONE) in NOT_BILLED_BACK and lease.state == LeaseState.CLOSED.value:
        _bill_back(plane, session, lease)
    plane.ledger(session).release_hold(lease.id)


def _fence(_plane: Plane, session: Session, lease: LeaseRow) -> None:
    lease.generation += 1
    say(session, cluster_topic(lease.cluster))


def _bill_back(plane: Plane, session: Session, lease: LeaseRow) -> None:
    """The operator bears the time since the last finished task or stored checkpoint, at most five minutes of it."""
    if lease.tier == "reserved":
        return
    generation = lease.generation - (1 if lease.state == LeaseState.LOST.value else 0)
    kept_ms = checkpointed_ms(session, lease)
    for row in gpus_of(session, lease.id):
        back = billed_back_ms(row.billed_ms, max(lease.last_task_end_ms, kept_ms))
        if back == row.billed_ms:
            continue
        gpu_id = gpu_id_hex(row.gpu)
        try:
            undone = plane.ledger(session).undo(
                lease.id, generation, gpu_id, back, f"lost/{lease.id}/{generation}/{gpu_id}"
            )
        except UsageIsFinal:
            _log.warning("usage of a lost lease is final already", lease=lease.id, gpu=gpu_id)
            continue
        reversed_dc = sum(
            posting.amount for entry in undone.reversals for posting in entry.postings if posting.amount > 0
        )
        change = (undone.again.dc if undone.again else 0) - reversed_dc
        row.billed_ms = back
        row.charged_dc += change
        lease.charged_dc += change
        session.add(row)


def gpus_of(session: Session, lease: str) -> list[LeaseGpuRow]:
    """The lease's GPUs in their order."""
    query = select(LeaseGpuRow).where(col(LeaseGpuRow.lease) == lease).order_by(col(LeaseGpuRow.position))
    return list(session.scalars(query))


def count_unopened(session: Session, customer: str) -> int:
    """Leases of a customer that wait for their OPEN, unbilled."""
    granted = LeaseState.GRANTED.value
    query = select(func.count()).where(col(LeaseRow.customer) == customer, col(LeaseRow.state) == granted)
    return int(session.scalar(query) or 0)


_ACTS = {
    Act.SEND_RELEASE: _send_release,
    Act.FREE_GPUS: _free_gpus,
    Act.END_HOLD: _end_hold,
    Act.FENCE: _fence,
    Act.BILL_BACK: _bill_back,
}
