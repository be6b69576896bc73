"""What a function may call while it runs in a job. Outside a job these do nothing that costs anything.

`simulate_preemption` works outside a job too, so that a hook can be tried where it is written.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fabric.wire import job
from fabric.wire.errors import InvalidRequest

LOCAL_NOTICE_S = 5.0
"""The notice that is simulated outside a job."""

Hook = TypeVar("Hook", bound=Callable[[float], object])

_local_hooks: list[Callable[[float], object]] = []
_local_deadline: list[float] = []


def progress(done: int, total: int | None = None) -> None:
    """Tell whoever waits for this task how far it is.

    Args:
        done: units done so far, 0 or more.
        total: units in all, if known.
    """
    if job.report_progress is not None:
        job.report_progress(done, total)


def count(**counts: int) -> None:
    """Add to this task's named counts, such as `tokens=12`: they stand in its receipt and are never billed.

    Raises:
        ValueError: too many names, or a count that is no whole number of 0 or more.
    """
    if job.report_counts is not None:
        job.report_counts(counts)


def on_preempt(save: Hook) -> Hook:
    """Call `save(seconds)` once when this job's lease gets its notice, with the seconds that are left until it ends.

    It runs in a thread of its own beside the job, so it may be called at any line of it; all that it must do is bring
    what is worth keeping into `checkpoint_dir()`, which is stored when it returns. Of an ordinary task it is forgotten
    when the task ends. May be used as a decorator.
    """
    (job.on_preempt or _local_hooks.append)(save)
    return save


def preempting() -> bool:
    """Whether this job's lease has got its notice. Costs next to nothing: ask at every step."""
    if job.notice_left_s is not None:
        return job.notice_left_s() is not None
    return bool(_local_deadline)


def checkpoint_dir() -> Path:
    """The folder of this run and task whose content comes along to the next attempt, wherever that runs.

    Its files are there again before the function starts. Outside a job it is `fabric-checkpoint` below the current
    folder.
    """
    if job.checkpoint_dir is not None:
        return job.checkpoint_dir()
    folder = Path("fabric-checkpoint").absolute()
    folder.mkdir(exist_ok=True)
    return folder


def checkpoint() -> None:
    """Store what `checkpoint_dir()` holds now; returns when it is durable. Only what changed travels.

    Raises:
        OSError: it could not be stored, with the reason: too large, or beyond the account's quota.
    """
    if job.checkpoint is not None:
        job.checkpoint()


def simulate_preemption(after: float = 5) -> None:
    """Get this job's lease a notice `after` seconds from now, as if another needed the GPU: hooks, deadline and all.

    In a job the lease then ends as `preempted` and the run comes back by its `retry`; only the first attempt of a task
    is preempted so. Outside a job the hooks are called, and nothing is ended.

    Raises:
        InvalidRequest: `after` is no time in seconds, negative or longer than a day.
    """
    if type(after) not in (int, float) or not 0 <= after <= 86_400:
        raise InvalidRequest(f"after={after!r:.80} must be between 0 and 86400 seconds")
    if job.ask_for_notice is not None:
        job.ask_for_notice(after)
        return
    timer = threading.Timer(after, _notice_here)
    timer.daemon = True
    timer.start()


def _notice_here() -> None:
    _local_deadline.append(time.monotonic() + LOCAL_NOTICE_S)
    for hook in _local_hooks:
        hook(LOCAL_NOTICE_S)
