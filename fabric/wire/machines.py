"""The state machines of runs, leases and tasks: every state, every legal edge, nothing else.

`step` is the only way from one state to the next; an edge that is not listed raises and changes nothing.
"""

from enum import StrEnum
from typing import TypeVar

S = TypeVar("S", bound=StrEnum)


class RunState(StrEnum):
    QUEUED = "QUEUED"
    PLACING = "PLACING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PREEMPTING = "PREEMPTING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class LeaseState(StrEnum):
    GRANTED = "GRANTED"
    OPEN = "OPEN"
    CLOSING = "CLOSING"
    CLOSED = "CLOSED"
    LOST = "LOST"


class TaskState(StrEnum):
    PENDING = "PENDING"
    SENT = "SENT"
    DONE = "DONE"
    FAILED = "FAILED"


_R, _L, _T = RunState, LeaseState, TaskState

RUN_EDGES: dict[RunState, frozenset[RunState]] = {
    _R.QUEUED: frozenset({_R.PLACING, _R.FAILED, _R.CANCELLING}),
    _R.PLACING: frozenset({_R.STARTING, _R.QUEUED, _R.FAILED, _R.CANCELLING}),
    _R.STARTING: frozenset({_R.RUNNING, _R.PREEMPTING, _R.QUEUED, _R.SUCCEEDED, _R.FAILED, _R.CANCELLING}),
    _R.RUNNING: frozenset({_R.SUCCEEDED, _R.FAILED, _R.PREEMPTING, _R.QUEUED, _R.CANCELLING}),
    _R.PREEMPTING: frozenset({_R.QUEUED, _R.SUCCEEDED, _R.FAILED, _R.CANCELLING}),
    _R.CANCELLING: frozenset({_R.CANCELLED}),
    _R.SUCCEEDED: frozenset(),
    _R.FAILED: frozenset(),
    _R.CANCELLED: frozenset(),
}
"""STARTING → SUCCEEDED: a short run may be over before its lease's OPEN receipt arrives."""

LEASE_EDGES: dict[LeaseState, frozenset[LeaseState]] = {
    _L.GRANTED: frozenset({_L.OPEN, _L.CLOSING, _L.CLOSED, _L.LOST}),
    _L.OPEN: frozenset({_L.CLOSING, _L.CLOSED, _L.LOST}),
    _L.CLOSING: frozenset({_L.CLOSED, _L.LOST}),
    _L.CLOSED: frozenset(),
    _L.LOST: frozenset(),
}
"""GRANTED → CLOSED: refused by the agent. OPEN → CLOSED: the agent closed it before it heard of a release."""

TASK_EDGES: dict[TaskState, frozenset[TaskState]] = {
    _T.PENDING: frozenset({_T.SENT, _T.FAILED}),
    _T.SENT: frozenset({_T.DONE, _T.FAILED, _T.PENDING}),
    _T.DONE: frozenset(),
    _T.FAILED: frozenset(),
}

ACTIVE_LEASE_STATES = frozenset({_L.GRANTED, _L.OPEN, _L.CLOSING})
"""States in which a lease occupies its GPUs."""


class IllegalTransition(Exception):
    """An event that the current state does not allow; nothing was changed."""


def step(edges: dict[S, frozenset[S]], current: S, target: S) -> S:
    """The state after the edge ``current → target``.

    Raises:
        IllegalTransition: the table does not list that edge.
    """
    if target not in edges[current]:
        legal = ", ".join(sorted(edges[current])) or "none, it is terminal"
        raise IllegalTransition(
            f"{type(current).__name__} {current} → {target} is not an edge; from {current}: {legal}"
        )
    return target


def is_terminal(edges: dict[S, frozenset[S]], state: S) -> bool:
    return not edges[state]
