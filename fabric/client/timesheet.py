"""For how long this process had its leases, by its own clock: told beside what operators claim, and never billed by.

A lease is had from when this process knew of it; where its gateway had answered and the node was still waited for, from
when the node was ready. It is had until its release is known to the control plane, or it ended by itself. So an
operator that measures what it may is never found to claim more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WAITED_S = 1.0
"""A node that was waited for longer than this opened the lease then, and not before."""
AGAIN_MS = 1000
"""A lease is told of again when there is so much more of it."""
MAX_LINES = 256
"""The most that one report holds."""


@dataclass(frozen=True, slots=True)
class Line:
    """A lease's time so far; `final`: it is over."""

    lease: str
    observed_ms: int
    final: bool

    def to_json(self) -> dict[str, Any]:
        return {"lease": self.lease, "observed_ms": self.observed_ms, "final": self.final}


@dataclass(slots=True)
class _Had:
    begun_s: float
    ended_s: float | None = None
    told_ms: int = -AGAIN_MS


class Timesheet:
    """One process's. `now_s` is a clock that only goes forward."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self._had: dict[str, _Had] = {}

    def begin(self, lease: str, known_s: float, waited_s: float) -> None:
        """A lease is ready.

        Args:
            lease: its id; one that is known already goes on.
            known_s: when this process knew of it.
            waited_s: for how long the node was waited for when its gateway had answered.
        """
        self._had.setdefault(lease, _Had(known_s if waited_s <= WAITED_S else self.now_s()))

    def end(self, lease: str) -> None:
        """It is over; only the first time counts."""
        had = self._had.get(lease)
        if had is not None and had.ended_s is None:
            had.ended_s = self.now_s()

    def untold(self) -> list[Line]:
        """What is new since it was told, a report's worth at most."""
        now_s = self.now_s()
        lines = [_line(lease, had, now_s) for lease, had in self._had.items()]
        return [line for line in lines if line.final or line.observed_ms - self._had[line.lease].told_ms >= AGAIN_MS][
            :MAX_LINES
        ]

    def told(self, lines: Sequence[Line]) -> None:
        """These were heard: of what is over nothing more is said."""
        for line in lines:
            if line.final:
                del self._had[line.lease]
            else:
                self._had[line.lease].told_ms = line.observed_ms


def _line(lease: str, had: _Had, now_s: float) -> Line:
    until_s = now_s if had.ended_s is None else had.ended_s
    return Line(lease, max(0, round((until_s - had.begun_s) * 1000)), had.ended_s is not None)
