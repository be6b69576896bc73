"""The process above the supervisor: when the supervisor is gone, however it went, nothing below it stays.

It starts the supervisor as its child, adopts every orphan, and kills all that is left once the supervisor has ended. If
the guard itself is killed, the kernel tells the supervisor, which then ends everything in good order.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from fabric.local.home import Home, try_lock
from fabric.local.processes import adopt_orphans, die_with_parent, end_descendants
from fabric.local.settings import LocalSettings
from fabric.local.supervisor import supervise

GRACE_S = 2.0


def guard(settings: LocalSettings, start: str, supervisor: Callable[[LocalSettings, str], int] = supervise) -> int:
    """Run a supervisor and end with it; returns its exit code.

    Args:
        settings: of the embedded fabric.
        start: names this attempt to start.
        supervisor: what runs in the child.
    """
    home = Home(settings.home)
    home.make()
    if try_lock(home.alive_lock) is None:
        sys.stderr.write(f"another embedded fabric lives in {home.root}\n")
        return 1
    adopt_orphans()
    me = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(signal.SIGTERM, me)
        _leave(supervisor(settings, start))
    _pass_on_signals(child)
    code = _wait_for(child)
    end_descendants(GRACE_S)
    _clean(home)
    return code


def _leave(code: int) -> None:
    """End the forked child without running what its parent set up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _pass_on_signals(child: int) -> None:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)


def _wait_for(child: int) -> int:
    """The child's exit code; orphans that end meanwhile are reaped too."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _clean(home: Home) -> None:
    """A supervisor that was killed could not say that it is over, nor remove Ray's folder."""
    status = home.read_status()
    if status.state not in ("stopped", "failed"):
        home.write_status(replace(status, state="stopped", pids={}))
        if status.ray_folder.startswith("/tmp/fabric-"):  # noqa: S108 - made by the supervisor
            shutil.rmtree(Path(status.ray_folder), ignore_errors=True)
