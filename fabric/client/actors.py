"""`fabric.actor`: a stateful object that lives in its lease, and the calls of its methods, which are tasks of one run.

The crew gets the lease, sends the tasks and goes on when the lease is lost; here its events become futures and streams.
"""

import asyncio
import atexit
import difflib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NoReturn

from fabric.client import session as sessions
from fabric.client.answers import Answers
from fabric.client.baggage import Equipped
from fabric.client.crew import Crew
from fabric.client.errand import baggage_of
from fabric.client.events import AttemptEnded, Broken, Event, Lines, Part, Results
from fabric.client.options import RunOptions, read_options
from fabric.client.pack import Packed, pack_arguments, pack_function
from fabric.client.runs import Run
from fabric.client.session import Session
from fabric.client.terminal import print_line
from fabric.wire import channel
from fabric.wire.actor import Actor, is_public, methods_of
from fabric.wire.errors import InvalidRequest

TAKEN_EVERY = 8
"""Parts read before the node is told, or fewer when there are no more: it may wait for room."""
MAP_AHEAD = 64
"""Inputs that `map` has under way at least."""


def actor(cls: Callable[..., Any] | None = None, /, **keywords: Any) -> Any:
    """A class whose objects live on GPUs of the fabric: `Scorer = fabric.actor(Model, gpu="L4"); m = Scorer(path)`.

    Args:
        cls: a class, or a callable that makes the object.
        keywords: as for `fabric.run`; also `max_concurrency` (1): so many of an object's calls run at once, coroutines
            in one event loop, plain methods in threads. `timeout` is each call's.

    Raises:
        InvalidRequest: an unknown keyword or an impossible value.
    """
    options = read_options("actor", keywords)
    if cls is None:
        return lambda decorated: ActorClass(decorated, options)
    if not callable(cls):
        raise InvalidRequest(f"fabric.actor needs a class, not a {type(cls).__name__}")
    return ActorClass(cls, options)


class ActorClass:
    """Called like the class, it makes an object that lives in a lease of its own."""

    def __init__(self, cls: Callable[..., Any], options: RunOptions) -> None:
        self.local_class = cls
        self.options = options

    def __call__(self, *args: Any, **kwargs: Any) -> "ActorHandle":
        """Ask for the lease and make the object there; returns at once, calls wait until it is made."""
        return ActorHandle(sessions.current(), self.local_class, args, kwargs, self.options)


class ActorHandle:
    """An object that lives in a lease.

    Every public method of its class is one here, with `remote`, `spawn`, `map` and `stream`. It lives until `close`,
    the end of a `with` block, or the end of this process. When its lease is lost it is made anew, from the same
    arguments, in another one as soon as a call needs it; what it had in memory is gone.
    """

    def __init__(
        self,
        session: Session,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: RunOptions,
    ) -> None:
        name = getattr(cls, "__qualname__", None) or type(cls).__qualname__
        packed = pack_actor(equipped(Actor(cls, args, kwargs), options), name, options.max_concurrency)
        self._cls, self._session, self._options = cls, session, options
        self._calls = _Calls(session, cls, packed, options)
        self.id = self._calls.crew.run
        self._close = weakref.finalize(self, self._calls.close)
        self._close.atexit = False
        atexit.register(self._close)
        self._calls.submit("", (), {})

    def __getattr__(self, name: str) -> "Method":
        if not is_public(name) or (isinstance(self._cls, type) and not hasattr(self._cls, name)):
            near = difflib.get_close_matches(name, methods_of(self._cls), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"{self._cls!r} has no public method {name!r}{hint}")
        return Method(self, self._calls, name, self._options)

    def __repr__(self) -> str:
        return f"<fabric.actor {self.id}>"

    @property
    def run(self) -> Run:
        """The run whose tasks its calls are: logs, cost, receipts."""
        return Run(self._session, self.id)

    def close(self) -> None:
        """End it and release its lease; calls under way are cancelled. Twice is once."""
        atexit.unregister(self._close)
        self._close()

    def __enter__(self) -> "ActorHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def equipped(made: Actor, options: RunOptions) -> Actor:
    """The same object, with the secrets and the folder that it was promised around it."""
    baggage = baggage_of(options)
    return made if baggage is None else Actor(Equipped(made, baggage))


def pack_actor(made: Actor, name: str, at_once: int) -> Packed:
    """Raises InvalidRequest when what it is made of cannot travel."""
    return replace(pack_function(made), name=name, at_once=at_once)


class Method:
    """A method of an object that lives elsewhere."""

    def __init__(self, owner: ActorHandle, calls: "_Calls", name: str, options: RunOptions) -> None:
        self._owner = owner
        self._calls = calls
        self._name = name
        self._options = options

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(f"the object lives elsewhere: call {self._name}.remote(…), or .spawn(…) not to wait for it")

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it and wait for the value; its own exception is raised as itself."""
        call = self.spawn(*args, **kwargs)
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise

    def spawn(self, *args: Any, **kwargs: Any) -> "Call":
        """Call it; the value comes later."""
        call = self._calls.submit(self._name, args, kwargs)
        call.owner = self._owner
        return call

    def stream(self, *args: Any, **kwargs: Any) -> "Stream":
        """Call a generator; iterate over its values, with `for` or `async for`, as they come."""
        stream = self._calls.stream(self._name, args, kwargs)
        stream.owner = self._owner
        return stream

    def map(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Call it once per input; values in the order of the inputs, taken only as far ahead as keeps it busy."""
        ahead = max(MAP_AHEAD, 2 * self._options.max_concurrency)
        waiting: deque[Call] = deque()
        try:
            for item in inputs:
                waiting.append(self.spawn(item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for call in waiting:
                call.cancel()


class Call(Future):
    """A method's value to come: a `concurrent.futures.Future` that can be awaited too."""

    owner: object = None
    """The object lives as long as somebody waits for a call of it."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self._end = end

    def cancel(self) -> bool:
        """Give it up, also while it runs; False when it is over."""
        cancelled = super().cancel()
        if cancelled:
            self._end()
        return cancelled

    def __await__(self) -> Any:
        return asyncio.wrap_future(self).__await__()


class Stream:
    """Values of a generator elsewhere. It waits there while nobody reads here; left early, it is ended."""

    owner: object = None

    def __init__(self, taken: Callable[[int], None], end: Callable[[], None]) -> None:
        self._taken = taken
        self._end = end
        self._arrived: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self._read = 0
        self._over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            return self._value(*self._arrived.get())
        except _Over:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        try:
            return self._value(*await asyncio.to_thread(self._arrived.get))
        except _Over:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Read no more; the task is cancelled."""
        if not self._over:
            self._over = True
            self._end()
            self._arrived.put((False, _Over()))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def put(self, value: bool, answer: Any) -> None:
        """A value, or the exception that ends the stream."""
        self._arrived.put((value, answer))

    def _value(self, value: bool, answer: Any) -> Any:
        if not value:
            self._over = True
            raise answer
        self._read += 1
        if self._read % TAKEN_EVERY == 0 or self._arrived.empty():
            self._taken(self._read - 1)
        return answer


class _Over(Exception):
    """The stream is at its end."""


class _Calls:
    """The calls of one object, and the crew that carries them; the crew's events are put here."""

    def __init__(self, session: Session, cls: Callable[..., Any], packed: Packed, options: RunOptions) -> None:
        self._session = session
        self._cls = cls
        self._packed = packed
        self._returns = options.returns
        self._open: dict[int, tuple[Call | Stream, Answers]] = {}
        self._read_to: dict[int, int] = {}
        self._next = 0
        self._broken: BaseException | None = None
        self._closed = False
        self.crew = Crew(session.office, "actor", options, packed, total=0, fail_fast=False, events=self)
        session.loop.post(self.crew.begin)

    def submit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = Call(lambda: self._session.loop.post(self._end, call))
        self._send(call, name, args, kwargs, streams=False)
        return call

    def stream(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream:
        found: list[int] = []
        stream = Stream(
            lambda seq: self._session.loop.post(self.crew.taken, found[0], seq),
            lambda: self._session.loop.post(self._end_index, found[0]),
        )
        found.append(self._send(stream, name, args, kwargs, streams=True))
        return stream

    def close(self) -> None:
        """Cancel what is under way and give the lease back."""
        if not self._closed:
            self._closed = True
            self._session.loop.post(self._seal)

    def put(self, event: Event) -> None:
        """An event of the crew, in the loop."""
        match event:
            case Results():
                for index, status, pieces in event.results:
                    self._answer(index, status, pieces)
            case Part():
                self._part(event)
            case AttemptEnded() if event.ended.retry_at is None:
                call, answers = self._open.pop(event.ended.task.index, (None, None))
                if call is not None and answers is not None:
                    _fail(call, answers.error_of(event.ended))
            case Broken():
                self._broken = event.error
                self._fail_all(event.error)
            case Lines():
                for stream, _, text in event.lines:
                    print_line(stream, text)
            case _:
                pass

    def _send(
        self, call: Call | Stream, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, streams: bool
    ) -> int:
        if self._closed or self._broken is not None:
            raise self._broken or InvalidRequest("the actor is closed; make another one")
        pieces = pack_arguments((name, streams, args, kwargs), {}, self._packed.modules)
        index, self._next = self._next, self._next + 1
        method = getattr(self._cls, name, None) if name else None
        answers = Answers(method if callable(method) else self._cls, self._returns, self.crew.run)
        self._session.loop.post(self._add, index, call, answers, pieces)
        return index

    def _add(self, index: int, call: Call | Stream, answers: Answers, pieces: Any) -> None:
        if self._broken is not None:
            _fail(call, self._broken)
            return
        self._open[index] = call, answers
        self.crew.add([(index, pieces)])

    def _answer(self, index: int, status: int, pieces: list[memoryview]) -> None:
        call, answers = self._open.pop(index, (None, None))
        self._read_to.pop(index, None)
        if call is None or answers is None:
            return
        value, answer = answers.read(status, pieces)
        if isinstance(call, Stream):
            call.put(False, _Over() if value else answer)
        elif value:
            with suppress(InvalidStateError):
                call.set_result(answer)
        else:
            _fail(call, answer)

    def _part(self, part: Part) -> None:
        call, answers = self._open.get(part.task, (None, None))
        if isinstance(call, Stream) and answers is not None and part.seq == self._read_to.get(part.task, 0):
            self._read_to[part.task] = part.seq + 1
            call.put(*answers.read(channel.STATUS_VALUE, part.pieces))

    def _end(self, call: Call) -> None:
        index = next((index for index, (known, _) in self._open.items() if known is call), None)
        if index is not None:
            self._end_index(index)

    def _end_index(self, index: int) -> None:
        if self._open.pop(index, None) is not None:
            self.crew.end_task(index)

    def _seal(self) -> None:
        for index in list(self._open):
            call, _ = self._open[index]
            self._end_index(index)
            _fail(call, CancelledError())
        self.crew.seal()
        self.crew.dismiss()

    def _fail_all(self, error: BaseException) -> None:
        for call, _ in self._open.values():
            _fail(call, error)
        self._open.clear()


def _fail(call: Call | Stream, error: BaseException) -> None:
    if isinstance(call, Stream):
        call.put(False, error)
        return
    with suppress(InvalidStateError):
        if isinstance(error, CancelledError):
            Future.cancel(call)
        else:
            call.set_exception(error)
