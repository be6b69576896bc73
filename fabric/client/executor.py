"""`fabric.Executor`: a `concurrent.futures.Executor` whose workers are leases. All its calls are tasks of one run.

The crew gets leases while calls wait and gives back those that have been idle for `linger`; here a call's end becomes
its future's.
"""

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor as Executor_
from concurrent.futures import Future, wait
from typing import Any

from fabric.client import session as sessions
from fabric.client.answers import Answers
from fabric.client.crew import Crew
from fabric.client.errand import laden
from fabric.client.events import AttemptEnded, Broken, Event, Lines, Results
from fabric.client.lease_pool import HeldLease
from fabric.client.office import Office
from fabric.client.options import MAX_PARALLEL, RunOptions, read_options
from fabric.client.pace import FRAME_BYTES
from fabric.client.pack import Packed, pack_arguments, pack_function
from fabric.client.runs import Run
from fabric.client.terminal import print_line
from fabric.wire.errors import InvalidRequest
from fabric.wire.reasons import Reason

DEFAULT_WORKERS = 8


class Executor(Executor_):
    """Runs calls on up to `max_workers` leases: `with fabric.Executor(gpu="L4") as ex: ex.submit(f, 1).result()`.

    A future is cancelled only before its call was sent, as the contract has it. No lease is held before the first
    `submit`, nor longer than `linger` without work. A function's own exception is its future's; so is a lost lease's
    error once `retry` is used up.

    Args:
        max_workers: leases at most.
        keywords: as for `fabric.map`; `budget` bounds all calls together, `timeout` is each call's.

    Raises:
        InvalidRequest: an unknown keyword or an impossible value.
    """

    def __init__(self, max_workers: int = DEFAULT_WORKERS, **keywords: Any) -> None:
        if type(max_workers) is not int or not 1 <= max_workers <= MAX_PARALLEL:
            raise InvalidRequest(f"max_workers={max_workers!r} is not a number of leases from 1 to {MAX_PARALLEL}")
        self._options = read_options("Executor", keywords)
        self._session = sessions.current()
        self._packed = pack_function(laden(_apply, self._options))
        self._crew = _Workers(self._session.office, self._options, self._packed, max_workers, _Futures())
        self._lock = threading.Lock()
        self._begun = self._shut = False
        self._next = 0
        self._waiting: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    @property
    def run(self) -> Run:
        """The run whose tasks the calls are: logs, cost, receipts. It exists once something was submitted."""
        return Run(self._session, self._crew.run)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call `fn(*args, **kwargs)` on a lease; all keywords are the function's.

        Raises:
            InvalidRequest: something that cannot travel.
            RuntimeError: after `shutdown`.
        """
        if not callable(fn):
            raise InvalidRequest(f"the first argument must be a function, not a {type(fn).__name__}: {fn!r:.80}")
        pieces = pack_arguments((fn, args, kwargs), {}, self._packed.modules)
        answers = Answers(fn, self._options.returns, self._crew.run, trust=self._options.trust)
        future: Future[Any] = Future()
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            index, self._next = self._next, self._next + 1
            self._waiting.add(future)
            first, self._begun = not self._begun, True
            self._session.loop.post(self._crew.take_on, index, pieces, future, answers)
        if first:
            self._session.loop.post(self._crew.begin)
            atexit.register(self.shutdown)  # as the standard pools do: the process waits for what it has submitted
        future.add_done_callback(lambda done: self._session.loop.post(self._crew.let_go, index, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; leases are released when the last one is over. Twice is once."""
        with self._lock:
            first, self._shut = not self._shut, True
            waiting = list(self._waiting)
        if cancel_futures:
            for future in waiting:
                future.cancel()
        if first and self._begun:
            self._session.loop.post(self._crew.seal)
        if wait:
            _wait(waiting)
            atexit.unregister(self.shutdown)


def _wait(futures: list["Future[Any]"]) -> None:
    wait(futures)


def _apply(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What each task runs: the function comes with its arguments, as every call may have another one."""
    return function(*args, **kwargs)


class _Futures:
    """The calls that are not over; the crew's events end them. Every method runs in the loop."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[Future[Any], Answers]] = {}
        self.broken: BaseException | None = None

    def put(self, event: Event) -> None:
        match event:
            case Results(results):
                for index, status, pieces in results:
                    future, answers = self.open.pop(index, (None, None))
                    if future is not None and answers is not None:
                        _end(future, *answers.read(status, pieces))
            case AttemptEnded(ended, _) if ended.retry_at is None:
                future, answers = self.open.pop(ended.task.index, (None, None))
                if future is not None and answers is not None:
                    _end(future, False, answers.error_of(ended))
            case Broken(error):
                self.broken = error
                for future, _ in list(self.open.values()):
                    _end(future, False, error)
                self.open.clear()
            case Lines(_, lines):
                for stream, _, text in lines:
                    print_line(stream, text)
            case _:
                pass


def _end(future: "Future[Any]", value: bool, answer: Any) -> None:
    if not future.running() and not future.set_running_or_notify_cancel():
        return
    if value:
        future.set_result(answer)
    else:
        future.set_exception(answer)


class _Workers(Crew):
    """Leases for calls that come one by one. Runs in the loop."""

    def __init__(self, office: Office, options: RunOptions, packed: Packed, most: int, futures: _Futures) -> None:
        super().__init__(office, "map", options, packed, total=0, fail_fast=False, events=futures)
        self._futures = futures
        self._most = most
        self._idle_since: dict[str, float] = {}

    def take_on(self, index: int, pieces: Any, future: "Future[Any]", answers: Answers) -> None:
        """One more call."""
        if self._futures.broken is not None:
            _end(future, False, self._futures.broken)
            return
        self._futures.open[index] = future, answers
        self.add([(index, pieces)])
        self._ask_for_more()

    def let_go(self, index: int, future: "Future[Any]") -> None:
        """This future is done; one that its owner has cancelled is not sent any more."""
        if future.cancelled() and self._futures.open.pop(index, None) is not None:
            future.set_running_or_notify_cancel()
            self.end_task(index)

    def _wanted_first(self) -> int:
        return 1

    def _missing(self) -> int:
        staying = [lease for lease, held in self._leases.items() if not self._avoids(held)]
        have = len(staying) + self._opening
        idle = sum(not self._tasks.out.get(lease) for lease in staying) + self._opening
        needed = max(self._tasks.pending - idle, 0 if self._leases or have else 1)
        return min(self._most - have, needed)

    def _feed(self, held: HeldLease) -> None:
        """One call ahead of what a lease works on: which is sent can no longer be cancelled."""
        while held.channel.is_open and not self._avoids(held) and len(self._tasks.out.get(held.id, ())) < 2:
            index = self._tasks.next_index(self._now())
            if index is None or not self._may_have(held):
                return
            future = self._futures.open[index][0]
            if not future.running() and not future.set_running_or_notify_cancel():
                del self._futures.open[index]
                self._tasks.give_up(index)
                continue
            taken = self._tasks.take(held.id, 1, FRAME_BYTES, self._now())
            held.channel.call(self.run, self._packed, taken, self._options.timeout_ms)

    def _may_have(self, held: HeldLease) -> bool:
        """No lease gets a second call while another one, or one that is to come, could begin it now."""
        if not self._tasks.out.get(held.id):
            return True
        idle = any(not self._tasks.out.get(one.id) and not self._avoids(one) for one in self._leases.values())
        return not idle and not self._opening and len(self._leases) >= self._most

    def _leave_idle(self) -> None:
        for lease, held in list(self._leases.items()):
            if self._tasks.out.get(lease) or self._tasks.pending or not held.channel.is_open:
                self._idle_since.pop(lease, None)
            elif self._now() - self._idle_since.setdefault(lease, self._now()) >= self._options.linger_s:
                del self._leases[lease], self._idle_since[lease]
                self._office.pool.drop(held, Reason.DONE)
