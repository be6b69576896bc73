"""Finding the embedded fabric of this machine, or starting it and waiting until it takes work."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fabric.local.home import Home, Status, hold_client, is_locked, locked
from fabric.local.requirements import check_requirements
from fabric.local.settings import CONTROL_KEYS, LocalSettings
from fabric.wire.errors import ServiceError
from fabric.wire.ids import new_id

START_S = 180.0
STOP_S = 60.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Embedded:
    """Where the embedded fabric is, and its customer's key."""

    url: str
    api_key: str
    home: Home

    def is_over(self) -> bool:
        """Whether it ended, or is about to; another one may run in its place, at another address."""
        status = self.home.read_status()
        return not (is_running(self.home) and status.state in ("starting", "ready") and status.url == self.url)


def ensure(session: str, say: Callable[[str], None]) -> Embedded:
    """The running embedded fabric; started when there is none. This process counts as its client from now on.

    Args:
        session: this process's session; the fabric learns through it when the process is gone.
        say: shows a line to a person.

    Raises:
        InvalidRequest: what it needs is not installed, or a setting is wrong; says what to do.
        ServiceError: it does not start; says why.
    """
    settings = LocalSettings.from_environ(os.environ)
    home = Home(settings.home)
    if not is_running(home):
        check_requirements()
    home.make()
    _HELD.append(hold_client(home, session))
    return bring_up(home, say)


def bring_up(home: Home, say: Callable[[str], None]) -> Embedded:
    """Start it unless it runs, and wait until it is ready."""
    status = home.read_status()
    if not (status.state == "ready" and is_running(home)):
        with locked(home.start_lock):
            status = _running(home, say) or _started(home, say)
    return Embedded(status.url, home.read_api_key(), home)


def is_running(home: Home) -> bool:
    """Whether guard or supervisor live."""
    return home.root.is_dir() and is_locked(home.alive_lock)


def wait_until_gone(home: Home, seconds: float) -> bool:
    """Whether nothing of it lives, after waiting up to `seconds`."""
    until = time.monotonic() + seconds
    while is_running(home):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


_HELD: list[int] = []
"""Locks that say this process is a client; closed by its end."""


def _running(home: Home, say: Callable[[str], None]) -> Status | None:
    """The status of one that runs, once it is ready; None when there is none, or it has just ended."""
    if not is_running(home):
        return None
    status = home.read_status()
    if status.state == "starting":
        say("fabric: waiting for the embedded fabric…")
    until = time.monotonic() + START_S
    while status.state != "ready":
        if not is_running(home):
            return None
        if time.monotonic() > until:
            raise ServiceError(f"the embedded fabric is {status.state} since {START_S:.0f} s; see {home.logs}")
        time.sleep(POLL_S)
        status = home.read_status()
    return status


def _started(home: Home, say: Callable[[str], None]) -> Status:
    say("fabric: starting the embedded fabric…")
    began = time.monotonic()
    start = new_id("start")
    process = _spawn_guard(home, start)
    while True:
        status = home.read_status()
        if status.start == start and status.state == "ready":
            say(f"fabric: the embedded fabric is ready ({time.monotonic() - began:.1f} s)")
            return status
        if status.start == start and status.state == "failed":
            wait_until_gone(home, STOP_S)
            raise ServiceError(status.error)
        if process.poll() is not None:
            raise ServiceError(f"the embedded fabric did not start: {_tail(home.logs / 'supervisor.log')}")
        if time.monotonic() - began > START_S:
            raise ServiceError(f"the embedded fabric was not ready within {START_S:.0f} s; see {home.logs}")
        time.sleep(POLL_S)


def _spawn_guard(home: Home, start: str) -> "subprocess.Popen[bytes]":
    """Start it detached from this process, its terminal and its signals."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FABRIC_", "PYTHON"))}
    environ |= {k: v for k, v in os.environ.items() if k in _PASSED_ON}
    environ |= {"FABRIC_HOME": str(home.root), "PYTHONPATH": str(Path(__file__).parents[2])}
    with (home.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fabric.local", start],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            cwd=home.root,
            start_new_session=True,
        )
    _GUARDS.append(process)
    return process


_OWN_KEYS = frozenset(
    {
        "FABRIC_SERVING_IDLE_S",
        "FABRIC_EMBEDDED_LINGER_S",
        "FABRIC_EMBEDDED_NODES",
        "FABRIC_SIMULATED_GPUS",
        "FABRIC_ISOLATION",
        "FABRIC_PORT",
    }
)
_PASSED_ON = _OWN_KEYS | CONTROL_KEYS
_GUARDS: "list[subprocess.Popen[bytes]]" = []
"""Kept so that this process reaps a guard that ends before it."""


def _tail(path: Path, lines: int = 5) -> str:
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:]
        if text:
            return " / ".join(text)
    return f"see {path}"
