"""One open lease on its node: the customer's frames, the child that runs them, the meter that watches.

A plain asyncio object. Decisions about tasks are `TaskBook`'s, about time `LeaseMeter`'s; here they are carried out in
the order that makes them true: journal before child, output before result, result before acknowledgement.
"""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import structlog

from fabric.agent.customer import Customer
from fabric.agent.envs import EnvError
from fabric.agent.events import Closed, Finished, LeaseEvent, Opened, Passed, Prepared, Returned, Ticked
from fabric.agent.exits import Exit
from fabric.agent.functions import Functions
from fabric.agent.gauges import Gauges, Sensor
from fabric.agent.lease_spec import LeaseSpec
from fabric.agent.mesh import Mesh
from fabric.agent.meter import LeaseMeter
from fabric.agent.notice import Asked, Deadline
from fabric.agent.oom import OomWatch, resident_bytes
from fabric.agent.output import Line
from fabric.agent.pool import Pool
from fabric.agent.restoring import Restoring
from fabric.agent.results import REASON_OF_STATUS, counters_of, cut, digest_of
from fabric.agent.salvage import Cause, Salvage
from fabric.agent.sandbox import SandboxError
from fabric.agent.saving import Saving
from fabric.agent.stream import FrameStream
from fabric.agent.streams import Streams
from fabric.agent.surroundings import Surroundings
from fabric.agent.tasks import Call, Key, Outcome, TaskBook, failed, parse_call
from fabric.agent.time_limit import TimeLimit
from fabric.agent.worker import Worker
from fabric.wire import channel
from fabric.wire.clock import Clock
from fabric.wire.frames import Buffer, FrameError
from fabric.wire.reasons import EXPLANATIONS, Reason
from fabric.wire.receipts import TaskLine

_log = structlog.get_logger(__name__)

WAITING_BYTES = 256 << 20
"""Arguments of waiting tasks beyond this are left in the customer's connection."""
KEPT_BYTES = 1 << 30
"""No further task is passed to the child while results of this size wait for their acknowledgement."""
PARTS_BYTES = 1 << 30
"""Parts of streams that nobody took may have this size together: a child that goes on beyond it is killed."""

_INLINE_DIGEST_BYTES = 1 << 20
_ENDED_BY_ACTORS = frozenset({Reason.OOM, Reason.TIMEOUT, Reason.CANCELLED_BY_USER})


class Host(Protocol):
    """The node, as a lease needs it."""

    def record(self, event: LeaseEvent) -> None:
        """Write to the journal before returning."""
        ...

    def forward_logs(self, run: str, lines: list[list[Any]]) -> None: ...
    def forward(self, header: list[Any], body: Buffer = b"") -> bool:
        """To the agent; False when it is not there."""
        ...

    def lease_over(self, lease: "Lease") -> None: ...


class Lease:
    """From OPEN to CLOSE. `open` is called once; after `close` nothing may be called."""

    def __init__(
        self, spec: LeaseSpec, *, host: Host, pool: Pool, sensor: Sensor, clock: Clock, around: Surroundings
    ) -> None:
        self.spec = spec
        self.meter: LeaseMeter | None = None
        self.node_info: dict[str, Any] = {}
        self._host = host
        self._pool = pool
        self._clock = clock
        self._around = around
        self._book = TaskBook()
        self._functions = Functions()
        self._restoring = Restoring(spec, host.forward)
        self._saving = Saving(spec, host.forward)
        self._streams = Streams()
        self._customer = Customer()
        self._gauges = Gauges(sensor, [uuid for uuid, _ in spec.gpus])
        self._salvage = Salvage(self._book, self._record_finished, self._record_returned, self._fail)
        self._time_limit = TimeLimit(self._book, clock, lambda: self._worker and self._worker.page, self._kill)
        self._worker: Worker | None = None
        self._worker_functions: set[bytes] = set()
        self._speaker: Key = (spec.run, 0)
        self._killed_for: tuple[Reason, str] | None = None
        self._closing: tuple[str, str] | None = None
        self._deadline: Deadline | None = None
        self._asked = Asked(lambda: self.give_notice(Reason.PREEMPTED, spec.notice_ms))
        self._background: set[asyncio.Task[None]] = set()
        self._oom = OomWatch()

    @property
    def is_open(self) -> bool:
        return self.meter is not None and self._closing is None

    @property
    def mesh(self) -> Mesh | None:
        """Its gang's network here, if it has one."""
        return self._around.mesh

    @property
    def ended(self) -> tuple[str, str] | None:
        """Why it was closed: reason, words."""
        return self._closing

    async def open(self, environment: dict[str, str]) -> None:
        """Get a child; from then on the meter runs. Packages are installed while it runs, and a child comes after.

        Raises:
            TimeoutError: no child was ready within the startup timeout.
            SandboxError, OSError: no child could be started.
        """
        self._environment = environment
        async with asyncio.timeout(self.spec.startup_timeout_ms / 1000):
            await self._around.connect()
            self._environment = environment | self._around.environment
            if not self._around.installs:
                await self._take_worker()
        spec, now = self.spec, self._clock.monotonic_ns()
        self._gauges.open(now)
        opened = Opened(
            *(spec.lease, spec.generation, now, spec.run, spec.session, spec.gpus, spec.simulated),
            setup=self._around.installs,
        )
        self._host.record(opened)
        self.meter = LeaseMeter(opened)
        if self._around.installs:
            self._spawn(self._prepare())

    def attach(self, stream: FrameStream) -> None:
        """Serve this connection of the customer; an older one is closed."""
        self._customer.attach(stream)
        self._send([channel.READY, {"lease": self.spec.lease, "generation": self.spec.generation, **self.node_info}])
        self._tell_notice()
        self._customer.catch_up()

    def detach(self, stream: FrameStream) -> None:
        self._customer.detach(stream)

    def handle(self, header: list[Any], body: Buffer) -> None:
        """One frame of the customer.

        Raises:
            FrameError: it is not one that a customer may send.
        """
        if not self.is_open:
            return
        try:
            self._handle(header, body)
        except (TypeError, ValueError, IndexError) as error:
            raise FrameError(f"a malformed {header[0]} frame: {error}") from None
        if (stream := self._customer.unread()) is not None:
            stream.hold()
            self._spawn(self._when_read(stream))

    def give_notice(self, reason: str, notice_ms: int) -> None:
        """The lease ends so soon, whatever it does: tell child and customer now. A deadline only moves nearer."""
        now = self._clock.monotonic_ns()
        at_ns = now + notice_ms * 1_000_000
        if not self.is_open or (self._deadline is not None and self._deadline.at_ns <= at_ns):
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = Deadline(at_ns, _reason(reason), notice_ms, self._on_deadline)
        if self._worker is not None:
            self._worker.page.warn(at_ns)
        self._tell_notice()

    def tick(self) -> None:
        """Once a second: the meter's tick, and the watch over memory."""
        if self.meter is None or self.meter.closed:
            return
        now = self._clock.monotonic_ns()
        utilised = self._gauges.tick(now)
        self._record(Ticked(self.spec.lease, self.spec.generation, now, utilised, self._gauges.energy_by_gpu()))
        self._watch_memory()

    async def close(self, reason: str, message: str = "") -> None:
        """End the lease: kill the child, bill to this moment, tell the customer. Twice is once."""
        if self._closing is not None:
            return
        self._closing = (reason, message)
        self._time_limit.stop()
        if self._deadline is not None:
            self._deadline.cancel()
        self._asked.cancel()
        for task in list(self._background):
            task.cancel()
        if self._worker is not None:
            self._killed_for = self._killed_for or (_reason(reason), message or f"the lease was closed: {reason}")
            worker = self._worker
            worker.kill()
            await worker.gone()
        if self.meter is not None:
            self._record(Closed(self.spec.lease, self.spec.generation, self._clock.monotonic_ns(), reason))
        await self._around.close()
        self._customer.close(reason, message)
        self._host.lease_over(self)

    def on_frame(self, header: list[Any], body: Buffer) -> None:
        """A frame of the child, which may be hostile: anything unexpected ends it."""
        try:
            self._on_child_frame(header, body)
        except (FrameError, TypeError, ValueError, IndexError, KeyError) as error:
            _log.warning("child sent nonsense", lease=self.spec.lease, error=str(error))
            self._kill(Reason.CRASHED, "the process that runs the function broke its protocol")

    def on_lines(self, lines: list[Line]) -> None:
        if self.meter is None:
            return
        at_ms = self.meter.ms_at(self._clock.monotonic_ns())
        for key, group in groupby(lines, key=lambda line: self._speaker_of(line.number)):
            entries = [[line.stream, at_ms, line.text] for line in group]
            self._send_log(key, entries)
            self._host.forward_logs(key[0], [[key[1], *entry] for entry in entries])

    def on_exit(self, ended: Exit) -> None:
        """The child is gone: its running task failed, the ones behind it go to a fresh child."""
        assert self._worker is not None
        number = self._worker.page.running
        self._around.detach()
        self._worker = None
        self._worker_functions = set()
        cause = self._cause(ended)
        self._killed_for = None
        self._salvage.settle(number, cause)
        if self._closing is None:
            self._spawn(self._replace_worker())

    def _handle(self, header: list[Any], body: Buffer) -> None:
        kind, *fields = header
        match kind:
            case channel.CALL:
                self._on_call(parse_call(header, body))
            case channel.ACK:
                self._book.ack(fields[0], fields[1])
                self._streams.forget(fields[0], fields[1])
            case channel.TAKEN:
                self._on_taken(*fields)
            case channel.FN:
                self._functions.add(fields[0], body, *fields[1:])
            case channel.CANCEL:
                self._on_cancel(fields[0], fields[1])
            case channel.RESUME:
                done, unknown = self._book.resume(fields[0], fields[1])
                for part, pieces in self._streams.kept(fields[0], fields[1]):
                    self._send(part, pieces)
                self._send_outcomes(done)
                if unknown:
                    self._send([channel.UNKNOWN, fields[0], unknown])
            case channel.PING:
                self._send([channel.PONG, fields[0]])
            case _:
                raise FrameError(f"a customer does not send {kind!r}")
        self._pump()

    def _on_call(self, call: Call) -> None:
        call.at_once = self._functions.at_once(call.digest)
        begun_with = channel.CHECKPOINT_OF in call.environment
        again = [(call.run, task.task) for task in call.tasks if task.attempt > 1 or begun_with]
        if call.at_once or not (again and self._restoring.ask(call, again)):
            self._begin_call(call)

    def on_stored(self, number: int, problem: str) -> None:
        """The agent says how far what the child sent is durable: one answer to each piece."""
        self._saving.answered()
        if self._worker is not None:
            self._worker.page.store(max(number, self._worker.page.stored), problem)

    def on_new_agent(self) -> None:
        """What was asked of the one before is not answered any more: ask anew, and let the child save anew."""
        self._restoring.ask_again()
        if self._saving.forget() and self._worker is not None:
            self._worker.page.store(self._worker.page.stored, "the operator's agent was started anew meanwhile")

    def on_piece(self, digest: str, body: Buffer) -> None:
        self._restoring.add_piece(digest, body)

    def on_checkpoint(self, run: str, task: int, found: bool, problem: str, body: Buffer) -> None:
        """The newest checkpoint of a task that is tried again, or that there is none: now it may begin."""
        if problem:
            _log.warning("a checkpoint could not be put back", run=run, task=task, problem=problem)
        for call in self._restoring.arrived(run, task, body if found else None):
            self._begin_call(call)
        self._pump()

    def _keep(self, kind: str, run: str, fields: list[Any], body: Buffer) -> None:
        """A piece or a manifest of the task that runs; the agent stores it."""
        task, attempt, number = fields
        if not self._book.is_flying(run, task, attempt):
            raise FrameError("a checkpoint of a task that the child does not run")
        self._saving.keep(kind, run, int(task), int(number), body)

    def _begin_call(self, call: Call) -> None:
        self._send_outcomes(self._book.add(call))
        if call.digest not in self._functions and self._book.waiting and self._book.waiting[-1] is call:
            for task in self._book.cancel(call.run, [task.task for task in call.tasks]):
                self._fail(
                    call.run, failed(task.task, task.attempt, Reason.INTERNAL_ERROR, "its function was not sent")
                )

    def _on_cancel(self, run: str, tasks: Sequence[int]) -> None:
        for task in self._book.cancel(run, tasks):
            self._fail(run, failed(task.task, task.attempt, Reason.CANCELLED_BY_USER, "cancelled before it started"))
        if self._book.at_once:
            self._cancel_in_actor(run, tasks)
        else:
            self._kill_if_doomed()

    def _cancel_in_actor(self, run: str, tasks: Sequence[int]) -> None:
        """Let the actor end these tasks itself: others are at work in the same process."""
        flying = [task.task for call in self._book.flying if call.run == run for task in call.tasks]
        wanted = [task for task in flying if not tasks or task in tasks]
        if wanted and self._worker is not None:
            self._worker.stream.send([channel.CANCEL, run, wanted])

    def _on_taken(self, run: str, task: int, attempt: int, seq: int) -> None:
        self._streams.taken(run, task, attempt, seq)
        if self._worker is not None and self._book.is_flying(run, task, attempt):
            self._worker.stream.send([channel.TAKEN, run, task, attempt, seq])

    def _kill_if_doomed(self) -> None:
        """Kill the child when the task it runs is cancelled, or when all it has is."""
        if not self._book.doomed or self._worker is None or self._book.at_once:
            return
        running = self._book.running(self._worker.page.running)
        at_child = [(call.run, task.task) for call in self._book.flying for task in call.tasks]
        current = (running[0].run, running[1].task) if running else None
        if current in self._book.doomed or (at_child and current is None and set(at_child) <= self._book.doomed):
            self._kill(Reason.CANCELLED_BY_USER, "cancelled while it ran")

    def _pump(self) -> None:
        """Pass on what the child may have, and let the customer send more."""
        worker = self._worker
        while worker is not None and worker.alive and self._killed_for is None and self._closing is None:
            if self._book.kept_bytes > KEPT_BYTES:
                break
            if self._waits_for_fresh():
                break
            call = self._book.next_call()
            if call is None:
                break
            self._pass(worker, call)
        self._customer.hold(held=self._book.waiting_bytes + self._restoring.waiting_bytes > WAITING_BYTES)

    def _waits_for_fresh(self) -> bool:
        """Whether the next task sets its environment but this child has run others: once these are over, it goes."""
        waiting = self._book.waiting
        if not (waiting and waiting[0].environment and self._worker_functions):
            return False
        if not self._book.flying:
            self._kill(Reason.DONE, "the next task gets a process of its own")
        return True

    def _pass(self, worker: Worker, call: Call) -> None:
        tasks = tuple((task.task, task.attempt) for task in call.tasks)
        now = self._clock.monotonic_ns()
        at_once = bool(call.at_once)
        call.passed_ns = now
        self._record(
            Passed(self.spec.lease, self.spec.generation, now, call.run, tasks, self._gauges.energy_mj(), at_once)
        )
        if call.digest not in self._worker_functions:
            self._worker_functions.add(call.digest)
            actor = [call.at_once] if at_once else []
            worker.stream.send([channel.FN, call.digest, *actor], self._functions[call.digest])
        for task in call.tasks:
            for header, piece in self._restoring.frames(call.run, task.task):
                worker.stream.send(header, piece)
        worker.stream.send(call.header(), *call.body)
        self._time_limit.begin(call.timeout_ms)

    def _on_child_frame(self, header: list[Any], body: Buffer) -> None:
        kind, run, *fields = header
        match kind:
            case channel.RESULT if memoryview(body).nbytes > _INLINE_DIGEST_BYTES and self._worker is not None:
                self._worker.stream.hold()
                self._spawn(self._digest_then_finish(self._worker, run, fields[0], body))
            case channel.RESULT:
                pieces = cut(fields[0], body)
                self._finish(run, fields[0], pieces, [digest_of(piece) for piece in pieces])
            case channel.PROGRESS:
                task, done, total = fields
                said = [channel.PROGRESS, str(run), int(task), int(done), None if total is None else int(total)]
                self._customer.send_if_read(said)
            case channel.PART:
                self._on_part(str(run), fields, body)
            case channel.PIECE | channel.CHECKPOINT:
                self._keep(str(kind), str(run), fields, body)
            case channel.ASK_NOTICE:
                self._asked.ask(run)
            case channel.FAILED:
                task, attempt, reason, message, code = fields[0][0]
                why = Reason(reason) if self._book.at_once and reason in _ENDED_BY_ACTORS else Reason.OOM
                exit_code = code if type(code) is int and 0 < code < 256 else None
                if exit_code is not None:
                    why = Reason.USER_ERROR  # a program of the customer's ended by itself
                self._finish_failed(run, failed(task, attempt, why, str(message), exit_code))
            case _:
                raise FrameError(f"a child does not send {kind!r}")

    def _on_part(self, run: str, fields: list[Any], body: Buffer) -> None:
        task, attempt, seq, sizes = fields
        if not self._book.is_flying(run, task, attempt) or not self._book.at_once:
            raise FrameError("a part of a task that the child does not run")
        header = [channel.PART, run, task, attempt, seq, sizes]
        self._streams.add(header, body)
        if self._streams.size > PARTS_BYTES:
            self._kill(Reason.CRASHED, f"its streams ran {self._streams.size} bytes ahead of whoever reads them")
        self._send(header, body)

    async def _digest_then_finish(self, worker: Worker, run: str, entries: list[Any], body: Buffer) -> None:
        """As for a small result, with the hashing of a large one in a thread; later frames wait."""
        try:
            pieces = cut(entries, body)
            digests = [await asyncio.to_thread(digest_of, piece) for piece in pieces]
            self._finish(run, entries, pieces, digests)
        except (FrameError, TypeError, ValueError, IndexError) as error:
            _log.warning("child sent nonsense", lease=self.spec.lease, error=str(error))
            self._kill(Reason.CRASHED, "the process that runs the function broke its protocol")
        finally:
            worker.stream.release()

    def _finish(self, run: str, entries: list[Any], pieces: list[memoryview], digests: list[bytes]) -> None:
        """Results of consecutive tasks of the oldest frame: meter, keep, send, go on."""
        self._book.land(run, [(entry[0], entry[1]) for entry in entries])
        if self._streams.any:
            streamed = (self._streams.digest(run, e[0], e[1], piece) for e, piece in zip(entries, pieces, strict=True))
            digests = [whole or plain for whole, plain in zip(streamed, digests, strict=True)]
        ended = tuple(
            (task, attempt, str(self._reason_for(run, task, status)), digest, max(0, end_ns - start_ns))
            for (task, attempt, status, start_ns, end_ns, *_), digest in zip(entries, digests, strict=True)
        )
        counters = tuple(counters_of(entry[7:]) for entry in entries)
        lines = self._record_finished(run, ended, counters if any(counters) else ())
        outcomes: list[tuple[Key, Outcome]] = []
        for entry, piece, line in zip(entries, pieces, lines, strict=True):
            outcome = self._outcome(run, entry, piece, line)
            self._book.finish(run, line.task, line.attempt, outcome)
            outcomes.append(((run, line.task), outcome))
        self._salvage.bore()
        self._send_outcomes(outcomes)
        self._after_finish()

    def _reason_for(self, run: str, task: int, status: int) -> Reason:
        return Reason.CANCELLED_BY_USER if (run, task) in self._book.doomed else REASON_OF_STATUS[status]

    def _outcome(self, run: str, entry: list[Any], piece: memoryview, line: TaskLine) -> Outcome:
        if (run, line.task) in self._book.doomed:
            return failed(line.task, line.attempt, Reason.CANCELLED_BY_USER, "cancelled while it ran")
        fields = [line.task, line.attempt, entry[2], line.start_ms, line.end_ms, line.gpu_ms, entry[6]]
        return Outcome(False, fields, piece)

    def _finish_failed(self, run: str, outcome: Outcome) -> None:
        task, attempt, reason, *_ = outcome.fields
        self._book.land(run, [(task, attempt)])
        self._record_finished(run, ((task, attempt, reason, b"", 1),))
        self._fail(run, outcome)
        self._after_finish()

    def _after_finish(self) -> None:
        self._kill_if_doomed()
        self._pump()

    def _fail(self, run: str, outcome: Outcome) -> None:
        task, attempt, *_ = outcome.fields
        self._streams.forget(run, [task])
        self._book.finish(run, task, attempt, outcome)
        self._send_outcomes([((run, task), outcome)])

    def _cause(self, ended: Exit) -> Cause:
        if self._killed_for is not None:
            return (*self._killed_for, ended.code)
        if self._oom.killed(ended):
            message = "the kernel ran out of memory and killed the process that ran the function"
            return Reason.OOM, message, ended.code
        return Reason.CRASHED, f"the process that ran the function {ended}", ended.code

    async def _prepare(self) -> None:
        """Install the packages of the open lease, then get its first child."""
        limit_s = self.spec.startup_timeout_ms / 1000
        try:
            async with asyncio.timeout(limit_s):
                await self._around.install()
                await self._take_worker()
        except EnvError as error:
            self._give_up(Reason.DEPS_INSTALL, f"the packages could not be installed:\n{error}")
        except TimeoutError:
            self._give_up(
                Reason.STARTUP_TIMEOUT, f"the packages were not installed within startup_timeout={limit_s:g} s"
            )
        except (OSError, SandboxError) as error:
            self._give_up(Reason.INTERNAL_ERROR, f"no process could start: {error}")
        else:
            self._record(Prepared(self.spec.lease, self.spec.generation, self._clock.monotonic_ns()))
            self._pump()

    async def _replace_worker(self) -> None:
        try:
            await self._take_worker()
        except (OSError, SandboxError) as error:
            self._give_up(Reason.INTERNAL_ERROR, f"no process could start: {error}")
            return
        self._pump()

    def _give_up(self, reason: Reason, message: str) -> None:
        """End an open lease that gets no child."""
        _log.error("no child for an open lease", lease=self.spec.lease, reason=reason, error=message)
        self._closer = asyncio.ensure_future(self.close(reason, message))

    async def _take_worker(self) -> None:
        worker = await self._pool.take(self._around.needs(self.spec.devices))
        worker.assign(self, self._environment, site=self._around.site, network=self._around.way)
        self._around.attach(worker.wire_fd)
        self._worker = worker
        if self._deadline is not None:
            worker.page.warn(self._deadline.at_ns)
        self._oom = OomWatch()
        self.node_info = worker.python | self.node_info

    def _tell_notice(self) -> None:
        if self._deadline is not None:
            left_ms = max(0, self._deadline.at_ns - self._clock.monotonic_ns()) // 1_000_000
            self._send([channel.NOTICE, str(self._deadline.reason), left_ms])

    def _on_deadline(self, reason: Reason) -> None:
        self._closer = asyncio.ensure_future(self.close(reason, EXPLANATIONS[reason]))

    def _kill(self, reason: Reason, message: str) -> None:
        if self._worker is not None and self._killed_for is None:
            self._killed_for = (reason, message)
            self._worker.kill()

    def _watch_memory(self) -> None:
        limit = self.spec.memory_bytes
        if not limit or self._worker is None:
            return
        used = resident_bytes(self._worker.pid)
        if used > limit:
            self._kill(Reason.OOM, f"it used {used} bytes of memory; the lease has {limit}")

    def _speaker_of(self, number: int) -> Key:
        running = self._book.running(number)
        if running is not None:
            self._speaker = (running[0].run, running[1].task)
        return self._speaker

    def _send_log(self, key: Key, entries: list[list[Any]]) -> None:
        behind = self._customer.log(key, entries)
        if behind is not None and self._worker is not None:
            self._worker.pause_output()
            self._spawn(self._resume_output(self._worker, behind))

    @staticmethod
    async def _when_read(stream: FrameStream) -> None:
        """Whoever does not read what it asked for is not heard until it does."""
        await stream.drain()
        stream.release()

    @staticmethod
    async def _resume_output(worker: Worker, stream: FrameStream) -> None:
        await stream.drain()
        worker.resume_output()

    def _send_outcomes(self, outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """Results of one run in one frame, failures in another, in their order."""
        for key, _ in outcomes:
            self._restoring.forget(key)
        for (run, is_failed), group in groupby(outcomes, key=lambda pair: (pair[0][0], pair[1].failed)):
            listed = [outcome for _, outcome in group]
            kind = channel.FAILED if is_failed else channel.RESULT
            self._send([kind, run, [outcome.fields for outcome in listed]], *(outcome.pieces for outcome in listed))

    def _send(self, header: list[Any], *body: Buffer) -> None:
        self._customer.send(header, *body)

    def _record(self, event: LeaseEvent) -> list[TaskLine]:
        self._host.record(event)
        assert self.meter is not None
        return self.meter.apply(event)

    def _record_finished(self, run: str, ended: tuple[Any, ...], counters: tuple[Any, ...] = ()) -> list[TaskLine]:
        spec, now = self.spec, self._clock.monotonic_ns()
        energy_mj = self._gauges.energy_mj()
        return self._record(Finished(spec.lease, spec.generation, now, run, ended, energy_mj, counters))

    def _record_returned(self, run: str, tasks: tuple[tuple[int, int], ...]) -> None:
        now = self._clock.monotonic_ns()
        self._record(Returned(self.spec.lease, self.spec.generation, now, run, tasks))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _reason(reason: str) -> Reason:
    try:
        return Reason(reason)
    except ValueError:
        return Reason.INTERNAL_ERROR
