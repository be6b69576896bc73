"""Runs that end with their process: one call, or a map over inputs. Blocks the caller's thread; the crew does the work.

What the user sees while it waits is the display's; when it is interrupted the run is cancelled.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fabric.client.answers import Answers
from fabric.client.crew import Crew
from fabric.client.display import Display
from fabric.client.events import AttemptEnded, Broken, Event, Fed, Results
from fabric.client.options import RunOptions
from fabric.client.pack import Packed, pack_arguments, pack_function
from fabric.client.runs import Run
from fabric.client.session import Session

CANCEL_S = 3.0
CHUNK = 64
"""Inputs packed before they are handed over together, unless the leases have room for fewer."""


def run_one(
    session: Session,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: RunOptions,
) -> Any:
    """The function's value; its own exception is raised as itself.

    Raises:
        Error: it ended without a value; says why.
        KeyboardInterrupt: after the run was cancelled.
    """
    packed = pack_function(function)
    pieces = pack_arguments(args, kwargs, packed.modules)
    crew = Crew(session.office, "run", options, packed, total=1, fail_fast=False)
    answers = Answers(function, options.returns, crew.run, trust=options.trust)
    session.loop.post(begin_one, crew, pieces)
    with Display(crew.run, options.name or packed.name, total=1) as display:
        try:
            while True:
                event = display.next(crew.events)
                end = outcome(answers, event)
                if end is not None:
                    break
        except BaseException:
            _cancel(session, crew)
            raise
        value, answer = end
        if not value:
            raise answer
    return answer


def begin_one(crew: Crew, pieces: Sequence[bytes | memoryview]) -> None:
    """A run of one task, in the loop."""
    crew.add([(0, pieces)])
    crew.seal()
    crew.begin()


def outcome(answers: Answers, event: Event) -> tuple[bool, Any] | None:
    """How a run of one task ended: (True, the value), (False, the exception), or None when this event is no end."""
    if isinstance(event, Results):
        _, status, pieces = event.results[0]
        return answers.read(status, pieces)
    if isinstance(event, AttemptEnded) and event.ended.retry_at is None:
        return False, answers.error_of(event.ended)
    return (False, event.error) if isinstance(event, Broken) else None


def map_all(
    session: Session,
    function: Callable[..., Any],
    inputs: Iterable[Any],
    kwargs: Mapping[str, Any],
    options: RunOptions,
) -> "Mapped":
    """The function's values over the inputs, in their order or as they come; inputs are taken as there is room.

    Args:
        session: the process's.
        function: called once per input.
        inputs: any iterable; a generator is advanced in a thread of its own.
        kwargs: the same keyword arguments for every call.
        options: with `ordered`, `return_exceptions`, `max_parallel`.

    Raises:
        Error: a task ended without a value, unless `return_exceptions`; its own exception is raised as itself.
    """
    packed = pack_function(function)
    total = len(inputs) if isinstance(inputs, Sequence) else 0
    crew = Crew(session.office, "map", options, packed, total=total, fail_fast=not options.return_exceptions)
    return Mapped(session, crew, _mapped(session, crew, function, packed, inputs, kwargs, options))


class Mapped(Iterator[Any]):
    """The values of a map, and its run: logs, cost, receipts. It begins when the first value is asked for."""

    def __init__(self, session: Session, crew: Crew, values: Iterator[Any]) -> None:
        self._session = session
        self._crew = crew
        self._values = values

    @property
    def run(self) -> Run:
        return Run(self._session, self._crew.run)

    def __next__(self) -> Any:
        return next(self._values)

    def close(self) -> None:
        """Ask for no more: the run ends."""
        self._values.close()  # type: ignore[attr-defined]  # it is a generator


def _mapped(
    session: Session,
    crew: Crew,
    function: Callable[..., Any],
    packed: Packed,
    inputs: Iterable[Any],
    kwargs: Mapping[str, Any],
    options: RunOptions,
) -> Iterator[Any]:
    """Begins when the caller asks for the first value; ends the run when the caller asks for no more."""
    total = len(inputs) if isinstance(inputs, Sequence) else 0
    collector = Collector(Answers(function, options.returns, crew.run, trust=options.trust), options)
    session.loop.post(crew.begin)
    feeder = Feeder(session, crew, inputs, lambda item: pack_arguments((item,), kwargs, packed.modules))
    with Display(crew.run, options.name or packed.name, total=total or None) as display:
        try:
            while not collector.complete:
                collector.take(display.next(crew.events))
                for value in collector.ready():
                    display.delivered()
                    yield value
                    feeder.delivered()
        finally:
            feeder.stop()
            if not collector.complete:
                _cancel(session, crew)


def _cancel(session: Session, crew: Crew) -> None:
    """Cancel, and wait a moment until the control plane knows; a second interrupt does not wait."""
    done = threading.Event()

    def cancel() -> None:
        crew.cancel()
        crew.when_told(done.set)

    session.loop.post(cancel)
    done.wait(CANCEL_S)


class Feeder:
    """Advances the inputs in a thread of its own, no further ahead of what was delivered than there is room for."""

    def __init__(
        self, session: Session, crew: Crew, inputs: Iterable[Any], pack: Callable[[Any], Sequence[bytes | memoryview]]
    ) -> None:
        self._session = session
        self._crew = crew
        self._inputs = inputs
        self._pack = pack
        self._delivered = 0
        self._changed = threading.Condition()
        self._stopped = False
        threading.Thread(target=self._feed, name="fabric-feeder", daemon=True).start()

    def delivered(self) -> None:
        """One more value went to the caller."""
        with self._changed:
            self._delivered += 1
            if self._delivered % CHUNK == 0 or self._crew.room < 4 * CHUNK:
                self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _feed(self) -> None:
        count, error = 0, None
        chunk: list[tuple[int, Sequence[bytes | memoryview]]] = []
        try:
            for item in self._inputs:
                chunk.append((count, self._pack(item)))
                count += 1
                if len(chunk) >= CHUNK or count - self._delivered >= self._crew.room:
                    self._hand_over(chunk)
                    chunk = []
                    if not self._wait(count):
                        return
        except BaseException as raised:  # noqa: BLE001 - whatever the caller's iterable raises is raised to the caller
            error = raised
        self._hand_over(chunk)
        self._session.loop.post(self._crew.seal)
        self._crew.tell(Fed(count, error))

    def _hand_over(self, chunk: list[tuple[int, Sequence[bytes | memoryview]]]) -> None:
        if chunk:
            self._session.loop.post(self._crew.add, chunk)

    def _wait(self, count: int) -> bool:
        with self._changed:
            while not self._stopped and count - self._delivered >= self._crew.room:
                self._changed.wait(0.05)
            return not self._stopped


class Collector:
    """Puts answers into the order the caller wants and knows when all are there."""

    def __init__(self, answers: Answers, options: RunOptions) -> None:
        self._answers = answers
        self._options = options
        self._waiting: dict[int, Any] = {}
        self._next = 0
        self._taken = 0
        self._total: int | None = None

    @property
    def complete(self) -> bool:
        return self._total is not None and self._taken >= self._total and not self._waiting

    def take(self, event: Event) -> None:
        """Raises what ends the whole map: a task's error unless they are returned, the inputs' error, a broken run."""
        if isinstance(event, Results):
            for index, status, pieces in event.results:
                self._put(index, *self._answers.read(status, pieces))
        elif isinstance(event, AttemptEnded) and event.ended.retry_at is None:
            self._put(event.ended.task.index, False, self._answers.error_of(event.ended))
        elif isinstance(event, Broken):
            raise event.error
        elif isinstance(event, Fed):
            self._total = event.total
            if event.error is not None:
                raise event.error

    def ready(self) -> Iterator[Any]:
        """What can be given to the caller now."""
        while self._waiting and (not self._options.ordered or self._next in self._waiting):
            index = self._next if self._options.ordered else next(iter(self._waiting))
            value = self._waiting.pop(index)
            self._next = index + 1
            yield value

    def _put(self, index: int, value: bool, answer: Any) -> None:
        if not value and not self._options.return_exceptions:
            raise answer
        self._taken += 1
        self._waiting[index] = answer
