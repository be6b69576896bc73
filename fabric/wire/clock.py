"""Time as an argument: cores and shells read it from a ``Clock`` handed to them at the edge, never from the system."""

import time
from typing import Protocol


class Clock(Protocol):
    """A wall clock for dates and a monotonic one for durations."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, UTC."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point; never goes back; shared by the processes of one machine."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves only when told: for tests, ours and users'."""

    def __init__(self, now_ms: int = 1_700_000_000_000, monotonic_ns: int = 0) -> None:
        self._now_ms = now_ms
        self._monotonic_ns = monotonic_ns

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, ms: int) -> None:
        """Move both clocks forward by ``ms`` milliseconds, 0 or more."""
        if ms < 0:
            raise ValueError(f"a clock cannot go back {-ms} ms; skew the wall clock with `skew`")
        self._now_ms += ms
        self._monotonic_ns += ms * 1_000_000

    def skew(self, ms: int) -> None:
        """Set only the wall clock off by ``ms``, as a bad NTP server would."""
        self._now_ms += ms
