"""In which order waiting requests are tried when something gets free. Pure: it looks at values and keeps nothing.

Priorities age: whoever waits gains a step of priority with every `AGEING_MS`, so a request of lower priority is
overtaken only by those that came at most (difference × `AGEING_MS`) later, and nobody starves among equals. Who is too
big for what is free now lets smaller ones pass until it has waited `OVERDUE_MS`; from then on the nodes that would do
for it soonest are kept clear of others (`place.keep_clear`), so that room collects there. Holding everybody behind it
back instead was tried on a trace of arrivals and departures: the cluster stood nearly empty and waits grew a
hundredfold.
"""

from collections.abc import Iterable
from dataclasses import dataclass

AGEING_MS = 60_000
OVERDUE_MS = 10 * 60_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in the queue.

    Attributes:
        name: unique; breaks ties.
        since_ms: when it came to wait, ms of the caller's clock; kept when a preempted run comes back.
        priority: higher goes first; 0 is normal.
    """

    name: str
    since_ms: int
    priority: int = 0


def next_up(waiting: Iterable[Waiting], now_ms: int) -> list[Waiting]:
    """All of them, who goes first coming first: by priority plus a step for every minute waited.

    The order of any two depends on their priorities and arrivals alone, not on when one looks.
    """
    return sorted(waiting, key=lambda one: (-_urgency(one, now_ms), one.since_ms, one.name))


def overdue(waiting: Iterable[Waiting], now_ms: int) -> list[Waiting]:
    """Those that have waited too long to be passed by any more, in the order of `next_up`."""
    return [one for one in next_up(waiting, now_ms) if now_ms - one.since_ms >= OVERDUE_MS]


def _urgency(one: Waiting, now_ms: int) -> int:
    """Priority in steps of `AGEING_MS`, in ms so that nothing is lost by rounding."""
    return one.priority * AGEING_MS + (now_ms - one.since_ms)
