"""One attached run on its leases: gets them, sends tasks as they have room, takes answers, goes on when one is lost.

Lives in the SDK's loop and never blocks; what happens is told to the waiting thread as events. What a task's answer
means is decided by `fabric.client.tasks`, how many are sent by `fabric.client.pace`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any, Protocol

from fabric.client.channel import Channel, closed_reason
from fabric.client.events import AttemptEnded, Broken, Event, Lines, Part, Placed, Progress, Results
from fabric.client.lease_pool import HeldLease
from fabric.client.office import Office, route_of
from fabric.client.options import RunOptions
from fabric.client.pace import FRAME_BYTES, Steady
from fabric.client.pack import Packed
from fabric.client.route import Route
from fabric.client.tasks import Ended, Piece, Task, Tasks
from fabric.wire import channel as wire
from fabric.wire.errors import Error, InvalidRequest, ServiceError, run_failed
from fabric.wire.frames import split
from fabric.wire.ids import new_id
from fabric.wire.machines import RUN_EDGES, RunState, is_terminal
from fabric.wire.reasons import EXPLANATIONS, FABRIC_ONLY, Reason
from fabric.wire.retry import delay_s

TICK_S = 0.5
ROUTE_WAIT_S = 25
GROW_BACKLOG_MS = 2000
"""A map that was given no `max_parallel` asks for more leases while more work than this waits per lease."""
MAX_GROWN = 64
MIN_ROOM = 16


class Events(Protocol):
    """Where a crew puts what happens."""

    def put(self, event: Event, /) -> None: ...


class Crew:
    """The leases of one run and what they do. Made in any thread; every method runs in the loop.

    Attributes:
        run: the run's id.
        events: what the waiting thread reads.
        room: how many tasks may be open at once, so that no lease waits and few inputs are taken early.
    """

    def __init__(
        self,
        office: Office,
        kind: str,
        options: RunOptions,
        packed: Packed,
        *,
        total: int,
        fail_fast: bool,
        events: Events | None = None,
    ) -> None:
        self.run = new_id("run")
        self._queue: SimpleQueue[Event] = SimpleQueue()
        self._told: Events = events or self._queue
        self._office = office
        self._kind = kind
        self._options = options
        self._own_lease = options.own_lease or kind == "actor"
        self._packed = packed
        self._total = total
        self._fail_fast = fail_fast
        self._tasks = Tasks(options.retry)
        self._leases: dict[str, HeldLease] = {}
        self._seen: set[str] = set()
        self._opening = 0
        self._failed_openings = 0
        self._lost_nodes: list[str] = []
        self._registered = False
        self._asking = False
        self._over = False
        self._away_since: float | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._first_failure: Ended | None = None
        self._noted: dict[str, Any] | None = None
        self._telling: asyncio.Task[None] | None = None
        self.room = MIN_ROOM

    @property
    def events(self) -> "SimpleQueue[Event]":
        return self._queue

    def tell(self, event: Event) -> None:
        """Put an event of the caller's own, from any thread, behind those that were told."""
        self._told.put(event)

    def begin(self) -> None:
        """Take a lingering lease, or ask for one."""
        held = None if self._own_lease else self._office.pool.take(self._key, self._options.max_price_dc)
        if held is not None:
            self._noted = self._request(held)
            self._office.registrar.note(self._noted, RunState.RUNNING)
            self._join(held)
        else:
            self._start(self._obtain())
        self._schedule_tick()

    def add(self, tasks: Sequence[tuple[int, Sequence[Piece]]]) -> None:
        """More tasks: (index, pieces) each."""
        if not self._over:
            for index, pieces in tasks:
                self._tasks.add(index, pieces)
            self._feed_all()

    def seal(self) -> None:
        """No more tasks will come."""
        self._tasks.seal()
        self._finish_if_over()

    def cancel(self) -> None:
        """The user's own end of the run."""
        if not self._over:
            self._close(RunState.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled")

    def end_task(self, index: int) -> None:
        """The user does not want this task any more."""
        task = self._tasks.out_at(index)
        if task is not None:
            self._leases[task.lease].channel.cancel(self.run, [index])
        elif self._tasks.give_up(index):
            self._finish_if_over()

    def taken(self, index: int, seq: int) -> None:
        """The parts of a streaming task up to this one were read."""
        task = self._tasks.out_at(index)
        if task is not None:
            self._leases[task.lease].channel.taken(self.run, index, task.attempt, seq)

    def dismiss(self) -> None:
        """Over, whatever still runs: nobody waits for it."""
        if not self._over:
            self._close(RunState.SUCCEEDED, Reason.DONE, "")

    def when_told(self, callback: Callable[[], object]) -> None:
        """Call back once the control plane has heard how the run ended, or at once when there is nothing to tell."""
        if self._telling is None:
            callback()
        else:
            self._telling.add_done_callback(lambda _: callback())

    def on_frame(self, channel: Channel, header: list[Any], body: memoryview) -> None:
        if header[0] == wire.RESULT:
            self._on_result(channel, header, body)
        elif header[0] == wire.LOG and header[1] == self.run:
            self._told.put(Lines(header[2], [tuple(line) for line in header[3]]))
        elif header[0] == wire.LOG:
            self._office.pool.on_frame(channel, header, body)
        elif header[0] == wire.PART and header[1] == self.run:
            self._on_part(channel, header, body)
        elif header[0] == wire.PROGRESS and header[1] == self.run:
            self._told.put(Progress(*header[2:5]))
        elif header[0] == wire.FAILED and header[1] == self.run:
            self._on_failed(channel, header[2])
        elif header[0] == wire.UNKNOWN and header[1] == self.run:
            self._send_again(channel, header[2])
        elif header[0] == wire.NOTICE:
            self._on_notice(channel)

    def on_resumed(self, channel: Channel) -> None:
        owed = self._tasks.owed(channel.lease)
        if owed:
            channel.resume(self.run, owed)
        self._feed_all()

    def on_gone(self, channel: Channel, reason: Reason, message: str) -> None:
        held = self._leases.pop(channel.lease, None)
        if held is None:
            return
        if held.channel.node:
            self._lost_nodes.append(held.channel.node)
        self._office.pool.drop(held, reason)
        self._on_ended(channel.lease, self._tasks.lose(channel.lease, reason, message, self._now()))
        self._ask_for_more()

    @property
    def _key(self) -> tuple[Any, ...]:
        return self._options.lease_key

    def _now(self) -> float:
        return self._office.loop.loop.time()

    def _request(self, held: HeldLease | None = None) -> dict[str, Any]:
        members = {**self._options.request(), "leases": self._wanted_first(), "tasks": self._total}
        if held is not None:
            members["lease"] = {"id": held.id, "generation": held.generation}
        return self._office.request(self.run, self._kind, members)

    def _wanted_first(self) -> int:
        limit = self._options.max_parallel if self._kind == "map" else 1
        if limit is None:
            return 1
        return max(1, min(limit, self._total)) if self._total else limit

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._office.start(self._or_break(coroutine))

    async def _or_break(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for these coroutines: whatever they raise ends the run, so that no caller waits in vain."""
        try:
            await coroutine
        except Error as error:
            self._break(error)
        except Exception as error:  # noqa: BLE001 - the outermost of what runs in the background
            self._break(ServiceError(f"an answer was not understood: {type(error).__name__}: {error}", run=self.run))

    async def _obtain(self) -> None:
        """Post the run and open what it is granted."""
        self._asking = True
        try:
            key, measures = self._options.idempotency_key or self.run, self._options.measures
            answer = await self._office.create_run(self._request(), key, measures=measures)
            if answer["id"] != self.run:
                raise InvalidRequest(
                    f"idempotency_key={self._options.idempotency_key!r} was used by {answer['id']}, whose values are "
                    "gone with its process; give another key, or use fabric.submit to keep a result"
                )
            self._registered = True
            if self._over:
                await self._report(RunState.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled")
                return
            facts = {lease["id"]: lease for lease in answer["leases"]}
            with nullcontext() if facts else self._office.pool.waiting():
                await self._unless_away(self._open_routes(facts))
        finally:
            self._asking = False

    async def _unless_away(self, attempt: Coroutine[Any, Any, None]) -> None:
        """Try something that the next tick tries again when the control plane does not answer."""
        try:
            await attempt
        except ServiceError as error:
            if not error.retryable:
                raise
            self._on_away(error)

    def _on_away(self, error: ServiceError) -> None:
        """Goes on without asking as long as there is a lease, and without one for `queue_timeout`."""
        self._office.note_away(error)
        if self._leases or self._opening:
            self._away_since = None
            return
        self._away_since = self._away_since or self._now()
        if (self._now() - self._away_since) * 1000 >= self._options.queue_timeout_ms:
            waited = f"queue_timeout={self._options.queue_timeout_ms / 1000:g} s"
            message = (
                f"given up after {waited} without a GPU or an answer; start it again when it answers: {error.message}"
            )
            self._break(ServiceError(message, retryable=True, run=self.run))

    def _on_answer(self) -> None:
        """The control plane counts for itself how long the run waits."""
        self._office.note_answer()
        self._away_since = None

    async def _open_routes(self, facts: dict[str, dict[str, Any]]) -> None:
        """Wait for routes that are not open yet and open them; returns when there was one, or the run is over.

        Args:
            facts: leases as last described; asked for again when a route is of another one.
        """
        while not self._over:
            answer = await self._office.plane.route(self.run, wait_s=0 if self._leases else ROUTE_WAIT_S)
            self._on_answer()
            new = [route_of(route) for route in answer["routes"] if route["lease"] not in self._seen]
            self._seen.update(route.lease for route in new)
            if any(route.lease not in facts for route in new):
                run = await self._office.plane.run(self.run)
                facts = {lease["id"]: lease for lease in run["leases"]}
            for route in new:
                self._opening += 1
                self._start(self._open(route, facts[route.lease]))
            state = RunState(answer["state"])
            if is_terminal(RUN_EDGES, state):
                reason = Reason(answer["reason"] or Reason.INTERNAL_ERROR)
                self._break(run_failed(reason, answer["message"] or EXPLANATIONS[reason], run=self.run))
            if new or self._leases or self._opening:
                return

    async def _open(self, route: Route, facts: dict[str, Any]) -> None:
        held: HeldLease
        channel = Channel(route.lease, lambda: self._office.find_route(held), self)
        held = HeldLease(route.lease, route.generation, self._key, facts, channel, self.run)
        known_s = self._office.times.now_s()
        try:
            await channel.connect(route)
        except (Error, TimeoutError) as error:
            self._opening -= 1
            self._office.pool.drop(held, Reason.INTERNAL_ERROR)
            self._on_unopened(error)
            return
        self._opening -= 1
        self._office.times.begin(held.id, known_s, channel.waited_s)
        if self._over:
            self._office.pool.drop(held, Reason.DONE)
        else:
            self._join(held)

    def _on_unopened(self, error: BaseException) -> None:
        """A lease that could not be opened counts as an attempt that was interrupted."""
        if self._over or self._leases:
            return
        if isinstance(error, InvalidRequest):
            self._break(error)
            return
        self._failed_openings += 1
        reason = closed_reason(error)
        if delay_s(self._options.retry, reason, self._failed_openings) is None:
            self._break(run_failed(reason, str(error), run=self.run))
        else:
            self._ask_for_more()

    def _join(self, held: HeldLease) -> None:
        held.run = self.run
        held.channel.listener = self
        if self._packed.at_once:
            held.pace = Steady(self._packed.at_once)
        self._leases[held.id] = held
        self._seen.add(held.id)
        self._away_since = None
        self._told.put(Placed(held.facts))
        self._feed(held)
        self._part(held)
        self._set_room()

    def _set_room(self) -> None:
        self.room = max(MIN_ROOM, sum(4 * held.pace.window for held in self._leases.values()))

    def _feed_all(self) -> None:
        for held in list(self._leases.values()):
            self._feed(held)

    def _feed(self, held: HeldLease) -> None:
        if self._avoids(held):
            return
        while held.channel.is_open and (room := held.pace.room(len(self._tasks.out.get(held.id, ())))):
            taken = self._tasks.take(held.id, room, FRAME_BYTES, self._now())
            if not taken:
                break
            self._send(held.channel, taken)

    def _send(self, channel: Channel, tasks: list[Task]) -> None:
        channel.call(self.run, self._packed, tasks, self._options.timeout_ms, self._options.checkpoint)

    def _avoids(self, held: HeldLease) -> bool:
        """Whether tasks wait for another lease rather than go there; an actor's object is where it is to the end."""
        return held.leaving and self._kind != "actor"

    def _on_notice(self, channel: Channel) -> None:
        """What runs there may be done in time; what was not sent yet goes elsewhere."""
        held = self._leases.get(channel.lease)
        if held is not None:
            self._part(held)
            self._ask_for_more()

    def _part(self, held: HeldLease) -> None:
        """Give a lease back that will leave, as soon as nothing runs there: until then it costs, and others wait."""
        reason = held.channel.leaving
        if reason is None or not self._avoids(held) or self._tasks.out.get(held.id) or self._over:
            return
        if self._leases.pop(held.id, None) is not None:
            self._office.pool.drop(held, reason)
            self._ask_for_more()

    def _on_part(self, channel: Channel, header: list[Any], body: memoryview) -> None:
        _, _, index, attempt, seq, sizes = header
        task = self._tasks.out.get(channel.lease, {}).get(index)
        if task is not None and task.attempt == attempt:
            task.once = True
            self._told.put(Part(index, seq, list(split(body, sizes))))

    def _on_result(self, channel: Channel, header: list[Any], body: memoryview) -> None:
        entries = header[2]
        pieces = split(body, [size for entry in entries for size in entry[6]])
        held = self._leases.get(channel.lease)
        if header[1] != self.run or held is None:
            channel.acknowledge(header[1], [entry[0] for entry in entries], body.nbytes)
            return
        results, durations = [], []
        for index, attempt, status, start_ms, end_ms, _, sizes in entries:
            parts = [next(pieces) for _ in sizes]
            durations.append(end_ms - start_ms)
            if self._settle(channel.lease, index, attempt, status):
                results.append((index, status, parts))
        if results:
            self._told.put(Results(results))
        channel.acknowledge(self.run, [entry[0] for entry in entries], body.nbytes)
        held.pace.measured(durations)
        self._set_room()
        if self._first_failure is not None and self._fail_fast:
            self._fail(self._first_failure)
            return
        self._feed(held)
        self._finish_if_over()
        self._part(held)

    def _settle(self, lease: str, index: int, attempt: int, status: int) -> bool:
        """Whether this answer is the task's last word."""
        if status == wire.STATUS_VALUE:
            return self._tasks.accept(lease, index, attempt) is not None
        reason = Reason.USER_ERROR if status == wire.STATUS_EXCEPTION else Reason.RESULT_NOT_TRANSPORTABLE
        ended = self._tasks.end(lease, index, attempt, reason, EXPLANATIONS[reason], self._now())
        if ended is None:
            return False
        if ended.retry_at is not None:
            self._wake_at(ended.retry_at)
            self._told.put(AttemptEnded(ended, lease))
            return False
        self._first_failure = self._first_failure or ended
        return True

    def _on_failed(self, channel: Channel, entries: list[Any]) -> None:
        now = self._now()
        ends = [
            self._tasks.end(channel.lease, task, attempt, Reason(reason), message, now, exit_code)
            for task, attempt, reason, message, exit_code in entries
        ]
        channel.acknowledge(self.run, [entry[0] for entry in entries])
        self._on_ended(channel.lease, [ended for ended in ends if ended is not None])
        self._feed_all()
        held = self._leases.get(channel.lease)
        if held is not None:
            self._part(held)

    def _on_ended(self, lease: str, ends: list[Ended]) -> None:
        for ended in ends:
            self._told.put(AttemptEnded(ended, lease))
            if ended.retry_at is None:
                self._first_failure = self._first_failure or ended
            else:
                self._wake_at(ended.retry_at)
        if self._first_failure is not None and self._fail_fast:
            self._fail(self._first_failure)
        else:
            self._finish_if_over()

    def _send_again(self, channel: Channel, indices: list[int]) -> None:
        tasks = self._tasks.again(channel.lease, indices)
        if tasks:
            self._send(channel, tasks)

    def _wake_at(self, when: float) -> None:
        self._office.loop.loop.call_at(when, self._feed_all)

    def _schedule_tick(self) -> None:
        if not self._over:
            self._tick = self._office.loop.loop.call_later(TICK_S, self._on_tick)

    def _on_tick(self) -> None:
        self._feed_all()
        self._leave_idle()
        self._ask_for_more()
        self._schedule_tick()

    def _leave_idle(self) -> None:
        """A map's last tasks may need fewer leases than it has: the others go back."""
        if self._kind != "map" or self._tasks.pending or not self._tasks.open:
            return
        for lease, held in list(self._leases.items()):
            if not self._tasks.out.get(lease) and held.channel.is_open and len(self._leases) > 1:
                del self._leases[lease]
                self._give(held)

    def _ask_for_more(self) -> None:
        missing = self._missing()
        if self._over or self._asking or missing <= 0 or not self._tasks.open:
            return
        held = None if self._own_lease else self._office.pool.take(self._key, self._options.max_price_dc)
        if held is not None:
            self._join(held)
        elif self._registered or self._seen:
            self._asking = True
            self._start(self._ask(missing))

    def _missing(self) -> int:
        """So many more leases would help now."""
        have = len(self._leases) + self._opening
        staying = have - sum(map(self._avoids, self._leases.values()))
        return min(self._wanted_now(), self._tasks.pending + (not have)) - staying

    def _wanted_now(self) -> int:
        if self._kind != "map":
            return 1
        if self._options.max_parallel is not None:
            return self._options.max_parallel
        have = max(1, len(self._leases))
        mean = max((held.pace.mean_ms or 0 for held in self._leases.values()), default=0)
        return min(MAX_GROWN, have * 2) if self._tasks.pending * mean / have > GROW_BACKLOG_MS else have

    async def _ask(self, count: int) -> None:
        try:
            await self._unless_away(self._ask_once(count))
        finally:
            self._asking = False

    async def _ask_once(self, count: int) -> None:
        if not self._registered:
            await self._office.registrar.flush()
            self._registered = True
        answer = await self._office.plane.route(self.run)
        if all(route["lease"] in self._seen for route in answer["routes"]):
            await self._office.plane.more_leases(self.run, count, self._lost_nodes)
        await self._open_routes({})

    def _finish_if_over(self) -> None:
        if self._over or not self._tasks.over:
            return
        failure = self._first_failure
        if failure is not None and self._kind == "run":
            self._close(RunState.FAILED, failure.reason, failure.message)
        else:
            self._close(RunState.SUCCEEDED, Reason.DONE, "")

    def _fail(self, failure: Ended) -> None:
        if not self._over:
            self._close(RunState.FAILED, failure.reason, failure.message)

    def _break(self, error: Error) -> None:
        if not self._over:
            reason = getattr(error, "reason", Reason.INTERNAL_ERROR)
            self._close(RunState.FAILED, reason, str(error))
            self._told.put(Broken(error))

    def _close(self, state: RunState, reason: Reason, message: str) -> None:
        """Leases with nothing on them linger; those that still work on a task of this run are released."""
        self._over = True
        if self._tick is not None:
            self._tick.cancel()
        for held in self._leases.values():
            if self._tasks.out.get(held.id):
                held.channel.cancel(self.run)
                self._office.pool.drop(held, Reason.DONE if reason in FABRIC_ONLY else reason)
            else:
                self._give(held)
        self._leases.clear()
        self._tasks.fail_all()
        if self._registered or (state is RunState.CANCELLED and self._noted is not None):
            self._telling = self._office.tell(self._report(state, reason, message))
        elif self._noted is not None:
            self._office.registrar.note(self._noted, state, reason, message)

    def _give(self, held: HeldLease) -> None:
        self._office.pool.give(held, 0.0 if self._own_lease else self._options.linger_s)

    async def _report(self, state: RunState, reason: Reason, message: str) -> None:
        async def tell() -> None:
            await self._office.registrar.flush()
            if state is RunState.CANCELLED:
                await self._office.plane.cancel(self.run)
            else:
                await self._office.plane.finish(self.run, state, reason, message[:2000])

        try:
            await self._office.until_answered(tell)
        except Error:
            return  # its session's end closes it too
