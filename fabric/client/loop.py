"""The SDK's background thread: one event loop that owns every connection of the process, so that callers just block.

It schedules; it knows nothing of runs. Nothing that may block for long runs in it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A daemon thread that runs an event loop until `stop`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._background: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="fabric", daemon=True)
        self._thread.start()

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call soon in the loop; from any thread; order is kept."""
        self.loop.call_soon_threadsafe(callback, *arguments)

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run in the loop and wait for the value; from any thread but the loop's own.

        Raises:
            TimeoutError: after `timeout` seconds; the coroutine is cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside everything else; only from within the loop."""
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def stop(self) -> None:
        """End the thread; what is still running in it is cancelled."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result(5)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5)
        if not self.loop.is_running() and not self.loop.is_closed():
            self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks(self.loop) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
