"""One open lease on its node: the customer's frames, the child that runs them, the meter that watches.

A plain asyncio object. Decisions about tasks are `TaskBook`'s, about time `LeaseMeter`'s; here they are carried out in
the order that makes them true: journal before child, output before result, result before acknowledgement.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import psutil
import structlog

from fabric.agent import dialect
from fabric.agent.envs import EnvError
from fabric.agent.events import Closed, Finished, LeaseEvent, Opened, Passed, Prepared, Returned, Ticked
from fabric.agent.exits import Exit
from fabric.agent.mesh import Mesh
from fabric.agent.meter import LeaseMeter
from fabric.agent.notice import Deadline
from fabric.agent.oom import OomWatch
from fabric.agent.output import Line
from fabric.agent.pool import Pool
from fabric.agent.sandbox import SandboxError
from fabric.agent.stream import FrameStream
from fabric.agent.streams import Streams
from fabric.agent.surroundings import Surroundings, Wish
from fabric.agent.tasks import Call, Key, Outcome, TaskBook, failed, parse_call
from fabric.agent.worker import Worker
from fabric.wire import channel
from fabric.wire.clock import Clock
from fabric.wire.frames import Buffer, FrameError
from fabric.wire.reasons import EXPLANATIONS, Reason
from fabric.wire.receipts import MAX_NUMBER, TaskLine

_log = structlog.get_logger(__name__)

WAITING_BYTES = 256 << 20
"""Arguments of waiting tasks beyond this are left in the customer's connection."""
KEPT_BYTES = 1 << 30
"""No further task is passed to the child while results of this size wait for their acknowledgement."""
PARTS_BYTES = 1 << 30
"""Parts of streams that nobody took may have this size together: a child that goes on beyond it is killed."""
FUNCTION_BYTES = 1 << 30
"""Of all functions of a lease together: they are kept in the node's own process, outside the child's limits."""
BACKLOG_LINES = 10_000
"""Lines kept for a customer whose connection is gone."""

MAX_ASKED_MS = 86_400_000
"""A job asks for a notice at most a day ahead."""

TIMEOUT_GRACE_MS = 2000
"""An actor ends a task beyond its timeout itself; so much later its process is killed."""

_INLINE_DIGEST_BYTES = 1 << 20
_LOG_BUFFER_BYTES = 8 << 20
_ENDED_BY_ACTORS = frozenset({Reason.OOM, Reason.TIMEOUT, Reason.CANCELLED_BY_USER})
_REASON_OF_STATUS = {
    channel.STATUS_VALUE: Reason.DONE,
    channel.STATUS_EXCEPTION: Reason.USER_ERROR,
    channel.STATUS_NOT_TRANSPORTABLE: Reason.RESULT_NOT_TRANSPORTABLE,
}


@dataclass(frozen=True, slots=True)
class LeaseSpec:
    """What the control plane granted. `gpus` are (UUID, share in milli-GPU); `devices` their device nodes."""

    lease: str
    generation: int
    session: str
    run: str
    gpus: tuple[tuple[str, int], ...]
    cpu_milli: int
    memory_bytes: int
    startup_timeout_ms: int
    simulated: bool
    devices: tuple[Path, ...] = ()
    wish: Wish = Wish()  # noqa: RUF009 - frozen
    notice_ms: int = 30_000


class Sensor(Protocol):
    """What the node's devices count."""

    def energy_mj(self, uuid: str) -> int:
        """Energy the device used since it was started; 0 where it does not count it. Cheap to call often."""
        ...

    def utilisation_pct(self, uuid: str) -> int: ...


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
        self._sensor = sensor
        self._clock = clock
        self._around = around
        self._book = TaskBook()
        self._functions: dict[bytes, Buffer] = {}
        self._at_once: dict[bytes, int] = {}
        self._streams = Streams()
        self._worker: Worker | None = None
        self._worker_functions: set[bytes] = set()
        self._channel: FrameStream | None = None
        self._channel_held = False
        self._backlog: deque[tuple[Key, list[Any]]] = deque(maxlen=BACKLOG_LINES)
        self._speaker: Key = (spec.run, 0)
        self._killed_for: tuple[Reason, str] | None = None
        self._closing: tuple[str, str] | None = None
        self._deadline: Deadline | None = None
        self._restoring: list[tuple[Call, set[Key]]] = []
        self._pieces: list[tuple[list[Any], bytes]] = []
        self._to_put_back: dict[Key, list[tuple[list[Any], bytes]]] = {}
        self._barren_deaths = 0
        self._timer: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._oom = OomWatch()
        self._energy_base = 0
        self._energy_open: tuple[int, ...] = ()
        self._utilised_ns = [0] * len(spec.gpus)
        self._ticked_ns = 0

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
        self._energy_open = tuple(self._sensor.energy_mj(uuid) for uuid, _ in self.spec.gpus)
        spec = self.spec
        self._ticked_ns = self._clock.monotonic_ns()
        opened = Opened(
            *(spec.lease, spec.generation, self._ticked_ns, spec.run, spec.session, spec.gpus, spec.simulated),
            setup=self._around.installs,
        )
        self._host.record(opened)
        self.meter = LeaseMeter(opened)
        if self._around.installs:
            self._spawn(self._prepare())

    def attach(self, stream: FrameStream) -> None:
        """Serve this connection of the customer; an older one is closed."""
        if self._channel is not None and self._channel is not stream:
            self._channel.close()
        self._channel = stream
        self._channel_held = False
        stream.send([channel.READY, {"lease": self.spec.lease, "generation": self.spec.generation, **self.node_info}])
        self._tell_notice()
        while self._backlog:
            (run, task), lines = self._backlog.popleft()
            stream.send([channel.LOG, run, task, lines])

    def detach(self, stream: FrameStream) -> None:
        if self._channel is stream:
            self._channel = None

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
        for at, (uuid, _) in enumerate(self.spec.gpus):
            self._utilised_ns[at] += (now - self._ticked_ns) * self._sensor.utilisation_pct(uuid) // 100
        self._ticked_ns = now
        utilised = tuple(ns // 1_000_000 for ns in self._utilised_ns)
        self._record(Ticked(self.spec.lease, self.spec.generation, now, utilised, self._energy_by_gpu()))
        self._watch_memory()

    async def close(self, reason: str, message: str = "") -> None:
        """End the lease: kill the child, bill to this moment, tell the customer. Twice is once."""
        if self._closing is not None:
            return
        self._closing = (reason, message)
        if self._timer is not None:
            self._timer.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
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
        if self._channel is not None:
            self._channel.send([channel.CLOSED, reason, message])
            self._channel.close()
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
        reason, message, code = self._cause(ended)
        self._killed_for = None
        self._settle_dead(self._book.ground(), number, (reason, message, code))
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
                self._on_function(fields[0], body, *fields[1:])
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

    def _on_function(self, digest: bytes, body: Buffer, at_once: int = 0) -> None:
        if not isinstance(at_once, int) or not 0 <= at_once <= channel.MAX_AT_ONCE:
            raise FrameError(f"an actor runs 1 to {channel.MAX_AT_ONCE} of its tasks at once, not {at_once!r}")
        if hashlib.sha256(body).digest() != digest:
            raise FrameError("a function's digest is not the SHA-256 of its bytes")
        others = sum(memoryview(known).nbytes for other, known in self._functions.items() if other != digest)
        if others + memoryview(body).nbytes > FUNCTION_BYTES:
            raise FrameError(
                f"the functions of a lease may have {FUNCTION_BYTES} bytes together; pass data as arguments"
            )
        self._functions[digest] = body
        self._at_once[digest] = at_once

    def _on_call(self, call: Call) -> None:
        call.at_once = self._at_once.get(call.digest, 0)
        again = [(call.run, task.task) for task in call.tasks if task.attempt > 1] if not call.at_once else []
        wanted = [[dialect.WANTED, self.spec.lease, self.spec.generation, *key] for key in again]
        if wanted and all(self._host.forward(header) for header in wanted):
            self._restoring.append((call, set(again)))
        else:
            self._begin_call(call)

    def on_stored(self, number: int, problem: str) -> None:
        """The agent says how far what the child sent is durable."""
        if self._worker is not None:
            self._worker.page.store(max(number, self._worker.page.stored), problem)

    def on_piece(self, digest: str, body: Buffer) -> None:
        self._pieces.append(([channel.PIECE, digest], bytes(body)))

    def on_checkpoint(self, run: str, task: int, found: bool, problem: str, body: Buffer) -> None:
        """The newest checkpoint of a task that is tried again, or that there is none: now it may begin.

        Kept until the task is over, and sent with its call: the child of this moment may die before it begins.
        """
        if found:
            self._to_put_back[run, task] = [*self._pieces, ([channel.CHECKPOINT, run, task], bytes(body))]
        self._pieces = []
        for call, waiting in list(self._restoring):
            if (run, task) not in waiting:
                continue
            if problem:
                _log.warning("a checkpoint could not be put back", run=run, task=task, problem=problem)
            waiting.discard((run, task))
            if not waiting:
                self._restoring.remove((call, waiting))
                self._begin_call(call)
        self._pump()

    def _keep(self, kind: str, run: str, fields: list[Any], body: Buffer) -> None:
        """A piece or a manifest of the task that runs; the agent stores it."""
        task, attempt, number = fields
        if not self._book.is_flying(run, task, attempt):
            raise FrameError("a checkpoint of a task that the child does not run")
        what = dialect.PIECE if kind == channel.PIECE else dialect.CHECKPOINT
        self._host.forward([what, self.spec.lease, self.spec.generation, run, int(task), int(number)], body)

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
        self._hold_channel(self._book.waiting_bytes > WAITING_BYTES)

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
        self._record(Passed(self.spec.lease, self.spec.generation, now, call.run, tasks, self._energy_mj(), at_once))
        if call.digest not in self._worker_functions:
            self._worker_functions.add(call.digest)
            actor = [call.at_once] if at_once else []
            worker.stream.send([channel.FN, call.digest, *actor], self._functions[call.digest])
        for task in call.tasks:
            for header, piece in self._to_put_back.get((call.run, task.task), ()):
                worker.stream.send(header, piece)
        worker.stream.send(call.header(), *call.body)
        if call.timeout_ms and self._timer is None:
            self._arm(call.timeout_ms)

    def _hold_channel(self, hold: bool) -> None:
        if self._channel is not None and hold != self._channel_held:
            self._channel_held = hold
            (self._channel.hold if hold else self._channel.release)()

    def _on_child_frame(self, header: list[Any], body: Buffer) -> None:
        kind, run, *fields = header
        match kind:
            case channel.RESULT if memoryview(body).nbytes > _INLINE_DIGEST_BYTES and self._worker is not None:
                self._worker.stream.hold()
                self._spawn(self._digest_then_finish(self._worker, run, fields[0], body))
            case channel.RESULT:
                pieces = _cut(fields[0], body)
                self._finish(run, fields[0], pieces, [hashlib.sha256(piece).digest() for piece in pieces])
            case channel.PROGRESS:
                task, done, total = fields
                self._send([channel.PROGRESS, str(run), int(task), int(done), None if total is None else int(total)])
            case channel.PART:
                self._on_part(str(run), fields, body)
            case channel.PIECE | channel.CHECKPOINT:
                self._keep(str(kind), str(run), fields, body)
            case channel.ASK_NOTICE:
                self._ask_notice(run)
            case channel.FAILED:
                task, attempt, reason, message, code = fields[0][0]
                why = Reason(reason) if self._book.at_once and reason in _ENDED_BY_ACTORS else Reason.OOM
                if type(code) is int and 0 < code < 256:
                    why = Reason.USER_ERROR  # a program of the customer's ended by itself
                self._finish_failed(run, failed(task, attempt, why, str(message), code))
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
            pieces = _cut(entries, body)
            digests = [await asyncio.to_thread(_sha256, piece) for piece in pieces]
            self._finish(run, entries, pieces, digests)
        except (FrameError, TypeError, ValueError, IndexError) as error:
            _log.warning("child sent nonsense", lease=self.spec.lease, error=str(error))
            self._kill(Reason.CRASHED, "the process that runs the function broke its protocol")
        finally:
            worker.stream.release()

    def _finish(self, run: str, entries: list[Any], pieces: list[memoryview], digests: list[bytes]) -> None:
        """Results of consecutive tasks of the oldest frame: meter, keep, send, go on."""
        now = self._clock.monotonic_ns()
        self._book.land(run, [(entry[0], entry[1]) for entry in entries])
        if self._streams.any:
            streamed = (self._streams.digest(run, e[0], e[1], piece) for e, piece in zip(entries, pieces, strict=True))
            digests = [whole or plain for whole, plain in zip(streamed, digests, strict=True)]
        ended = tuple(
            (task, attempt, str(self._reason_for(run, task, status)), digest, max(0, end_ns - start_ns))
            for (task, attempt, status, start_ns, end_ns, *_), digest in zip(entries, digests, strict=True)
        )
        spec, counters = self.spec, tuple(counters_of(entry[7:]) for entry in entries)
        used_mj = self._energy_mj()
        lines = self._record(
            Finished(spec.lease, spec.generation, now, run, ended, used_mj, counters if any(counters) else ())
        )
        outcomes: list[tuple[Key, Outcome]] = []
        for entry, piece, line in zip(entries, pieces, lines, strict=True):
            outcome = self._outcome(run, entry, piece, line)
            self._book.finish(run, line.task, line.attempt, outcome)
            outcomes.append(((run, line.task), outcome))
        self._barren_deaths = 0
        self._send_outcomes(outcomes)
        self._after_finish()

    def _reason_for(self, run: str, task: int, status: int) -> Reason:
        return Reason.CANCELLED_BY_USER if (run, task) in self._book.doomed else _REASON_OF_STATUS[status]

    def _outcome(self, run: str, entry: list[Any], piece: memoryview, line: TaskLine) -> Outcome:
        if (run, line.task) in self._book.doomed:
            return failed(line.task, line.attempt, Reason.CANCELLED_BY_USER, "cancelled while it ran")
        fields = [line.task, line.attempt, entry[2], line.start_ms, line.end_ms, line.gpu_ms, entry[6]]
        return Outcome(False, fields, piece)

    def _finish_failed(self, run: str, outcome: Outcome) -> None:
        task, attempt, reason, *_ = outcome.fields
        self._book.land(run, [(task, attempt)])
        now = self._clock.monotonic_ns()
        ended = ((task, attempt, reason, b"", 1),)
        self._record(Finished(self.spec.lease, self.spec.generation, now, run, ended, self._energy_mj()))
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

    def _settle_dead(self, grounded: list[Call], number: int, cause: tuple[Reason, str, int | None]) -> None:
        """Book the frames a dead child had. `number` is the task it ran; those before it lost their results.

        An actor's were all at work.
        """
        for call in [call for call in grounded if call.at_once]:
            grounded.remove(call)
            self._finish_grounded(call, cause)
        rest: list[Call] = []
        started = False
        now = self._clock.monotonic_ns()
        for call in grounded:
            over = [task for at, task in enumerate(call.tasks, start=call.first) if at <= number]
            if over:
                started = True
                outcomes = [self._lost(task.task, task.attempt) for task in over]
                if call.first + len(over) - 1 == number:
                    outcomes[-1] = failed(over[-1].task, over[-1].attempt, *cause)
                ended = tuple((o.fields[0], o.fields[1], o.fields[2], b"", int(o is outcomes[-1])) for o in outcomes)
                event = Finished(self.spec.lease, self.spec.generation, now, call.run, ended, self._energy_mj())
                self._record(event)
                for outcome in outcomes:
                    self._fail(call.run, outcome)
            call.tasks = call.tasks[len(over) :]
            if call.tasks:
                tasks = tuple((task.task, task.attempt) for task in call.tasks)
                self._record(Returned(self.spec.lease, self.spec.generation, now, call.run, tasks))
                rest.append(call)
        self._barren_deaths = 0 if started or not grounded else self._barren_deaths + 1
        self._requeue(rest, cause)

    def _finish_grounded(self, call: Call, cause: tuple[Reason, str, int | None]) -> None:
        (task,) = call.tasks
        reason = (Reason.CANCELLED_BY_USER, "cancelled while it ran", None)
        why = failed(task.task, task.attempt, *(reason if (call.run, task.task) in self._book.doomed else cause))
        ended = ((task.task, task.attempt, why.fields[2], b"", 1),)
        now = self._clock.monotonic_ns()
        self._record(Finished(self.spec.lease, self.spec.generation, now, call.run, ended, self._energy_mj()))
        self._fail(call.run, why)

    def _requeue(self, calls: list[Call], cause: tuple[Reason, str, int | None]) -> None:
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

    @staticmethod
    def _lost(task: int, attempt: int) -> Outcome:
        message = "its result was lost when the process died while it ran the task behind it"
        return failed(task, attempt, Reason.INTERNAL_ERROR, message)

    def _cause(self, ended: Exit) -> tuple[Reason, str, int | None]:
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

    def _ask_notice(self, after_ms: Any) -> None:
        """The job wants to be preempted: it costs nobody but its own customer."""
        if not isinstance(after_ms, int) or not 0 <= after_ms <= MAX_ASKED_MS:
            raise FrameError(f"a notice is asked for within 0 to {MAX_ASKED_MS} ms, not {after_ms!r}")
        self._spawn(self._give_notice_after(after_ms / 1000))

    async def _give_notice_after(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.give_notice(Reason.PREEMPTED, self.spec.notice_ms)

    def _on_deadline(self, reason: Reason) -> None:
        self._closer = asyncio.ensure_future(self.close(reason, EXPLANATIONS[reason]))

    def _kill(self, reason: Reason, message: str) -> None:
        if self._worker is not None and self._killed_for is None:
            self._killed_for = (reason, message)
            self._worker.kill()

    def _arm(self, delay_ms: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._check_timeout)

    def _check_timeout(self) -> None:
        """Kill the child if its task has run too long, else look again when it could have."""
        self._timer = None
        if self._worker is None:
            return
        if self._book.at_once:
            self._check_timeouts_at_once()
            return
        page = self._worker.page
        running = self._book.running(page.running)
        if running is None:
            delays = [call.timeout_ms for call in self._book.flying if call.timeout_ms]
        else:
            call, _ = running
            left = call.timeout_ms - (self._clock.monotonic_ns() - page.started_ns) / 1e6
            if call.timeout_ms and left <= 0:
                self._kill(Reason.TIMEOUT, f"it ran longer than its timeout of {call.timeout_ms} ms")
                return
            delays = [left] if call.timeout_ms else [c.timeout_ms for c in self._book.flying if c.timeout_ms]
        if delays:
            self._arm(max(1.0, min(delays)))

    def _check_timeouts_at_once(self) -> None:
        now = self._clock.monotonic_ns()
        timed = [call for call in self._book.flying if call.timeout_ms]
        left = [call.timeout_ms + TIMEOUT_GRACE_MS - (now - call.passed_ns) / 1e6 for call in timed]
        late = next((call for call, ms in zip(timed, left, strict=True) if ms <= 0), None)
        if late is not None:
            self._kill(Reason.TIMEOUT, f"a task ran longer than its timeout of {late.timeout_ms} ms")
        elif left:
            self._arm(max(1.0, min(left)))

    def _watch_memory(self) -> None:
        limit = self.spec.memory_bytes
        if not limit or self._worker is None:
            return
        used = _resident_bytes(self._worker.pid)
        if used > limit:
            self._kill(Reason.OOM, f"it used {used} bytes of memory; the lease has {limit}")

    def _speaker_of(self, number: int) -> Key:
        running = self._book.running(number)
        if running is not None:
            self._speaker = (running[0].run, running[1].task)
        return self._speaker

    def _send_log(self, key: Key, entries: list[list[Any]]) -> None:
        if self._channel is None or not self._channel.open:
            self._backlog.append((key, entries))
            return
        self._channel.send([channel.LOG, *key, entries])
        if self._channel.unsent_bytes > _LOG_BUFFER_BYTES and self._worker is not None:
            self._worker.pause_output()
            self._spawn(self._resume_output(self._worker, self._channel))

    @staticmethod
    async def _resume_output(worker: Worker, stream: FrameStream) -> None:
        await stream.drain()
        worker.resume_output()

    def _send_outcomes(self, outcomes: Sequence[tuple[Key, Outcome]]) -> None:
        """Results of one run in one frame, failures in another, in their order."""
        for key, _ in outcomes:
            self._to_put_back.pop(key, None)
        for (run, is_failed), group in groupby(outcomes, key=lambda pair: (pair[0][0], pair[1].failed)):
            listed = [outcome for _, outcome in group]
            kind = channel.FAILED if is_failed else channel.RESULT
            self._send([kind, run, [outcome.fields for outcome in listed]], *(outcome.pieces for outcome in listed))

    def _send(self, header: list[Any], *body: Buffer) -> None:
        if self._channel is not None:
            self._channel.send(header, *body)

    def _record(self, event: LeaseEvent) -> list[TaskLine]:
        self._host.record(event)
        assert self.meter is not None
        return self.meter.apply(event)

    def _energy_by_gpu(self) -> tuple[int, ...]:
        now = (self._sensor.energy_mj(uuid) for uuid, _ in self.spec.gpus)
        return tuple(max(0, mj - base) for mj, base in zip(now, self._energy_open, strict=True))

    def _energy_mj(self) -> int:
        return sum(self._energy_by_gpu())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def counters_of(given: Sequence[Any]) -> tuple[tuple[str, int], ...]:
    """A task's named counts as its child states them: shown, never billed, and of bounded size.

    Raises:
        FrameError: they are something else.
    """
    if not given or not given[0]:
        return ()
    pairs = tuple((name, count) for name, count in given[0])
    fine = all(type(name) is str and len(name) <= 40 and type(n) is int and 0 <= n <= MAX_NUMBER for name, n in pairs)
    if len(pairs) > channel.MAX_COUNTERS or not fine:
        raise FrameError("a task's counts are a few names with whole numbers")
    return pairs


def _cut(entries: Sequence[Sequence[Any]], body: Buffer) -> list[memoryview]:
    """Each task's part of a RESULT's body.

    Raises:
        FrameError: the sizes do not add up to the body.
    """
    view = memoryview(body)
    sizes = [sum(entry[6]) for entry in entries]
    if sum(sizes) != view.nbytes or any(min(entry[6], default=0) < 0 for entry in entries):
        raise FrameError("the sizes of a result's pieces do not add up to its body")
    at, cut = 0, []
    for size in sizes:
        cut.append(view[at : at + size])
        at += size
    return cut


def _sha256(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _reason(reason: str) -> Reason:
    try:
        return Reason(reason)
    except ValueError:
        return Reason.INTERNAL_ERROR


def _resident_bytes(pid: int) -> int:
    """Memory of a process and all it started."""
    used = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            used += each.memory_info().rss
    except psutil.Error:
        return used
    return used
