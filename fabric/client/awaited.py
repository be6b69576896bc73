"""`fabric.arun` and `fabric.amap`: the same runs for callers that have an event loop of their own.

The SDK's loop stays in its thread; what happens there is handed to the caller's loop. A caller that is cancelled, or
reads no further, cancels the run.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fabric.client import session as sessions
from fabric.client.answers import Answers
from fabric.client.attached import Collector, Feeder, begin_one, outcome
from fabric.client.crew import Crew
from fabric.client.errand import errand, laden
from fabric.client.events import Event, Lines
from fabric.client.options import RunOptions, read_options
from fabric.client.pack import Packed, pack_arguments, pack_function
from fabric.client.session import Session
from fabric.client.terminal import print_line
from fabric.wire.errors import InvalidRequest

R = TypeVar("R")


async def arun(
    function: Callable[..., R] | None = None, *args: Any, kwargs: Mapping[str, Any] | None = None, **keywords: Any
) -> R:
    """As `fabric.run`, to be awaited; many may be awaited at once. Cancelling the caller's task cancels the run.

    Raises:
        InvalidRequest: before anything is sent; also for `nodes` and `dry_run`, which `fabric.submit` and `fabric.run`
            have.
        Error: no value came; says why. An exception of the function is raised as itself.
    """
    options = read_options("arun", keywords, function)
    session, job, packed, pieces = await asyncio.to_thread(_prepared, function, args, kwargs, options)
    told = _Told(asyncio.get_running_loop())
    crew = Crew(session.office, "run", options, packed, total=1, fail_fast=False, events=told)
    answers = Answers(job, options.returns, crew.run, trust=options.trust)
    session.loop.post(begin_one, crew, pieces)
    try:
        while (end := outcome(answers, await told.next())) is None:
            pass
    except BaseException:
        session.loop.post(crew.cancel)
        raise
    value, answer = end
    if value:
        return answer
    raise answer


async def amap(
    function: Callable[..., R],
    inputs: Iterable[Any] | AsyncIterable[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> AsyncIterator[R]:
    """As `fabric.map`, for `async for`; `inputs` may be asynchronous too.

    Raises:
        InvalidRequest: at the first value that is asked for, before anything is sent.
        Error: the first task that ended without a value ends the map, unless `return_exceptions`.
    """
    options = read_options("amap", keywords, function)
    own = _own(kwargs)
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable | AsyncIterable):
        raise InvalidRequest(f"fabric.amap needs an iterable of inputs, not a {type(inputs).__name__}")
    session, packed = await asyncio.to_thread(lambda: (sessions.current(), pack_function(laden(function, options))))
    loop = asyncio.get_running_loop()
    told = _Told(loop)
    total = len(inputs) if isinstance(inputs, list | tuple | range) else 0
    crew = Crew(
        session.office, "map", options, packed, total=total, fail_fast=not options.return_exceptions, events=told
    )
    collector = Collector(Answers(function, options.returns, crew.run, trust=options.trust), options)
    session.loop.post(crew.begin)
    each = inputs if isinstance(inputs, Iterable) else _in_a_thread(inputs, loop)
    feeder = Feeder(session, crew, each, lambda item: pack_arguments((item,), own, packed.modules))
    try:
        while not collector.complete:
            collector.take(await told.next())
            for value in collector.ready():
                yield value
                feeder.delivered()
    finally:
        feeder.stop()
        if not collector.complete:
            session.loop.post(crew.cancel)


def _prepared(
    function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, options: RunOptions
) -> tuple[Session, Callable[..., Any], Packed, Any]:
    """What takes a moment, out of the caller's loop: the session, which may start a fabric, and the packing."""
    job, given = errand(function, args, options)
    packed = pack_function(job)
    return sessions.current(), job, packed, pack_arguments(given, _own(kwargs), packed.modules)


def _own(kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidRequest(f"kwargs={kwargs!r:.80} is not a dict of the function's keyword arguments")
    return kwargs or {}


def _in_a_thread(inputs: AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Asynchronous inputs for the feeder's thread; each is made in the caller's loop."""
    each, end = aiter(inputs), object()

    async def one() -> Any:
        return await anext(each, end)

    while (item := asyncio.run_coroutine_threadsafe(one(), loop).result()) is not end:
        yield item


class _Told:
    """A crew's events for a coroutine; a job's lines are printed on the way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """From any thread. A loop that is closed has nobody who waits."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Lines):
            for stream, _, text in event.lines:
                print_line(stream, text)
        return event
