"""The tasks of one actor inside its sandbox child: several at once, coroutines in one loop, plain methods in threads.

The object is made once, in the first of the threads; with one task at a time every plain method runs in that thread. A
streaming task waits when its reader is behind.
"""

import asyncio
import contextvars
import inspect
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from fabric.wire import channel, job
from fabric.wire.actor import public_method
from fabric.wire.codec import NotTransportable, encode
from fabric.wire.frames import Buffer
from fabric.wire.reasons import Reason

PROGRESS_NS = 50_000_000
MAX_PART_BYTES = 64 << 20

_Outcome = tuple[int, list[Buffer]]
_END = object()


class Outbound(Protocol):
    """The child's way to its node; may be used by any thread."""

    def send(self, header: Sequence[Any], body: Sequence[Buffer] = ()) -> None: ...
    def add(self, run: str, entry: list[Any], pieces: Sequence[Buffer], *, now: bool) -> None: ...


@dataclass(eq=False)
class _Task:
    """One task at work: what it counted, and how far the reader of its parts is."""

    run: str
    task: int
    attempt: int
    counters: dict[str, int] = field(default_factory=dict)
    ahead: dict[int, int] = field(default_factory=dict)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    reported_ns: int = 0
    at_work: "asyncio.Task[None] | None" = None

    @property
    def is_ahead(self) -> bool:
        return len(self.ahead) >= channel.PARTS_AHEAD or sum(self.ahead.values()) >= channel.PART_BYTES_AHEAD


_current: contextvars.ContextVar[_Task] = contextvars.ContextVar("fabric_task")


class Crowd:
    """One actor's. `make` makes the object, or raises what its unpickling raised."""

    def __init__(
        self,
        make: Callable[[], Any],
        at_once: int,
        outbound: Outbound,
        failure: Callable[[BaseException], _Outcome],
        flush_output: Callable[[], None],
    ) -> None:
        self._make = make
        self._outbound = outbound
        self._failure = failure
        self._flush_output = flush_output
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="fabric-actor")
        self._tasks: dict[tuple[str, int], _Task] = {}
        self._made: asyncio.Future[Any] | None = None
        self._loop = asyncio.new_event_loop()
        job.report_progress, job.report_counts = self._progress, self._count
        threading.Thread(target=self._loop.run_forever, name="fabric-actor-loop", daemon=True).start()

    def begin(self, run: str, task: int, attempt: int, pieces: list[memoryview], timeout_ms: int) -> None:
        """Start a task; from any thread."""
        self._loop.call_soon_threadsafe(self._begin, _Task(run, task, attempt), pieces, timeout_ms)

    def cancel(self, run: str, tasks: Sequence[int]) -> None:
        """End these tasks as soon as they let themselves be ended."""
        self._loop.call_soon_threadsafe(self._cancel, run, tasks)

    def taken(self, run: str, task: int, attempt: int, seq: int) -> None:
        """The reader has the parts up to this one."""
        self._loop.call_soon_threadsafe(self._taken, run, task, attempt, seq)

    def _begin(self, task: _Task, pieces: list[memoryview], timeout_ms: int) -> None:
        self._tasks[task.run, task.task] = task
        task.at_work = self._loop.create_task(self._work(task, pieces, timeout_ms))

    def _cancel(self, run: str, tasks: Sequence[int]) -> None:
        for number in tasks:
            task = self._tasks.get((run, number))
            if task is not None and task.at_work is not None:
                task.at_work.cancel()

    def _taken(self, run: str, number: int, attempt: int, seq: int) -> None:
        task = self._tasks.get((run, number))
        if task is not None and task.attempt == attempt:
            task.ahead = {part: size for part, size in task.ahead.items() if part > seq}
            task.room.set()

    async def _work(self, task: _Task, pieces: list[memoryview], timeout_ms: int) -> None:
        _current.set(task)
        started_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                status, parts = await self._outcome(task, pieces)
        except TimeoutError:
            self._fail(task, Reason.TIMEOUT, f"it ran longer than its timeout of {timeout_ms} ms")
        except asyncio.CancelledError:
            self._fail(task, Reason.CANCELLED_BY_USER, "cancelled while it ran")
        except MemoryError as error:
            self._fail(task, Reason.OOM, f"MemoryError: {error}")
        else:
            self._flush_output()
            sizes = [memoryview(part).nbytes for part in parts]
            entry = [task.task, task.attempt, status, started_ns, time.monotonic_ns(), 0, sizes]
            counts = [[list(pair) for pair in sorted(task.counters.items())]] if task.counters else []
            self._outbound.add(task.run, entry + counts, parts, now=True)
        finally:
            self._tasks.pop((task.run, task.task), None)

    def _fail(self, task: _Task, reason: Reason, message: str) -> None:
        self._flush_output()
        self._outbound.send([channel.FAILED, task.run, [[task.task, task.attempt, str(reason), message, None]]])

    async def _outcome(self, task: _Task, pieces: list[memoryview]) -> _Outcome:
        """What the method returns, once its stream is at its end; or what it raises."""
        try:
            call = pickle.loads(pieces[0], buffers=pieces[1:])[0]  # noqa: S301 - the sandbox is where this happens
            encoded = encode(await self._call(task, *call))
        except NotTransportable as error:
            return channel.STATUS_NOT_TRANSPORTABLE, [str(error).encode(errors="replace")]
        except (asyncio.CancelledError, MemoryError):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the customer's method raises is its result
            return self._failure(error)
        return channel.STATUS_VALUE, [encoded.header, *encoded.buffers]

    async def _call(self, task: _Task, name: str, streams: bool, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        instance = await self._instance()
        if not name:
            return None
        method = public_method(instance, name)
        value = await self._invoke(method, args, kwargs)
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            if not streams:
                raise TypeError(f"{name} gives values one after another: call it as .{name}.stream(…)")
            return await self._stream(task, value)
        if streams:
            raise TypeError(f"{name} returned a {type(value).__name__}, no generator: call it as .{name}.remote(…)")
        return value

    async def _instance(self) -> Any:
        """The object; made by the first who asks, in a thread of its own making."""
        if self._made is None:
            self._made = asyncio.ensure_future(self._in_thread(self._make))
        return await asyncio.shield(self._made)

    async def _invoke(self, method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        function = method if inspect.isroutine(method) else type(method).__call__
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            value = _called(method, args, kwargs)
        else:
            value = await self._in_thread(lambda: _called(method, args, kwargs))
        return await value if inspect.isawaitable(value) else value

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(self._pool, lambda: context.run(_told, function))

    async def _stream(self, task: _Task, values: Any) -> Any:
        """Send each value; returns what a plain generator returns at its end."""
        seq = 0
        if inspect.isasyncgen(values):
            async with aclosing(values) as each:
                async for value in each:
                    await self._send_part(task, seq, value)
                    seq += 1
            return None
        with closing(values):
            while True:
                value, at_end = await self._in_thread(lambda: _next(values))
                if at_end:
                    return value
                await self._send_part(task, seq, value)
                seq += 1

    async def _send_part(self, task: _Task, seq: int, value: Any) -> None:
        while task.is_ahead:
            task.room.clear()
            await task.room.wait()
        encoded = encode(value)
        parts = [encoded.header, *encoded.buffers]
        sizes = [memoryview(part).nbytes for part in parts]
        if sum(sizes) > MAX_PART_BYTES:
            raise ValueError(f"a streamed value packs to {sum(sizes):,} bytes; at most {MAX_PART_BYTES:,} are allowed")
        task.ahead[seq] = sum(sizes)
        self._outbound.send([channel.PART, task.run, task.task, task.attempt, seq, sizes], parts)

    def _progress(self, done: int, total: int | None = None) -> None:
        task = _current.get(None)
        now = time.monotonic_ns()
        if task is not None and (now - task.reported_ns >= PROGRESS_NS or done == total):
            task.reported_ns = now
            of = None if total is None else int(total)
            self._outbound.send([channel.PROGRESS, task.run, task.task, int(done), of])

    def _count(self, counts: dict[str, int]) -> None:
        task = _current.get(None)
        if task is not None:
            job.add_counts(task.counters, counts)


def _called(method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What it returns; a TypeError about the call itself gets the parameters that there are, as `takes`."""
    try:
        return method(*args, **kwargs)
    except TypeError as error:
        with suppress(TypeError, ValueError):
            signature = inspect.signature(method)
            if not _takes(signature, args, kwargs):
                error.takes = str(signature)  # type: ignore[attr-defined]
        raise


def _takes(signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _told(function: Callable[[], Any]) -> Any:
    """StopIteration cannot leave a thread through a future."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the method raised StopIteration") from error


def _next(values: Iterator[Any]) -> tuple[Any, bool]:
    """(value, False), or (what the generator returned, True) at its end."""
    try:
        return next(values), False
    except StopIteration as end:
        return end.value, True
