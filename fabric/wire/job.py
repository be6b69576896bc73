"""What a job can say while it runs. The sandbox child sets the hooks; outside a job they are None."""

from collections.abc import Callable
from pathlib import Path

from fabric.wire.channel import MAX_COUNTERS

report_progress: Callable[[int, int | None], None] | None = None
"""Called by `fabric.progress(done, total)`; sends the numbers to the customer."""

report_counts: Callable[[dict[str, int]], None] | None = None
"""Called by `fabric.count(…)`; adds to the task's named counts."""

on_preempt: Callable[[Callable[[float], object]], None] | None = None
"""Called by `fabric.on_preempt(save)`; registers it."""

notice_left_s: Callable[[], float | None] | None = None
"""Seconds until the lease ends, None without a notice."""

ask_for_notice: Callable[[float], None] | None = None
"""Called by `fabric.simulate_preemption(after)`: the node gives the notice, on a task's first attempt only."""

checkpoint_dir: Callable[[], Path] | None = None
"""The folder whose content is stored with the run."""

checkpoint: Callable[[], None] | None = None
"""Store what the folder holds now; returns when it is durable."""

MAX_NAME = 40


def add_counts(counters: dict[str, int], counts: dict[str, int]) -> None:
    """Add to a task's counts.

    Raises:
        ValueError: too many names, a name too long, or a count that is no whole number of 0 or more.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0 or len(name) > MAX_NAME:
            raise ValueError(
                f"{name}={count!r} is not a count: a name of at most {MAX_NAME} characters, an int from 0 on"
            )
        if name not in counters and len(counters) >= MAX_COUNTERS:
            raise ValueError(f"a task has at most {MAX_COUNTERS} counts; {name!r} is one more")
        counters[name] = counters.get(name, 0) + count


class ProgramFailed(Exception):
    """The program of a `command` ended with this exit code; 128 + n for signal n. Never leaves the node as itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
