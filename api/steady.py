"""A wall clock that never goes back and that a changed system time does not move while the process lives."""

from fabric.wire.clock import Clock


class SteadyClock:
    """Starts at the later of the wall clock and the fabric's last written time; then follows the monotonic clock."""

    def __init__(self, clock: Clock, not_before_ms: int = 0) -> None:
        self._clock = clock
        self._start_ms = max(clock.now_ms(), not_before_ms)
        self._start_ns = clock.monotonic_ns()

    def now_ms(self) -> int:
        return self._start_ms + (self._clock.monotonic_ns() - self._start_ns) // 1_000_000

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()
