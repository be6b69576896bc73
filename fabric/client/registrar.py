"""Tells the control plane of runs that went straight to a lingering lease: beside the data channel, several at a time.

Nothing waits for it but the end of the process and who asks about such a run. While the control plane is away, what is
to be told is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from fabric.client.http import away_delays_s
from fabric.wire.errors import Error, ServiceError

FLUSH_S = 0.2
MAX_BATCH = 100
"""Each batch is one transaction there; a large one would keep others from writing."""
MAX_KEPT = 10_000
"""Runs that wait to be told; of more the oldest is given up: the receipts tell of it too."""


class Registrar:
    """Newest state of each run not yet told. `send` registers a batch."""

    def __init__(self, send: Callable[[Sequence[dict[str, Any]]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._delays_s = away_delays_s()
        self._flushing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, request: dict[str, Any], state: str, reason: str = "", message: str = "") -> None:
        """Register this run, or move its state on."""
        self._keep({request["id"]: {"request": request, "state": state, "reason": reason, "message": message}})
        self._flush_in(FLUSH_S)

    async def flush(self) -> None:
        """Send everything noted so far; what the control plane refuses is given up: the receipts tell of it too.

        Raises:
            ServiceError: the control plane does not answer; what is left is sent again by itself.
        """
        async with self._flushing:
            while self._waiting:
                batch = {run: self._waiting.pop(run) for run in list(self._waiting)[:MAX_BATCH]}
                try:
                    await self._send(list(batch.values()))
                except (Error, asyncio.CancelledError) as error:
                    if not isinstance(error, Error) or (isinstance(error, ServiceError) and error.retryable):
                        newer, self._waiting = self._waiting, batch
                        self._keep(newer)
                        self._flush_in(next(self._delays_s))
                        raise
                self._delays_s = away_delays_s()

    def _keep(self, told: dict[str, dict[str, Any]]) -> None:
        self._waiting |= told
        while len(self._waiting) > MAX_KEPT:
            del self._waiting[next(iter(self._waiting))]

    def _flush_in(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        task = asyncio.get_running_loop().create_task(self._flush_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_quietly(self) -> None:
        with suppress(ServiceError):
            await self.flush()
