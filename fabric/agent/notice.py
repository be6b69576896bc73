"""When a lease that got its notice ends: a deadline that is kept whatever the lease's process does."""

import asyncio
from collections.abc import Callable

from fabric.wire.reasons import Reason


class Deadline:
    """Calls `over` with its reason once, `notice_ms` after it is made. `at_ns` is the same moment for the child."""

    def __init__(self, at_ns: int, reason: Reason, notice_ms: int, over: Callable[[Reason], None]) -> None:
        self.at_ns = at_ns
        self.reason = reason
        self._timer = asyncio.get_running_loop().call_later(notice_ms / 1000, over, reason)

    def cancel(self) -> None:
        self._timer.cancel()
