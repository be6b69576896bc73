"""How many replicas an endpoint should have now. Pure: load and time in, a number out."""

from dataclasses import dataclass

FULL = 0.8
"""Replicas are added so that each has at most this part of its places taken."""


@dataclass
class Scaler:
    """Grows at once, shrinks to the most that was needed within the last `idle_s` seconds."""

    least: int
    most: int
    at_once: int
    idle_s: float
    _needed_at: list[tuple[float, int]] | None = None

    def wanted(self, load: int, now: float) -> int:
        """Replicas for `load` requests at work or waiting."""
        needed = -(-load // max(1, int(self.at_once * FULL)))
        since = now - self.idle_s
        seen = [(at, n) for at, n in self._needed_at or () if at > since and n > needed]
        self._needed_at = [*seen, (now, needed)]
        return max(self.least, min(self.most, max(n for _, n in self._needed_at)))
