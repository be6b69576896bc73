"""The group commit of receipts: one task folds what all agents sent into one transaction, then answers them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import structlog
from anyio import to_thread

from api.metering import Arrived, Metering

_log = structlog.get_logger(__name__)

MAX_BATCH = 1024
"""Receipts in one transaction: bounds its time, and what a crash sends again."""


class Answerable(Protocol):
    """A connection that can be told how far its receipts are durable."""

    def send(self, message: Any) -> None: ...


class Ingest:
    """The queue in front of `Metering`."""

    def __init__(self, metering: Metering) -> None:
        self.metering = metering
        self._queue: list[tuple[Answerable, Arrived]] = []
        self._pending: defaultdict[int, int] = defaultdict(int)
        self._arrived = asyncio.Event()
        self._done = asyncio.Condition()

    def put(self, sender: Answerable, operator: str, keys: tuple[bytes, ...], receipts: Sequence[bytes]) -> None:
        """Take receipts for the next transaction; answers go to `sender`."""
        self._queue += [(sender, Arrived(operator, keys, data)) for data in receipts]
        self._pending[id(sender)] += len(receipts)
        self._arrived.set()

    async def settled(self, sender: Answerable) -> None:
        """Wait until everything that `sender` put has been decided."""
        async with self._done:
            await self._done.wait_for(lambda: not self._pending.get(id(sender)))

    async def run(self) -> None:
        """Fold and answer, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                await self._fold()

    async def _fold(self) -> None:
        taken, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
        try:
            answers = await to_thread.run_sync(self.metering.take, [arrived for _, arrived in taken])
            for index, message in answers:
                taken[index][0].send(message)
        except Exception:  # noqa: BLE001 - the outermost loop; nothing was acknowledged, so nothing is lost
            _log.exception("receipts were not taken; agents send them again after a reconnect", count=len(taken))
        finally:
            async with self._done:
                for sender, _ in taken:
                    self._pending[id(sender)] -= 1
                    if not self._pending[id(sender)]:
                        del self._pending[id(sender)]
                self._done.notify_all()
