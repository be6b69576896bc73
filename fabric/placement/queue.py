"""In which order waiting requests are tried when something gets free. Pure: it looks at values and keeps nothing.

Priorities age: whoever waits gains a step of priority with every `AGEING_MS`, so a request of lower priority is
overtaken only by those that came at most (difference × `AGEING_MS`) later, and nobody starves. Who is too big for what
is free now lets smaller ones pass only until it has waited `HOLD_BACK_MS`; from then on nothing behind it that competes
for the same GPUs may overtake it, so that room collects for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

AGEING_MS = 60_000
HOLD_BACK_MS = 10 * 60_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in the queue.

    Attributes:
        name: unique; breaks ties.
        since_ms: when it came to wait, ms of the caller's clock; kept when a preempted run comes back.
        priority: higher goes first; 0 is normal.
        pool: requests with the same word compete for the same GPUs ("" competes with all of "").
    """

    name: str
    since_ms: int
    priority: int = 0
    pool: str = ""


def next_up(waiting: Iterable[Waiting], now_ms: int) -> list[Waiting]:
    """All of them, who goes first coming first: by priority plus a step for every minute waited.

    The order of any two depends on their priorities and arrivals alone, not on when one looks.
    """
    return sorted(waiting, key=lambda one: (-_urgency(one, now_ms), one.since_ms, one.name))


def held_back(ordered: list[Waiting], refused: str, now_ms: int) -> frozenset[str]:
    """Names that must not be tried now, because the request `refused` found no room and has waited long enough.

    Args:
        ordered: as `next_up` gives them.
        refused: one of them.
        now_ms: the same as for `next_up`.
    """
    index = next(position for position, one in enumerate(ordered) if one.name == refused)
    first = ordered[index]
    if now_ms - first.since_ms < HOLD_BACK_MS:
        return frozenset()
    return frozenset(one.name for one in ordered[index + 1 :] if one.pool == first.pool)


def _urgency(one: Waiting, now_ms: int) -> int:
    """Priority in steps of `AGEING_MS`, in ms so that nothing is lost by rounding."""
    return one.priority * AGEING_MS + (now_ms - one.since_ms)
