"""How many tasks to send to a lease at once and how many to leave there. Decides from what was measured; sends nothing.

A lease runs its tasks one after the other. Small tasks share a frame, up to 64 and about 20 ms of work, and a few
frames are on their way so that the lease never waits; of long tasks only one is there, so that another lease can take
the next.
"""

from dataclasses import dataclass

MAX_BATCH = 64
BATCH_MS = 20.0
FRAMES_AHEAD = 6
FRAME_BYTES = 1 << 20
"""A frame takes no further task beyond this size; a larger task goes alone."""
LONG_TASK_MS = 50.0
WEIGHT = 0.2
"""Of the newest measurement in the running mean."""


@dataclass(slots=True)
class Steady:
    """Of an actor, which runs `at_once` tasks beside each other: as many again wait there."""

    at_once: int
    mean_ms: float | None = None

    def measured(self, durations_ms: list[int]) -> None:
        """Nothing depends on it."""

    @property
    def window(self) -> int:
        return 2 * self.at_once

    def room(self, out: int) -> int:
        return max(0, self.window - out)


@dataclass(slots=True)
class Pace:
    """One lease's. `mean_ms` is None until the first result."""

    mean_ms: float | None = None
    batch: int = 1

    def measured(self, durations_ms: list[int]) -> None:
        """Take the run times of a frame's tasks into account; the batch at most doubles with each frame."""
        for duration in durations_ms:
            old = self.mean_ms
            self.mean_ms = float(duration) if old is None else old + WEIGHT * (duration - old)
        if self.mean_ms is not None:
            ideal = BATCH_MS / max(self.mean_ms, BATCH_MS / MAX_BATCH)
            self.batch = max(1, min(MAX_BATCH, int(ideal), self.batch * 2))

    @property
    def window(self) -> int:
        """Tasks that may be on the lease, sent and unanswered."""
        if self.mean_ms is None:
            return 2
        return 1 if self.mean_ms >= LONG_TASK_MS else max(2, self.batch * FRAMES_AHEAD)

    def room(self, out: int) -> int:
        """Tasks to send now when `out` are there; less than half a frame is not worth one, unless nothing is there."""
        free = self.window - out
        if free <= 0 or (out and free < min(self.batch, self.window) // 2):
            return 0
        return min(free, self.batch)
