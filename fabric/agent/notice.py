"""When a lease that got its notice ends, kept whatever the lease's process does, and the notice that it asked for."""

import asyncio
from collections.abc import Callable
from typing import Any

from fabric.wire.frames import FrameError
from fabric.wire.reasons import Reason


class Deadline:
    """Calls `over` with its reason once, `notice_ms` after it is made. `at_ns` is the same moment for the child."""

    def __init__(self, at_ns: int, reason: Reason, notice_ms: int, over: Callable[[Reason], None]) -> None:
        self.at_ns = at_ns
        self.reason = reason
        self._timer = asyncio.get_running_loop().call_later(notice_ms / 1000, over, reason)

    def cancel(self) -> None:
        self._timer.cancel()


MAX_ASKED_MS = 86_400_000
"""A job asks for a notice at most a day ahead."""


class Asked:
    """The notice that a job wants for itself; it costs nobody but its own customer. One timer: the earliest counts."""

    def __init__(self, give: Callable[[], None]) -> None:
        self._give = give
        self.timer: asyncio.TimerHandle | None = None

    def ask(self, after_ms: Any) -> None:
        """Give the notice so soon.

        Raises:
            FrameError: not a number of ms within a day.
        """
        if not isinstance(after_ms, int) or not 0 <= after_ms <= MAX_ASKED_MS:
            raise FrameError(f"a notice is asked for within 0 to {MAX_ASKED_MS} ms, not {after_ms!r}")
        loop = asyncio.get_running_loop()
        if self.timer is not None:
            if self.timer.when() <= loop.time() + after_ms / 1000:
                return
            self.timer.cancel()
        self.timer = loop.call_later(after_ms / 1000, self._give)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
