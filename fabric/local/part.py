"""One process that the supervisor keeps alive: when it ends it is started again, later each time."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fabric.local.processes import spawn

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 30.0
STEADY_S = 60.0
"""A part that ran this long starts again without delay."""


@dataclass(slots=True)
class Part:
    """A command and its process. Times are of the monotonic clock."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    cwd: Path
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    restart_at: float = field(default=0.0)
    failures: int = 0
    said_before: int = 0
    gives_up_saying: str = ""
    """What it says when the machine was too busy for it to start in its own time: worth a second try."""

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def start(self) -> None:
        """From the main thread only."""
        self.said_before = self.log.stat().st_size if self.log.exists() else 0
        self.process = spawn(self.command, self.environ, self.cwd, self.log, signal.SIGTERM)
        self.started_at = time.monotonic()

    def ended(self, code: int, now: float) -> None:
        """Note that the process ended, and when to start it again."""
        assert self.process is not None
        self.process.returncode = code
        self.process = None
        self.failures = 0 if now - self.started_at >= STEADY_S else self.failures + 1
        self.restart_at = now + min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** max(0, self.failures - 1))

    def was_too_slow(self) -> bool:
        """Whether it has ended for the first time, and only because it did not start in its own time."""
        return self.failures == 1 and bool(self.gives_up_saying) and self.gives_up_saying in self.last_words(40)

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def last_words(self, lines: int = 4) -> str:
        """The end of what it logged since it was started, in one line."""
        with suppress(OSError):
            with self.log.open("rb") as log:
                log.seek(max(self.said_before, log.seek(0, os.SEEK_END) - 8192))
                text = log.read().decode(errors="replace").strip()
            if text:
                return " / ".join(line.strip() for line in text.splitlines()[-lines:])
        return "it said nothing"
