"""The tasks of one lease on its node: what waits, what the child has, what is done and not yet acknowledged.

A plain core: frames in, decisions out; no sockets, no clock. No task of the same attempt is ever passed twice unless it
was returned unstarted.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError
from fabric.wire.ids import is_name
from fabric.wire.reasons import Reason
from fabric.wire.receipts import MAX_ATTEMPT, MAX_TASK

IN_FLIGHT = 2
"""CALL frames at the child at once: one runs, one waits in its socket."""

TASK_BYTES = 256
"""What a task costs the node beside its arguments, roughly: tasks without any must not come without end."""

Key = tuple[str, int]
"""(run, task)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a CALL frame; `pieces` is its part of the body, cut by `sizes`."""

    task: int
    attempt: int
    sizes: tuple[int, ...]
    pieces: memoryview


@dataclass(slots=True)
class Call:
    """Tasks of one run that go to the child together. `first` is the number of its first task in that child's life.

    `at_once` is 0 for a function, whose tasks follow one another; else it is an actor's, with one task per call, and so
    many of them may be at the child. `passed_ns` is when an actor's task went there.
    """

    run: str
    digest: bytes
    timeout_ms: int
    tasks: list[Task]
    first: int = 0
    at_once: int = 0
    passed_ns: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def header(self) -> list[Any]:
        tasks = [[task.task, task.attempt, list(task.sizes)] for task in self.tasks]
        environment = [self.environment] if self.environment else []
        return [channel.CALL, self.run, self.digest, tasks, self.timeout_ms, *environment]

    @property
    def body(self) -> list[memoryview]:
        return [task.pieces for task in self.tasks]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: `fields` as in a RESULT (with `pieces`) or FAILED entry."""

    failed: bool
    fields: list[Any]
    pieces: Buffer = b""


@dataclass(slots=True)
class _Known:
    attempt: int
    outcome: Outcome | None = None


@dataclass(slots=True)
class TaskBook:
    """All tasks of a lease that somebody still has to hear about."""

    waiting: deque[Call] = field(default_factory=deque)
    flying: deque[Call] = field(default_factory=deque)
    doomed: set[Key] = field(default_factory=set)
    waiting_bytes: int = 0
    kept_bytes: int = 0
    _known: dict[Key, _Known] = field(default_factory=dict)
    _passed: int = 0

    def add(self, call: Call) -> list[tuple[Key, Outcome]]:
        """Queue the tasks that are new here; returns the outcomes of those that are done already."""
        done: list[tuple[Key, Outcome]] = []
        fresh: list[Task] = []
        for task in call.tasks:
            known = self._known.get((call.run, task.task))
            if known is None or known.attempt < task.attempt:
                if known is not None:
                    self.ack(call.run, [task.task])
                self._known[call.run, task.task] = _Known(task.attempt)
                fresh.append(task)
            elif known.outcome is not None:
                done.append(((call.run, task.task), known.outcome))
        if fresh:
            call.tasks = fresh
            self.waiting.extend(_alone(call) if call.at_once else [call])
            self.waiting_bytes += size_of(call)
        return done

    def next_call(self) -> Call | None:
        """The frame to pass to the child now, if there is one and the child may have it."""
        if not self.waiting or len(self.flying) >= (self.waiting[0].at_once or IN_FLIGHT):
            return None
        if self.flying and _kind(self.flying[0]) != _kind(self.waiting[0]):
            return None
        call = self.waiting.popleft()
        self.waiting_bytes -= size_of(call)
        call.first = self._passed + 1
        self._passed += len(call.tasks)
        self.flying.append(call)
        return call

    def finish(self, run: str, task: int, attempt: int, outcome: Outcome) -> None:
        """Record the outcome of a task at the child or in the queue."""
        known = self._known.get((run, task))
        if known is not None and known.attempt == attempt and known.outcome is None:
            known.outcome = outcome
            self.kept_bytes += memoryview(outcome.pieces).nbytes
        self.doomed.discard((run, task))

    def land(self, run: str, tasks: Sequence[tuple[int, int]]) -> None:
        """These (task, attempt) of the oldest frames, in their order, are no longer at the child.

        An actor's may be any.

        Raises:
            FrameError: the child did not have them, or not in this order.
        """
        if self.at_once:
            self._land_any(run, tasks)
            return
        at = 0
        while at < len(tasks):
            head = self.flying[0] if self.flying else None
            due = [(task.task, task.attempt) for task in head.tasks] if head is not None else []
            part = list(tasks[at : at + len(due)])
            if head is None or head.run != run or due[: len(part)] != part:
                raise FrameError(f"the child answered for tasks of {run} that it does not run")
            at += len(part)
            head.first += len(part)
            head.tasks = head.tasks[len(part) :]
            if not head.tasks:
                self.flying.popleft()

    @property
    def at_once(self) -> bool:
        """Whether what is at the child is an actor's, all of it at work."""
        return bool(self.flying) and bool(self.flying[0].at_once)

    def is_flying(self, run: str, task: int, attempt: int) -> bool:
        """Whether the child has this task now."""
        return any(
            call.run == run and (t.task, t.attempt) == (task, attempt) for call in self.flying for t in call.tasks
        )

    def _land_any(self, run: str, tasks: Sequence[tuple[int, int]]) -> None:
        for key in tasks:
            found = next(
                (c for c in self.flying if c.run == run and (c.tasks[0].task, c.tasks[0].attempt) == key), None
            )
            if found is None:
                raise FrameError(f"the child answered for tasks of {run} that it does not run")
            self.flying.remove(found)

    def ground(self) -> list[Call]:
        """The child is gone: its frames, oldest first. The next child counts from 1."""
        grounded = list(self.flying)
        self.flying.clear()
        self._passed = 0
        return grounded

    def requeue(self, calls: Sequence[Call]) -> None:
        """Put frames that were never started back to the front, in their order."""
        for call in reversed(calls):
            self.waiting.appendleft(call)
            self.waiting_bytes += size_of(call)

    def ack(self, run: str, tasks: Iterable[int]) -> None:
        """The customer has these outcomes: forget them."""
        for task in tasks:
            known = self._known.get((run, task))
            if known is not None and known.outcome is not None:
                self.kept_bytes -= memoryview(known.outcome.pieces).nbytes
                del self._known[run, task]

    def cancel(self, run: str, tasks: Sequence[int]) -> list[Task]:
        """Take these tasks (all of the run for an empty list) out of the queue; those at the child become doomed."""
        wanted = set(tasks)
        cancelled: list[Task] = []
        for call in [call for call in self.waiting if call.run == run]:
            hit = [task for task in call.tasks if not wanted or task.task in wanted]
            cancelled += hit
            self.waiting_bytes -= sum(map(_cost, hit))
            call.tasks = [task for task in call.tasks if task not in hit]
        self.waiting = deque(call for call in self.waiting if call.tasks)
        for call in self.flying:
            if call.run == run:
                self.doomed |= {(run, task.task) for task in call.tasks if not wanted or task.task in wanted}
        return cancelled

    def resume(self, run: str, tasks: Iterable[Sequence[int]]) -> tuple[list[tuple[Key, Outcome]], list[int]]:
        """For [task, attempt] that a customer still waits for: the outcomes there are, and the tasks never heard of."""
        done: list[tuple[Key, Outcome]] = []
        unknown: list[int] = []
        for task, attempt in tasks:
            known = self._known.get((run, task))
            if known is None or known.attempt < attempt:
                unknown.append(task)
            elif known.outcome is not None:
                done.append(((run, task), known.outcome))
        return done, unknown

    def running(self, number: int) -> tuple[Call, Task] | None:
        """The task with this number in the child's life, if the child still has it."""
        for call in self.flying:
            if call.first <= number < call.first + len(call.tasks):
                return call, call.tasks[number - call.first]
        return None


def parse_call(header: Sequence[Any], body: Buffer) -> Call:
    """The CALL frame of a customer, checked.

    Raises:
        FrameError: fields of other types, sizes that are not the body's, too many tasks.
    """
    try:
        _, run, digest, entries, timeout_ms, *more = header
        (environment,) = more or ({},)
        tasks = [(int(task), int(attempt), tuple(map(int, sizes))) for task, attempt, sizes in entries]
    except (TypeError, ValueError):
        raise FrameError("a call is not [call, run, digest, [[task, attempt, sizes], …], timeout_ms]") from None
    if not isinstance(environment, dict) or not all(isinstance(t, str) for pair in environment.items() for t in pair):
        raise FrameError("a call's environment is not {name: value} of texts")
    if not 1 <= len(tasks) <= channel.MAX_TASKS_PER_FRAME:
        raise FrameError(f"{len(tasks)} tasks in one frame; 1 to {channel.MAX_TASKS_PER_FRAME} are allowed")
    if not isinstance(run, str) or not isinstance(digest, bytes) or not isinstance(timeout_ms, int):
        raise FrameError("a call's run, digest or timeout is of another type")
    view = memoryview(body)
    if any(not sizes or min(sizes) < 0 for *_, sizes in tasks) or sum(map(sum, (t[2] for t in tasks))) != view.nbytes:
        raise FrameError("the sizes of a call's pieces do not add up to its body")
    if not is_name(run):
        raise FrameError(f"{run!r:.100} is not the id of a run")
    numbered = all(0 <= task <= MAX_TASK and 1 <= attempt <= MAX_ATTEMPT for task, attempt, _ in tasks)
    if not numbered or len({t[0] for t in tasks}) != len(tasks):
        raise FrameError("a call's tasks are numbered from 0, once each, and its attempts from 1")
    at, cut = 0, []
    for task, attempt, sizes in tasks:
        cut.append(Task(task, attempt, sizes, view[at : at + sum(sizes)]))
        at += sum(sizes)
    return Call(run, digest, timeout_ms, cut, environment=environment)


def failed(task: int, attempt: int, reason: Reason, message: str, exit_code: int | None = None) -> Outcome:
    return Outcome(True, [task, attempt, str(reason), message, exit_code])


def _alone(call: Call) -> list[Call]:
    """An actor's tasks, each in a call of its own."""
    return [Call(call.run, call.digest, call.timeout_ms, [task], at_once=call.at_once) for task in call.tasks]


def _kind(call: Call) -> bytes:
    """What may be at the child together: functions among themselves, one actor by itself."""
    return call.digest if call.at_once else b""


def size_of(call: Call) -> int:
    """What a call that waits costs the node, in bytes."""
    return sum(map(_cost, call.tasks))


def _cost(task: Task) -> int:
    return TASK_BYTES + task.pieces.nbytes
