"""What a person sees while a run goes on: one calm live block on a terminal, the job's plain lines everywhere else.

The job's own output always goes to this process's stdout and stderr; the fabric's words go to stderr, and nowhere when
`FABRIC_QUIET=1`.
"""

import queue
import sys
import time
from types import TracebackType
from typing import Any

from fabric.client.events import AttemptEnded, Event, Lines, Placed, Progress
from fabric.client.terminal import is_quiet, print_line, say
from fabric.wire.amounts import format_dc
from fabric.wire.reasons import EXPLANATIONS

CALM_S = 0.7
"""A run that is over sooner shows nothing."""


class Display:
    """One run's. Used by the waiting thread only, as a context manager around the wait."""

    def __init__(self, run: str, name: str, *, total: int | None) -> None:
        self._run = run
        self._name = name
        self._total = total
        self._began = time.monotonic()
        self._leases: list[dict[str, Any]] = []
        self._delivered = 0
        self._progress: tuple[int, int | None] | None = None
        self._quiet = is_quiet()
        self._live: Any = None
        self._spoken = False

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._spoken:
            ended = "done in" if kind is None else "ended after"
            say(f"fabric: {self._name} {ended} {self._elapsed():.1f} s, about {format_dc(self._cost_dc())}")

    def next(self, events: "queue.SimpleQueue[Event]") -> Event:
        """Wait for the next event; show what it says and what time has passed."""
        plain = self._quiet or (self._spoken and self._live is None)
        event = events.get() if plain else self._next_shown(events)
        self._note(event)
        return event

    def delivered(self) -> None:
        """One more value went to the caller."""
        self._delivered += 1

    def _next_shown(self, events: "queue.SimpleQueue[Event]") -> Event:
        while True:
            try:
                return events.get(timeout=max(0.05, CALM_S - self._elapsed()) if not self._spoken else 0.25)
            except queue.Empty:
                self._show()
                if self._live is None and self._spoken:
                    return events.get()

    def _note(self, event: Event) -> None:
        if isinstance(event, Lines):
            for stream, _, text in event.lines:
                print_line(stream, text)
        elif isinstance(event, Placed):
            self._leases.append(event.facts)
        elif isinstance(event, Progress):
            self._progress = (event.done, event.total)
        elif isinstance(event, AttemptEnded) and event.ended.retry_at is not None:
            words = EXPLANATIONS[event.ended.reason]
            say(f"fabric: {self._name} attempt {event.ended.attempt} ended: {words}; trying again")
        if self._live is not None:
            self._live.update(_text(self._block()))

    def _show(self) -> None:
        if self._elapsed() < CALM_S:
            return
        if self._live is None and not self._spoken and sys.stderr.isatty():
            self._live = _live_block()
        if not self._spoken:
            self._spoken = True
            if self._live is None:
                say(f"fabric: {self._name} ({self._run}) {self._where()}")
        if self._live is not None:
            self._live.update(_text(self._block()))

    def _block(self) -> str:
        parts = [f"{self._name}  {self._where()}", f"{self._elapsed():.0f} s", format_dc(self._cost_dc())]
        if self._total != 1:
            parts.append(f"{self._delivered} of {self._total or 'many'} tasks")
        if self._progress is not None:
            done, total = self._progress
            parts.append(f"{done} of {total}" if total else str(done))
        return " · ".join(parts)

    def _where(self) -> str:
        if not self._leases:
            return "waits for a GPU"
        first, more = self._leases[0], len(self._leases) - 1
        return f"runs on {where(first)}" + (f" and {more} more" if more else "")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _cost_dc(self) -> int:
        """An estimate from price and time since the lease joined; the bill is the ledger's."""
        now_ms = time.time_ns() // 1_000_000
        total = 0
        for lease in self._leases:
            began_ms = lease["opened_at_ms"] or lease["granted_at_ms"]
            milli = sum(gpu["share_milli"] for gpu in lease["gpus"])
            total += max(0, now_ms - began_ms) * milli * int(lease["price_dc_per_gpu_hour"]) // 3_600_000_000
        return total


def where(lease: dict[str, Any]) -> str:
    """A lease's GPUs and operator, for people."""
    gpus = lease["gpus"]
    count = f"{len(gpus)} × " if len(gpus) > 1 else ""
    simulated = " (simulated)" if gpus and gpus[0]["simulated"] else ""
    return f"{count}{gpus[0]['model'] if gpus else 'no GPU'}{simulated} at {lease['operator_name']}"


def _text(block: str) -> Any:
    from rich.text import Text

    return Text(block, overflow="ellipsis", no_wrap=True)


def _live_block() -> Any:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    live = Live("", console=console, refresh_per_second=4, transient=True, redirect_stdout=sys.stdout.isatty())
    live.start()
    return live
