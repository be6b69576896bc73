"""The tasks of one attached run: which wait, which are out on a lease, which are done. Decides; sends nothing.

At any moment a task is out on at most one lease under one attempt number; an answer counts only if it comes from there.
So a result that arrives late, twice or from a lost lease is never a second accepted result.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fabric.wire.machines import TASK_EDGES, TaskState, step
from fabric.wire.reasons import Reason
from fabric.wire.retry import Retry, delay_s

Piece = bytes | memoryview


@dataclass(slots=True)
class Task:
    """One call. `attempt` counts from 1; `lease` is where it is out, empty otherwise.

    `once`: part of its answer was delivered, so no further attempt may follow.
    """

    index: int
    pieces: Sequence[Piece]
    sizes: list[int]
    size: int
    attempt: int = 1
    state: TaskState = TaskState.PENDING
    lease: str = ""
    once: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended without a result. `retry_at` is None when the task has failed for good."""

    task: Task
    attempt: int
    reason: Reason
    message: str
    retry_at: float | None
    exit_code: int | None = None


@dataclass(slots=True)
class Tasks:
    """All tasks of a run. Times are seconds of the caller's monotonic clock.

    Attributes:
        retry: the run's rule.
        out: tasks out, by lease and index.
        done: how many have an accepted result.
    """

    retry: Retry
    out: dict[str, dict[int, Task]] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    _waiting: deque[Task] = field(default_factory=deque)
    _later: list[tuple[float, int, Task]] = field(default_factory=list)
    _sealed: bool = False

    def add(self, index: int, pieces: Sequence[Piece]) -> None:
        """A new task; indices are unique."""
        sizes = [len(p) if type(p) is bytes else memoryview(p).nbytes for p in pieces]
        self._waiting.append(Task(index, pieces, sizes, sum(sizes)))

    def seal(self) -> None:
        """No more tasks will be added."""
        self._sealed = True

    @property
    def pending(self) -> int:
        """Tasks that could be sent now or after their backoff."""
        return len(self._waiting) + len(self._later)

    @property
    def open(self) -> int:
        return self.pending + sum(map(len, self.out.values()))

    @property
    def over(self) -> bool:
        return self._sealed and not self.open

    def next_index(self, now: float) -> int | None:
        """Of the task that would be taken next, if one could be."""
        self._wake(now)
        return self._waiting[0].index if self._waiting else None

    def take(self, lease: str, count: int, max_bytes: int, now: float) -> list[Task]:
        """Up to `count` tasks to send on this lease, together at most `max_bytes` (a larger one goes alone)."""
        self._wake(now)
        taken: list[Task] = []
        out = self.out.setdefault(lease, {})
        size = 0
        while self._waiting and len(taken) < count:
            size += self._waiting[0].size
            if taken and size > max_bytes:
                break
            task = self._waiting.popleft()
            task.state = step(TASK_EDGES, task.state, TaskState.SENT)
            task.lease = lease
            out[task.index] = task
            taken.append(task)
        return taken

    def accept(self, lease: str, index: int, attempt: int) -> Task | None:
        """The task whose result this is, or None when nobody waits for it."""
        task = self._answered(lease, index, attempt)
        if task is not None:
            task.state = step(TASK_EDGES, task.state, TaskState.DONE)
            task.pieces = ()
            self.done += 1
        return task

    def end(
        self,
        lease: str,
        index: int,
        attempt: int,
        reason: Reason,
        message: str,
        now: float,
        exit_code: int | None = None,
    ) -> Ended | None:
        """Ends an attempt without a result; None when nobody waits for it."""
        task = self._answered(lease, index, attempt)
        return None if task is None else self._end(task, reason, message, now, exit_code)

    def lose(self, lease: str, reason: Reason, message: str, now: float) -> list[Ended]:
        """Ends every attempt that was out on a lease that is no more."""
        lost = self.out.pop(lease, {})
        for task in lost.values():
            task.lease = ""
        return [self._end(task, reason, message, now, None) for task in lost.values()]

    def owed(self, lease: str) -> list[tuple[int, int]]:
        """(index, attempt) of what is out on a lease, in the order it was sent."""
        return [(task.index, task.attempt) for task in self.out.get(lease, {}).values()]

    def again(self, lease: str, indices: Iterable[int]) -> list[Task]:
        """Tasks that never reached the lease and are to be sent there again, as the same attempt."""
        out = self.out.get(lease, {})
        return [out[index] for index in indices if index in out]

    def give_up(self, index: int) -> bool:
        """Takes a task that is out nowhere off the list; False when there is none of this index."""
        later = [entry for entry in self._later if entry[1] == index]
        waiting = [task for task in (*self._waiting, *(entry[2] for entry in later)) if task.index == index]
        for task in waiting:
            task.state = step(TASK_EDGES, task.state, TaskState.FAILED)
            self.failed += 1
        self._waiting = deque(task for task in self._waiting if task.index != index)
        self._later = [entry for entry in self._later if entry[1] != index]
        heapq.heapify(self._later)
        return bool(waiting)

    def out_at(self, index: int) -> Task | None:
        """The task of this index, if it is out on a lease."""
        return next((out[index] for out in self.out.values() if index in out), None)

    def fail_all(self) -> None:
        """Gives up everything that is open; what still arrives is ignored."""
        waiting = [*self._waiting, *(task for _, _, task in self._later)]
        for task in (*waiting, *(task for out in self.out.values() for task in out.values())):
            task.state = step(TASK_EDGES, task.state, TaskState.FAILED)
            self.failed += 1
        self._waiting.clear()
        self._later.clear()
        self.out.clear()

    def _answered(self, lease: str, index: int, attempt: int) -> Task | None:
        out = self.out.get(lease)
        task = out.get(index) if out is not None else None
        if out is None or task is None or task.attempt != attempt:
            return None
        del out[index]
        task.lease = ""
        return task

    def _end(self, task: Task, reason: Reason, message: str, now: float, exit_code: int | None) -> Ended:
        ended = task.attempt
        delay = None if task.once else delay_s(self.retry, reason, ended, exit_code)
        if delay is None:
            task.state = step(TASK_EDGES, task.state, TaskState.FAILED)
            self.failed += 1
            return Ended(task, ended, reason, message, None, exit_code)
        task.state = step(TASK_EDGES, task.state, TaskState.PENDING)
        task.attempt += 1
        heapq.heappush(self._later, (now + delay, task.index, task))
        return Ended(task, ended, reason, message, now + delay, exit_code)

    def _wake(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._later)[2])
