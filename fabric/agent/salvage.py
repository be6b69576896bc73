"""What becomes of the tasks that a child had when it died: some ended with it, the others go to the next."""

from collections.abc import Callable
from typing import Any

from fabric.agent.tasks import Call, Outcome, TaskBook, failed
from fabric.wire.reasons import Reason

Cause = tuple[Reason, str, int | None]
"""Why a child died: reason, words, exit code."""


class Salvage:
    """Decides and tells its lease.

    Args:
        book: the lease's tasks.
        finished: journals that these (task, attempt, reason, digest, worked_ns) of a run are over.
        returned: journals that these (task, attempt) of a run were never started.
        fail: tells the customer.
    """

    def __init__(
        self,
        book: TaskBook,
        finished: Callable[[str, tuple[Any, ...]], object],
        returned: Callable[[str, tuple[tuple[int, int], ...]], object],
        fail: Callable[[str, Outcome], None],
    ) -> None:
        self._book = book
        self._finished = finished
        self._returned = returned
        self._fail = fail
        self._barren_deaths = 0

    def bore(self) -> None:
        """A child has answered for a task."""
        self._barren_deaths = 0

    def settle(self, number: int, cause: Cause) -> None:
        """Book the frames a dead child had. `number` is the task it ran; those before it lost their results.

        An actor's were all at work.
        """
        grounded = self._book.ground()
        for call in [call for call in grounded if call.at_once]:
            grounded.remove(call)
            self._end_at_once(call, cause)
        rest: list[Call] = []
        started = False
        for call in grounded:
            over = [task for at, task in enumerate(call.tasks, start=call.first) if at <= number]
            if over:
                started = True
                outcomes = [_lost(task.task, task.attempt) for task in over]
                if call.first + len(over) - 1 == number:
                    outcomes[-1] = failed(over[-1].task, over[-1].attempt, *cause)
                ended = tuple((o.fields[0], o.fields[1], o.fields[2], b"", int(o is outcomes[-1])) for o in outcomes)
                self._finished(call.run, ended)
                for outcome in outcomes:
                    self._fail(call.run, outcome)
            call.tasks = call.tasks[len(over) :]
            if call.tasks:
                self._returned(call.run, tuple((task.task, task.attempt) for task in call.tasks))
                rest.append(call)
        self._barren_deaths = 0 if started or not grounded else self._barren_deaths + 1
        self._requeue(rest, cause)

    def _end_at_once(self, call: Call, cause: Cause) -> None:
        (task,) = call.tasks
        reason = (Reason.CANCELLED_BY_USER, "cancelled while it ran", None)
        why = failed(task.task, task.attempt, *(reason if (call.run, task.task) in self._book.doomed else cause))
        self._finished(call.run, ((task.task, task.attempt, why.fields[2], b"", 1),))
        self._fail(call.run, why)

    def _requeue(self, calls: list[Call], cause: Cause) -> None:
        """Give unstarted tasks to the next child, unless they are cancelled or children die before starting any."""
        if calls and self._barren_deaths > 1:
            first = calls.pop(0)
            for task in first.tasks:
                self._fail(first.run, failed(task.task, task.attempt, *cause))
        for call in calls:
            doomed = [task for task in call.tasks if (call.run, task.task) in self._book.doomed]
            for task in doomed:
                why = failed(task.task, task.attempt, Reason.CANCELLED_BY_USER, "cancelled before it started")
                self._fail(call.run, why)
            call.tasks = [task for task in call.tasks if task not in doomed]
        self._book.requeue([call for call in calls if call.tasks])


def _lost(task: int, attempt: int) -> Outcome:
    message = "its result was lost when the process died while it ran the task behind it"
    return failed(task, attempt, Reason.INTERNAL_ERROR, message)
