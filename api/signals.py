"""Who wakes whom inside one control plane: topics that anybody may notify, from any thread, and coroutines wait for.

A wake-up carries no data: whoever wakes reads the database, which is the truth. With several control planes on one
PostgreSQL the same topics travel by LISTEN/NOTIFY; on SQLite there is one process and this is all.
"""

import asyncio
import contextlib
from collections import defaultdict


class Signals:
    """Topics with a counter each; waiting for a topic ends when its counter is no longer the one seen."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ending = False
        """The control plane ends: long polls answer what there is."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop in which coroutines wait; before it is known, nobody does."""
        self._loop = loop

    def notify(self, *topics: str) -> None:
        """Wake everybody who waits for one of these; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fire, topics)

    def notify_all(self) -> None:
        """Wake everybody who waits: what was said meanwhile is not known. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._fire(tuple(self._waiting)))

    def end(self) -> None:
        """Wake everybody for the last time; from any thread."""
        self.ending = True
        self.notify_all()

    def seen(self, topic: str) -> int:
        """The topic's counter: take it before reading the rows, hand it to `wait`. Only inside the loop."""
        return self._counts[topic]

    async def wait(self, topic: str, seen: int, timeout_s: float) -> bool:
        """Wait until the topic was notified after `seen` was taken; False when `timeout_s` passed first."""
        if self._counts[topic] != seen:
            return True
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
            return event.is_set()
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def _fire(self, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._counts[topic] += 1
            for event in self._waiting.get(topic, ()):
                event.set()


CAPACITY = "capacity"
"""Something became free or was added: queued runs are tried again."""


def run_topic(run: str) -> str:
    """The run's state, its leases or their routes changed."""
    return f"run:{run}"


def logs_topic(run: str) -> str:
    """The run has more log lines, or ended."""
    return f"logs:{run}"


def cluster_topic(cluster: str) -> str:
    """A grant, a release or a task waits to be sent to this cluster's agent."""
    return f"cluster:{cluster}"
