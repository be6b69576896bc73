"""How long an agent takes to answer, as the nonces of each second and the heartbeats after them show it."""

from collections import deque

KEPT = 10
"""The least of so many counts: whatever disturbs a round trip makes it longer."""


class Pulse:
    """One connection's. Times are ns of one monotonic clock."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, int]] = deque(maxlen=KEPT)
        self._took: deque[int] = deque(maxlen=KEPT)

    def sent(self, seq: int, now_ns: int) -> None:
        self._sent.append((seq, now_ns))

    def heard(self, seq: int, now_ns: int) -> None:
        """An answer; one to what is long past, or was never sent, says nothing."""
        for known, at_ns in self._sent:
            if known == seq:
                self._took.append(now_ns - at_ns)

    @property
    def round_trip_s(self) -> float | None:
        """None until something was answered."""
        return min(self._took) / 1e9 if self._took else None
