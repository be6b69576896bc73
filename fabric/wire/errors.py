"""The errors a person meets, one tree for SDK, CLI and HTTP.

    fabric.Error
    ├── InvalidRequest      what was asked for makes no sense (also a ValueError)
    ├── AuthError           no valid credential
    ├── PermissionDenied    a valid credential of somebody else
    ├── InsufficientFunds   the balance does not cover the hold
    ├── BudgetExhausted     the run used up its own budget
    ├── PriceExceeded       everything that fits costs more than max_price
    ├── NoCapacity          nothing fits, or nothing became free in time
    ├── RunFailed           the run ended without a result; carries the reason
    │   ├── RemoteError     the function raised something this process cannot rebuild
    │   ├── OutOfMemory
    │   ├── Preempted
    │   ├── OperatorLost
    │   └── Timeout
    └── ServiceError        the fabric's own fault; `retryable` says whether to try again

Messages say what was given, what was allowed and what to do next. HTTP carries `code` as the problem type; the CLI ends
with `exit_code`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fabric.wire.reasons import Reason


class Error(Exception):
    """The root; `details` are the machine-readable members of an HTTP problem document."""

    code: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(Error, ValueError):
    code = "invalid-request"
    exit_code = 2


class AuthError(Error):
    code = "auth"
    exit_code = 3


class PermissionDenied(Error):
    code = "permission-denied"
    exit_code = 3


class InsufficientFunds(Error):
    """Details: `needed_dc`, `available_dc`."""

    code = "insufficient-funds"
    exit_code = 4


class BudgetExhausted(Error):
    """Details: `budget_dc`, `charged_dc`."""

    code = "budget-exhausted"
    exit_code = 4


class PriceExceeded(Error):
    """Details: `max_price_dc`, `offers` (the cheapest that would fit)."""

    code = "price-exceeded"
    exit_code = 5


class NoCapacity(Error):
    """Details: `considered`, `rejected` (reason to count), `next_best`."""

    code = "no-capacity"
    exit_code = 6


class RunFailed(Error):
    """A run that ended without a result: `reason`, and in details `run`, `attempts`.

    `exit_code` is the one of a `command` that ended by itself, or of the process that died.
    """

    code = "run-failed"
    exit_code = 7

    def __init__(self, message: str, *, reason: Reason = Reason.INTERNAL_ERROR, **details: Any) -> None:
        super().__init__(message, **details)
        self.reason = Reason(reason)
        if type(details.get("exit_code")) is int:
            self.exit_code = details["exit_code"]


class RemoteError(RunFailed):
    """An exception of the customer's function whose class this process cannot or may not rebuild."""

    code = "remote-error"

    def __init__(
        self, message: str, *, type_name: str, traceback: str, reason: Reason = Reason.USER_ERROR, **details: Any
    ) -> None:
        super().__init__(message, reason=reason, **details)
        self.type_name = type_name
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class OutOfMemory(RunFailed):
    code = "out-of-memory"


class Preempted(RunFailed):
    code = "preempted"


class OperatorLost(RunFailed):
    code = "operator-lost"


class Timeout(RunFailed):
    code = "timeout"
    exit_code = 8


class ServiceError(Error):
    code = "service"
    exit_code = 9

    def __init__(self, message: str, *, retryable: bool = False, **details: Any) -> None:
        super().__init__(message, **details)
        self.retryable = retryable


_BY_REASON: dict[Reason, type[RunFailed]] = {
    Reason.OOM: OutOfMemory,
    Reason.PREEMPTED: Preempted,
    Reason.OPERATOR_LOST: OperatorLost,
    Reason.OPERATOR_DRAIN: OperatorLost,
    Reason.TIMEOUT: Timeout,
    Reason.STARTUP_TIMEOUT: Timeout,
}

_BY_CODE: dict[str, type[Error]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        AuthError,
        PermissionDenied,
        InsufficientFunds,
        BudgetExhausted,
        PriceExceeded,
        NoCapacity,
        RunFailed,
    )
}


def run_failed(reason: Reason, message: str, **details: Any) -> Error:
    """The error of the class that belongs to a run's terminal reason."""
    if reason is Reason.BUDGET_EXHAUSTED:
        return BudgetExhausted(message, **details)
    if reason is Reason.INSUFFICIENT_FUNDS:
        return InsufficientFunds(message, **details)
    if reason is Reason.NO_CAPACITY:
        return NoCapacity(message, **details)
    return _BY_REASON.get(reason, RunFailed)(message, reason=reason, **details)


def from_problem(problem: Mapping[str, Any], status: int) -> Error:
    """The error of an RFC 9457 problem document; what is not understood becomes a ServiceError."""
    code = str(problem.get("type", "")).rsplit("/", 1)[-1]
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    details = {k: v for k, v in problem.items() if k not in _STANDARD_MEMBERS}
    if code == "run-failed":
        return run_failed(Reason(details.pop("reason", Reason.INTERNAL_ERROR)), message, **details)
    known = _BY_CODE.get(code)
    if known is not None:
        return known(message, **details)
    if 400 <= status < 500 and status not in (408, 425, 429):
        return InvalidRequest(message, **details)
    return ServiceError(message, retryable=status in (408, 425, 429, 502, 503, 504), **details)


_STANDARD_MEMBERS = frozenset({"type", "title", "detail", "status", "instance", "message", "retryable"})
