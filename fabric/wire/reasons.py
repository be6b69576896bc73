"""Why an attempt or a run ended: a closed list, and the classes of it that `Retry(on=…)` names."""

from enum import StrEnum


class Reason(StrEnum):
    DONE = "done"
    USER_ERROR = "user_error"
    CRASHED = "crashed"
    OOM = "oom"
    TIMEOUT = "timeout"
    STARTUP_TIMEOUT = "startup_timeout"
    BUDGET_EXHAUSTED = "budget_exhausted"
    NO_CAPACITY = "no_capacity"
    PREEMPTED = "preempted"
    OPERATOR_DRAIN = "operator_drain"
    OPERATOR_LOST = "operator_lost"
    CLIENT_LOST = "client_lost"
    GPU_UNHEALTHY = "gpu_unhealthy"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    CANCELLED_BY_USER = "cancelled_by_user"
    SLOT_ENDED = "slot_ended"
    DEPS_INSTALL = "deps_install"
    RESULT_NOT_TRANSPORTABLE = "result_not_transportable"
    VERIFICATION_FAILED = "verification_failed"
    INTERNAL_ERROR = "internal_error"


FABRIC_ONLY: frozenset[Reason] = frozenset({Reason.OPERATOR_LOST, Reason.GPU_UNHEALTHY})
"""Ends of a lease that no customer may state: their time would be the operator's loss."""

RETRY_CLASSES: dict[str, frozenset[Reason]] = {
    "interruption": frozenset(
        {
            Reason.PREEMPTED,
            Reason.OPERATOR_DRAIN,
            Reason.OPERATOR_LOST,
            Reason.GPU_UNHEALTHY,
            Reason.INTERNAL_ERROR,
        }
    ),
    "error": frozenset({Reason.USER_ERROR, Reason.CRASHED, Reason.OOM}),
    "no_capacity": frozenset({Reason.NO_CAPACITY}),
}
"""What each word of `Retry(on=…)` covers."""

EXPLANATIONS: dict[Reason, str] = {
    Reason.DONE: "finished",
    Reason.USER_ERROR: "the function raised an exception",
    Reason.CRASHED: "the process that ran the function died",
    Reason.OOM: "the process was killed because it used more memory than it was given",
    Reason.TIMEOUT: "it ran longer than `timeout`",
    Reason.STARTUP_TIMEOUT: "it was not ready to start within `startup_timeout`",
    Reason.BUDGET_EXHAUSTED: "the run's budget was used up",
    Reason.NO_CAPACITY: "no GPU that fits became free in time",
    Reason.PREEMPTED: "a lease of a higher tier needed the GPU",
    Reason.OPERATOR_DRAIN: "the operator drained the node",
    Reason.OPERATOR_LOST: "the operator's node or agent was lost",
    Reason.CLIENT_LOST: "the process that started the run was gone",
    Reason.GPU_UNHEALTHY: "the GPU failed its health check",
    Reason.INSUFFICIENT_FUNDS: "the balance was used up",
    Reason.CANCELLED_BY_USER: "cancelled by the user",
    Reason.SLOT_ENDED: "the reserved slot ended",
    Reason.DEPS_INSTALL: "the environment could not be installed",
    Reason.RESULT_NOT_TRANSPORTABLE: "the result cannot travel",
    Reason.VERIFICATION_FAILED: "the GPU failed verification",
    Reason.INTERNAL_ERROR: "a fault of the fabric",
}
