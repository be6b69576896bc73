"""Warm children: started ahead, belonging to nobody, so that a lease opens without waiting for an interpreter to start.

A child goes from here to one lease and never comes back.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fabric.agent.sandbox import Bind, SandboxError
from fabric.agent.worker import Worker

_log = structlog.get_logger(__name__)

_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What a child must be started with, beside what every child has; nothing for most.

    Attributes:
        devices: device nodes of its GPUs.
        binds: files and folders of the node that it sees.
        names: further lines of its `/etc/hosts`: (address, name).
        address: its own in a gang's network; "" without one.
    """

    devices: tuple[Path, ...] = ()
    binds: tuple[Bind, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    address: str = ""


NOTHING = Needs()


class Pool:
    """Keeps `spare` children that need nothing ready. `start` makes one that has begun to start."""

    def __init__(self, start: Callable[[Needs], Awaitable[Worker]], spare: int) -> None:
        self._start = start
        self._spare = spare
        self._warm: deque[Worker] = deque()
        self._refill: asyncio.TimerHandle | None = None
        self._filling: asyncio.Task[None] | None = None
        self._stopped = False

    async def take(self, needs: Needs = NOTHING) -> Worker:
        """A child that is ready for functions; one that needs something is started for the purpose.

        Raises:
            ChildProcessError: it ended while starting.
            SandboxError: none could be started.
        """
        worker = None if needs != NOTHING else self._warm_one()
        if worker is None:
            worker = await self._start(needs)
        self.fill(delay_s=0.05)
        try:
            await worker.ready()
        except BaseException:
            worker.kill()
            raise
        return worker

    def fill(self, delay_s: float = 0.0) -> None:
        """Start what is missing, a little later, so that a lease that opens just now comes first."""
        if self._refill is None and not self._stopped:
            self._refill = asyncio.get_running_loop().call_later(delay_s, self._begin_fill)

    async def stop(self) -> None:
        """Kill those that are warm; whoever started them sees them end."""
        self._stopped = True
        if self._refill is not None:
            self._refill.cancel()
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        for worker in self._warm:
            worker.kill()
        self._warm.clear()

    def _warm_one(self) -> Worker | None:
        while self._warm:
            worker = self._warm.popleft()
            if worker.alive:
                return worker
        return None

    def _begin_fill(self) -> None:
        self._refill = None
        self._filling = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        self._warm = deque(worker for worker in self._warm if worker.alive)
        while len(self._warm) < self._spare and not self._stopped:
            try:
                self._warm.append(await self._start(NOTHING))
            except (OSError, SandboxError) as error:
                _log.warning("no warm child", error=str(error))
                self.fill(_RETRY_S)
                return
