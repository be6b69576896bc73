"""What an event does to a run or a lease: values in, decisions out. Reads no clock and no table; `api.broker` acts.

The states and their edges are those of `fabric.wire.machines`; an event that a state does not allow raises
`IllegalTransition`, an event that changes nothing answers None.
"""

from dataclasses import dataclass
from enum import StrEnum

from fabric.wire.machines import LEASE_EDGES, RUN_EDGES, LeaseState, RunState, is_terminal, step
from fabric.wire.reasons import Reason
from fabric.wire.retry import Retry, delay_s

_R, _L = RunState, LeaseState

OPEN_WITHIN_MS = 30_000
"""Before OPEN nothing is billed, so a grant that is not open by then ends."""

NEAR_SILENT_MS = 60_000
"""An agent silent for so long gets no new lease."""

LOST_AFTER_MS = 300_000
"""An agent silent for so long has lost its leases."""

CLIENT_SILENT_MS = 180_000
"""A customer's process silent for so long is gone."""

MISSING_MS = 30_000
"""How long a lease may stay open after its agent came back without it and sent no receipt of it."""

ENDED_MS = 5_000
"""How long the CLOSE receipt may come after its agent said that the lease has ended."""

CLOSE_WITHIN_MS = 60_000
"""How long after a release the CLOSE receipt may take while the agent is there."""

MAX_UNDO_MS = 300_000
"""The most that is taken back when an operator is lost."""

NOT_BILLED_BACK = frozenset({Reason.OPERATOR_LOST, Reason.GPU_UNHEALTHY})
"""Ends whose time since the last finished task is the operator's loss."""


BAD_NODE = frozenset(
    {
        Reason.OPERATOR_LOST,
        Reason.GPU_UNHEALTHY,
        Reason.INTERNAL_ERROR,
        Reason.STARTUP_TIMEOUT,
        Reason.VERIFICATION_FAILED,
    }
)
"""Ends of leases after which a run is tried on another node first, and after two in a row not on that one."""


class LeaseEvent(StrEnum):
    OPENED = "opened"
    RELEASE = "release"
    CLOSE_ACCEPTED = "close_accepted"
    ENDED_UNOPENED = "ended_unopened"
    LOST = "lost"


class Act(StrEnum):
    """What the shell does besides writing the new state."""

    SEND_RELEASE = "send_release"
    FREE_GPUS = "free_gpus"
    END_HOLD = "end_hold"
    FENCE = "fence"
    BILL_BACK = "bill_back"


@dataclass(frozen=True, slots=True)
class LeaseStep:
    state: LeaseState
    acts: tuple[Act, ...] = ()


_OVER = (Act.FREE_GPUS, Act.END_HOLD)
_TARGETS: dict[LeaseEvent, LeaseStep] = {
    LeaseEvent.OPENED: LeaseStep(_L.OPEN),
    LeaseEvent.RELEASE: LeaseStep(_L.CLOSING, (Act.SEND_RELEASE,)),
    LeaseEvent.CLOSE_ACCEPTED: LeaseStep(_L.CLOSED, _OVER),
    LeaseEvent.ENDED_UNOPENED: LeaseStep(_L.CLOSED, _OVER),
    LeaseEvent.LOST: LeaseStep(_L.LOST, (Act.FENCE, Act.BILL_BACK, *_OVER)),
}
_REPEATS: dict[LeaseEvent, frozenset[LeaseState]] = {
    LeaseEvent.OPENED: frozenset({_L.OPEN, _L.CLOSING, _L.CLOSED, _L.LOST}),
    LeaseEvent.RELEASE: frozenset({_L.CLOSING, _L.CLOSED, _L.LOST}),
    LeaseEvent.CLOSE_ACCEPTED: frozenset({_L.CLOSED, _L.LOST}),
    LeaseEvent.ENDED_UNOPENED: frozenset({_L.CLOSED, _L.LOST}),
    LeaseEvent.LOST: frozenset({_L.CLOSED, _L.LOST}),
}
"""States in which an event comes too late to change anything: a duplicate, or a race that is over."""


def lease_step(state: LeaseState, event: LeaseEvent) -> LeaseStep | None:
    """The lease's next state and what to do; None when the event is a duplicate or too late.

    Raises:
        IllegalTransition: the state does not allow the event.
    """
    if state in _REPEATS[event]:
        return None
    target = _TARGETS[event]
    step(LEASE_EDGES, state, target.state)
    return target


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What decides about a run.

    Attributes:
        state: now.
        placements: how often it was placed, the present one included.
        retry: its rule.
        active_leases: leases of its own or shared that still occupy GPUs, the one that ended not counted.
    """

    state: RunState
    placements: int
    retry: Retry
    active_leases: int


@dataclass(frozen=True, slots=True)
class RunStep:
    """A run's next state; `retry_after_ms` when it is queued again, else None; `told`: by the run's own process."""

    state: RunState
    reason: str = ""
    message: str = ""
    retry_after_ms: int | None = None
    told: bool = False

    @property
    def lease_reason(self) -> str:
        """Why leases end with the run: what a customer says never makes their time the operator's loss."""
        return Reason.DONE if self.told and self.reason in NOT_BILLED_BACK else self.reason


def run_opened(state: RunState) -> RunStep | None:
    """One of its leases is open."""
    return RunStep(_R.RUNNING) if state is _R.STARTING else None


def run_preempted(state: RunState, reason: Reason, message: str) -> RunStep | None:
    """Every lease that it has got its notice; what becomes of it is decided when they end."""
    return RunStep(_R.PREEMPTING, reason, message) if state in (_R.STARTING, _R.RUNNING) else None


def run_cancelled(facts: RunFacts) -> RunStep | None:
    """Somebody cancelled it; with leases to close it is CANCELLING, else CANCELLED at once."""
    if is_terminal(RUN_EDGES, facts.state) or facts.state is _R.CANCELLING:
        return None
    step(RUN_EDGES, facts.state, _R.CANCELLING)
    state = _R.CANCELLING if facts.active_leases else _R.CANCELLED
    return RunStep(state, Reason.CANCELLED_BY_USER, "cancelled")


def run_finished(state: RunState, to: RunState, reason: str, message: str) -> RunStep | None:
    """The run's own process says how it ended.

    Raises:
        IllegalTransition: a run that has not started cannot have succeeded, a finished one not finish otherwise.
    """
    if state is to:
        return None
    if state is _R.CANCELLING or state is _R.CANCELLED:
        return None
    step(RUN_EDGES, state, to)
    return RunStep(to, reason, message, told=True)


def run_attempt_ended(facts: RunFacts, reason: Reason, message: str, exit_code: int | None = None) -> RunStep | None:
    """What an ended attempt means for its run: success, another try, or failure.

    A run that still has a lease goes on with it; one that is being cancelled is cancelled when its last lease ends.
    """
    if is_terminal(RUN_EDGES, facts.state) or facts.active_leases:
        return None
    if facts.state is _R.CANCELLING:
        return RunStep(_R.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled")
    if reason is Reason.DONE:
        return _checked(facts.state, RunStep(_R.SUCCEEDED, Reason.DONE, message))
    delay = delay_s(facts.retry, reason, max(1, facts.placements), exit_code)
    if delay is None:
        return _checked(facts.state, RunStep(_R.FAILED, reason, message))
    if facts.state is _R.QUEUED:
        return None
    return _checked(facts.state, RunStep(_R.QUEUED, reason, message, retry_after_ms=round(delay * 1000)))


def run_failed(state: RunState, reason: Reason, message: str) -> RunStep | None:
    """It ends without another try: no capacity in time, no money, or its process is gone."""
    if is_terminal(RUN_EDGES, state) or state is _R.CANCELLING:
        return None
    return _checked(state, RunStep(_R.FAILED, reason, message))


def billed_back_ms(billed_ms: int, last_task_end_ms: int) -> int:
    """Cumulative ms that stay billed when an operator is lost: to the last finished task, at most 5 minutes back."""
    return min(billed_ms, max(last_task_end_ms, billed_ms - MAX_UNDO_MS))


def _checked(state: RunState, decided: RunStep) -> RunStep:
    step(RUN_EDGES, state, decided.state)
    return decided
