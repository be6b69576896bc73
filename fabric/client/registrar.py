"""Tells the control plane of runs that went straight to a lingering lease: beside the data channel, several at a time.

Nothing waits for it but the end of the process and who asks about such a run.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fabric.wire.errors import Error

FLUSH_S = 0.2
MAX_BATCH = 100
"""Each batch is one transaction there; a large one would keep others from writing."""


class Registrar:
    """Newest state of each run not yet told. `send` registers a batch."""

    def __init__(self, send: Callable[[Sequence[dict[str, Any]]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, request: dict[str, Any], state: str, reason: str = "", message: str = "") -> None:
        """Register this run, or move its state on."""
        self._waiting[request["id"]] = {"request": request, "state": state, "reason": reason, "message": message}
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    async def flush(self) -> None:
        """Send everything noted so far; what cannot be sent is given up: the receipts tell of it too."""
        async with self._flushing:
            while self._waiting:
                batch = [self._waiting.pop(run) for run in list(self._waiting)[:MAX_BATCH]]
                try:
                    await self._send(batch)
                except Error:
                    return

    def _flush_soon(self) -> None:
        self._timer = None
        task = asyncio.get_running_loop().create_task(self.flush())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
