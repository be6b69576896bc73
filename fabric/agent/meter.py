"""A lease's meter: events of the journal in, lines of a receipt out. Pure; node and agent fold the same events.

All time is one floored cumulative sum: milliseconds since OPEN. Every line is a difference of two values of it, so
task, idle and setup lines add up exactly. At any moment the time belongs to the run whose task runs, else to the run
that used the lease last. Until the environment is there the time is setup. Tasks of functions run one at a time: a
task starts when its frame was passed or the task before it ended, whichever is later. Tasks of an actor may run at
once: each moment is divided equally among those that run in it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgpack

from fabric.agent.events import Closed, Finished, Held, LeaseEvent, Opened, Passed, Prepared, Returned, Ticked
from fabric.wire.receipts import GpuLine, RunLine, TaskLine

MINIMUM_MS = 1000
"""Billed per lease and GPU at least (DESIGN §7)."""

_NS_PER_MS = 1_000_000


class MeterError(ValueError):
    """Events that cannot follow each other: a task that was not passed, time that goes back, use after the close."""


@dataclass(slots=True)
class _Frame:
    """Tasks passed together and not yet over."""

    run: str
    passed_ns: int
    tasks: list[tuple[int, int]]
    at_once: bool = False
    worked: int = 0
    """Its part of the time since it was passed, in millionths of a ms; only of frames at work at once."""
    energy: int = 0


@dataclass(slots=True)
class _RunUse:
    gpu_ms: int = 0
    idle_ms: int = 0
    setup_ms: int = 0
    untold: bool = False
    """Changed since lines were last taken."""


class LeaseMeter:
    """The fold of one lease's events."""

    def __init__(self, opened: Opened) -> None:
        self.lease = opened.lease
        self.generation = opened.generation
        self.opened_ns = opened.ns
        self.session = opened.session
        self.gpus = opened.gpus
        self.simulated = opened.simulated
        self.reason: str | None = None
        self.last_ns = opened.ns
        self._setting_up = opened.setup
        self._ms = 0
        self._runs: dict[str, _RunUse] = {opened.run: _RunUse()}
        self._last_run = opened.run
        self._flying: deque[_Frame] = deque()
        self._free_ns = opened.ns
        self._utilised_ms = (0,) * len(opened.gpus)
        self._energy_mj = (0,) * len(opened.gpus)
        self._energy_seen_mj = 0
        self._given = 0

    @property
    def closed(self) -> bool:
        return self.reason is not None

    @property
    def runs(self) -> int:
        """How many runs used the lease so far."""
        return len(self._runs)

    @property
    def flying(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """(run, [(task, attempt)]) of the frames passed and not over, oldest first."""
        return [(frame.run, list(frame.tasks)) for frame in self._flying]

    def ms_at(self, ns: int) -> int:
        """Milliseconds since OPEN, rounded down."""
        return max(0, ns - self.opened_ns) // _NS_PER_MS

    def apply(self, event: LeaseEvent) -> list[TaskLine]:
        """Take the next event of this lease; returns the lines of the tasks it ended.

        Raises:
            MeterError: it cannot follow what came before; nothing was changed.
        """
        if isinstance(event, (Opened, Held)):
            raise MeterError(f"lease {self.lease} is open already")
        if self.closed or event.ns < self.last_ns:
            raise MeterError(f"lease {self.lease}: an event at {event.ns} ns after its end or before {self.last_ns} ns")
        lines: list[TaskLine] = []
        match event:
            case Prepared():
                self._advance(event.ns)
                self._setting_up = False
            case Passed():
                self._pass(event)
            case Finished():
                lines = self._finish(event)
            case Returned():
                self._return(event)
            case Ticked():
                self._advance(event.ns)
                self._utilised_ms, self._energy_mj = tuple(event.utilised_ms), tuple(event.energy_mj)
            case Closed():
                self._close(event)
        self.last_ns = event.ns
        return lines

    def gpu_lines(self) -> tuple[GpuLine, ...]:
        """Cumulative use per GPU up to the last event."""
        shared = zip(self.gpus, self._utilised_ms, self._energy_mj, strict=True)
        return tuple(
            GpuLine(uuid, share, self._ms, utilised_ms=min(utilised, self._ms), energy_mj=energy)
            for (uuid, share), utilised, energy in shared
        )

    def run_lines(self) -> tuple[RunLine, ...]:
        """Cumulative use per run, all GPUs together, up to the last event; runs without use are left out."""
        return tuple(_line(run, use) for run, use in self._runs.items() if use.gpu_ms)

    def take_run_lines(self) -> tuple[RunLine, ...]:
        """Those of the run lines that changed since they were last taken."""
        changed = [(run, use) for run, use in self._runs.items() if use.untold]
        for _, use in changed:
            use.untold = False
        return tuple(_line(run, use) for run, use in changed)

    def to_state(self) -> bytes:
        """Everything, for `from_state`."""
        return cast(
            "bytes",
            msgpack.packb(
                [
                    [self.lease, self.generation, self.opened_ns, self.session, self.gpus, self.simulated],
                    [self.reason, self.last_ns, self._ms, self._last_run, self._free_ns, self._energy_seen_mj],
                    [[run, use.gpu_ms, use.idle_ms, use.setup_ms, use.untold] for run, use in self._runs.items()],
                    [
                        [frame.run, frame.passed_ns, frame.tasks, frame.at_once, frame.worked, frame.energy]
                        for frame in self._flying
                    ],
                    [self._utilised_ms, self._energy_mj, self._given, self._setting_up],
                ]
            ),
        )

    @classmethod
    def from_state(cls, state: bytes) -> "LeaseMeter":
        head, now, runs, flying, shown = msgpack.unpackb(state, use_list=False)
        lease, generation, opened_ns, session, gpus, simulated = head
        meter = cls(Opened(lease, generation, opened_ns, now[3], session, gpus, simulated))
        meter.reason, meter.last_ns, meter._ms, meter._last_run, meter._free_ns, meter._energy_seen_mj = now
        meter._runs = {run: _RunUse(*use) for run, *use in runs}
        meter._flying = deque(_Frame(run, passed, list(tasks), *more) for run, passed, tasks, *more in flying)
        meter._utilised_ms, meter._energy_mj, meter._given, meter._setting_up = shown
        return meter

    def _pass(self, event: Passed) -> None:
        if not event.tasks:
            raise MeterError(f"lease {self.lease}: a frame without tasks")
        if self._flying and self._flying[0].at_once != event.at_once:
            raise MeterError(f"lease {self.lease}: tasks that run at once beside tasks that follow one another")
        if not self._flying or event.at_once:
            self._advance(event.ns)
            self._see_energy(event.energy_mj)
        self._flying.append(_Frame(event.run, event.ns, list(event.tasks), event.at_once))
        self._runs.setdefault(event.run, _RunUse())

    def _finish(self, event: Finished) -> list[TaskLine]:
        if self._flying and self._flying[0].at_once:
            return self._finish_any(event)
        frames = self._frames_of(event)
        self._advance(event.ns)
        lines = self._task_lines(event, max(frames[0].passed_ns, self._free_ns))
        ended = {(task, attempt) for task, attempt, *_ in event.tasks}
        for frame in frames:
            self._remove(frame, ended)
        self._free_ns = event.ns
        self._last_run = event.run
        self._energy_seen_mj = max(self._energy_seen_mj, event.energy_mj)
        return lines

    def _finish_any(self, event: Finished) -> list[TaskLine]:
        """End tasks that worked beside others; what they get are differences of one floored sum."""
        frames = [self._frame_with(event.run, [(task, attempt)]) for task, attempt, *_ in event.tasks]
        self._advance(event.ns)
        self._see_energy(event.energy_mj)
        uuids = tuple(uuid for uuid, _ in self.gpus)
        lines: list[TaskLine] = []
        counters = event.counters or ((),) * len(event.tasks)
        for frame, (task, attempt, reason, digest, _), counts in zip(frames, event.tasks, counters, strict=True):
            before, self._given = self._given, self._given + frame.worked
            energy, frame.worked, frame.energy = frame.energy, 0, 0
            gpu_ms = (self._given // _NS_PER_MS - before // _NS_PER_MS) * len(uuids)
            times = (self.ms_at(frame.passed_ns), self.ms_at(event.ns))
            lines.append(TaskLine(event.run, task, attempt, uuids, *times, gpu_ms, energy, reason, digest, counts))
            self._remove(frame, {(task, attempt)})
        self._free_ns = event.ns
        self._last_run = event.run
        return lines

    def _see_energy(self, energy_mj: int) -> None:
        """What was used since the last look is divided among those at work at once."""
        used = max(0, energy_mj - self._energy_seen_mj)
        self._energy_seen_mj += used
        if self._flying and self._flying[0].at_once:
            part, rest = divmod(used, len(self._flying))
            for at, frame in enumerate(self._flying):
                frame.energy += part + (at < rest)

    def _frames_of(self, event: Finished) -> list[_Frame]:
        """The oldest frames, which must hold exactly these tasks and, but for the last of them, no others."""
        ended = {(task, attempt) for task, attempt, *_ in event.tasks}
        missing = set(ended)
        frames: list[_Frame] = []
        for frame in self._flying:
            if not missing or frame.run != event.run or not ended >= set(frames[-1].tasks if frames else ()):
                break
            frames.append(frame)
            missing -= set(frame.tasks)
        if missing or not frames:
            raise MeterError(f"lease {self.lease}: tasks {sorted(missing)} of {event.run} ended before older ones")
        return frames

    def _return(self, event: Returned) -> None:
        frame = self._frame_with(event.run, event.tasks)
        self._advance(event.ns)
        self._remove(frame, set(event.tasks))

    def _close(self, event: Closed) -> None:
        if self._flying:
            raise MeterError(f"lease {self.lease} is closed while tasks run")
        self._advance(event.ns)
        if self._ms < MINIMUM_MS:
            self._book(MINIMUM_MS - self._ms)
        self.reason = event.reason

    def _frame_with(self, run: str, tasks: Sequence[tuple[int, int]]) -> _Frame:
        """The oldest frame of that run that holds all these tasks."""
        wanted = set(tasks)
        for frame in self._flying:
            if frame.run == run and wanted and wanted <= set(frame.tasks):
                return frame
        raise MeterError(f"lease {self.lease}: tasks {list(tasks)} of {run} were never passed")

    def _remove(self, frame: _Frame, gone: set[tuple[int, int]]) -> None:
        frame.tasks = [task for task in frame.tasks if task not in gone]
        if not frame.tasks:
            self._flying.remove(frame)

    def _advance(self, ns: int) -> None:
        """Give the time up to `ns` to whom it belongs."""
        self._book(max(0, self.ms_at(ns) - self._ms))

    def _book(self, ms: int) -> None:
        self._ms += ms
        use = self._runs[self._flying[0].run if self._flying else self._last_run]
        use.gpu_ms += ms * len(self.gpus)
        use.untold |= ms > 0
        if ms and self._flying and self._flying[0].at_once:
            part, rest = divmod(ms * _NS_PER_MS, len(self._flying))
            for at, frame in enumerate(self._flying):
                frame.worked += part + (at < rest)
        if self._setting_up:
            use.setup_ms += ms * len(self.gpus)
        elif not self._flying:
            use.idle_ms += ms * len(self.gpus)

    def _task_lines(self, event: Finished, start_ns: int) -> list[TaskLine]:
        """Divide the observed interval [start_ns, event.ns] by the child's own durations; the last task ends it."""
        uuids = tuple(uuid for uuid, _ in self.gpus)
        durations = [max(0, worked_ns) for *_, worked_ns in event.tasks]
        whole, worked, done = event.ns - start_ns, sum(durations), 0
        energy = max(0, event.energy_mj - self._energy_seen_mj)
        lines: list[TaskLine] = []
        from_ms, from_mj = self.ms_at(start_ns), 0
        counters = event.counters or ((),) * len(event.tasks)
        for number, (task, attempt, reason, digest, _) in enumerate(event.tasks, start=1):
            done += durations[number - 1]
            part, of = (done, worked) if worked else (number, len(durations))
            to_ms, to_mj = self.ms_at(start_ns + whole * part // of), energy * part // of
            gpu_ms = (to_ms - from_ms) * len(uuids)
            energy_mj, counts = to_mj - from_mj, counters[number - 1]
            lines.append(
                TaskLine(event.run, task, attempt, uuids, from_ms, to_ms, gpu_ms, energy_mj, reason, digest, counts)
            )
            from_ms, from_mj = to_ms, to_mj
        return lines


def _line(run: str, use: _RunUse) -> RunLine:
    return RunLine(run, use.gpu_ms, use.idle_ms, use.setup_ms)
