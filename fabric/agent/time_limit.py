"""The timeouts of the tasks that a lease's child has: one timer, which looks when the first of them could be over."""

import asyncio
from collections.abc import Callable

from fabric.agent.page import Page
from fabric.agent.tasks import TaskBook
from fabric.wire.clock import Clock
from fabric.wire.reasons import Reason

TIMEOUT_GRACE_MS = 2000
"""An actor ends a task beyond its timeout itself; so much later its process is killed."""


class TimeLimit:
    """`page_of` is the page of the child of this moment, None without one; `kill` ends that child."""

    def __init__(
        self, book: TaskBook, clock: Clock, page_of: Callable[[], Page | None], kill: Callable[[Reason, str], None]
    ) -> None:
        self._book = book
        self._clock = clock
        self._page_of = page_of
        self._kill = kill
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, timeout_ms: int) -> None:
        """A call with this timeout went to the child; 0 is none."""
        if timeout_ms and self._timer is None:
            self._arm(timeout_ms)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, delay_ms: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._check)

    def _check(self) -> None:
        """Kill the child if its task has run too long, else look again when it could have."""
        self._timer = None
        page = self._page_of()
        if page is None:
            return
        if self._book.at_once:
            self._check_at_once()
            return
        running = self._book.running(page.running)
        if running is None:
            delays = [call.timeout_ms for call in self._book.flying if call.timeout_ms]
        else:
            call, _ = running
            left = call.timeout_ms - (self._clock.monotonic_ns() - page.started_ns) / 1e6
            if call.timeout_ms and left <= 0:
                self._kill(Reason.TIMEOUT, f"it ran longer than its timeout of {call.timeout_ms} ms")
                return
            delays = [left] if call.timeout_ms else [c.timeout_ms for c in self._book.flying if c.timeout_ms]
        if delays:
            self._arm(max(1.0, min(delays)))

    def _check_at_once(self) -> None:
        now = self._clock.monotonic_ns()
        timed = [call for call in self._book.flying if call.timeout_ms]
        left = [call.timeout_ms + TIMEOUT_GRACE_MS - (now - call.passed_ns) / 1e6 for call in timed]
        late = next((call for call, ms in zip(timed, left, strict=True) if ms <= 0), None)
        if late is not None:
            self._kill(Reason.TIMEOUT, f"a task ran longer than its timeout of {late.timeout_ms} ms")
        elif left:
            self._arm(max(1.0, min(left)))
