"""The SDK's table of contents: what people import, resolved on first use so that `import fabric` costs next to nothing.

It decides which names are public and where each lives; it does nothing itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.client.actors import actor
    from fabric.client.awaited import amap, arun
    from fabric.client.env import Env
    from fabric.client.executor import Executor
    from fabric.client.functions import Function, function
    from fabric.client.job import (
        checkpoint,
        checkpoint_dir,
        count,
        on_preempt,
        preempting,
        progress,
        simulate_preemption,
    )
    from fabric.client.runs import Cost, Run
    from fabric.client.secret import Secret
    from fabric.client.serving import Service, endpoints, serve
    from fabric.client.verbs import attach, init, map, offers, run, submit  # noqa: A004 - the verb's name is the product's
    from fabric.wire.errors import (
        AuthError,
        BudgetExhausted,
        Error,
        InsufficientFunds,
        InvalidRequest,
        NoCapacity,
        OperatorLost,
        OutOfMemory,
        PermissionDenied,
        Preempted,
        PriceExceeded,
        RemoteError,
        RunFailed,
        ServiceError,
        Timeout,
    )
    from fabric.wire.record import Record
    from fabric.wire.retry import Retry

__all__ = [
    "AuthError",
    "BudgetExhausted",
    "Cost",
    "Env",
    "Error",
    "Executor",
    "Function",
    "InsufficientFunds",
    "InvalidRequest",
    "NoCapacity",
    "OperatorLost",
    "OutOfMemory",
    "PermissionDenied",
    "Preempted",
    "PriceExceeded",
    "Record",
    "RemoteError",
    "Retry",
    "Run",
    "RunFailed",
    "Secret",
    "Service",
    "ServiceError",
    "Timeout",
    "actor",
    "amap",
    "arun",
    "attach",
    "checkpoint",
    "checkpoint_dir",
    "count",
    "endpoints",
    "function",
    "init",
    "map",
    "offers",
    "on_preempt",
    "preempting",
    "progress",
    "run",
    "serve",
    "simulate_preemption",
    "submit",
]

_HOMES = {
    "Cost": "fabric.client.runs",
    "Env": "fabric.client.env",
    "Executor": "fabric.client.executor",
    "Function": "fabric.client.functions",
    "Record": "fabric.wire.record",
    "Retry": "fabric.wire.retry",
    "Run": "fabric.client.runs",
    "actor": "fabric.client.actors",
    "amap": "fabric.client.awaited",
    "arun": "fabric.client.awaited",
    "Secret": "fabric.client.secret",
    "attach": "fabric.client.verbs",
    "Service": "fabric.client.serving",
    "checkpoint": "fabric.client.job",
    "checkpoint_dir": "fabric.client.job",
    "count": "fabric.client.job",
    "endpoints": "fabric.client.serving",
    "serve": "fabric.client.serving",
    "function": "fabric.client.functions",
    "init": "fabric.client.verbs",
    "map": "fabric.client.verbs",
    "offers": "fabric.client.verbs",
    "on_preempt": "fabric.client.job",
    "preempting": "fabric.client.job",
    "progress": "fabric.client.job",
    "run": "fabric.client.verbs",
    "simulate_preemption": "fabric.client.job",
    "submit": "fabric.client.verbs",
}
"""Every public name that is no error; those all live in `fabric.wire.errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fabric' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "fabric.wire.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
