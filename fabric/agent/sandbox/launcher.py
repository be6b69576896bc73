"""Starts programs from one thread that lives as long as the isolation does.

A parent-death signal follows the *thread* that launched, not the process: a child started from a short-lived worker
thread would be killed when that thread ends. So all launches go through one thread of their own.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket, socketpair

from fabric.agent.sandbox.child import Child


class Launcher:
    """One thread. What it started dies with it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "sandbox-launcher")

    def call(self, start: Callable[[], Child]) -> Child:
        """Run ``start`` on the thread and wait for it."""
        return self._thread.submit(start).result()

    def close(self) -> None:
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a new child's socket and pipes: ours, and those that the child inherits."""

    ours: socket
    theirs: socket
    stdout_fd: int
    stdout_write_fd: int
    stderr_fd: int
    stderr_write_fd: int

    def close_ours(self) -> None:
        self.ours.close()
        os.close(self.stdout_fd)
        os.close(self.stderr_fd)

    def start(self, argv: list[str], *, env: dict[str, str], inherit: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """The program in a session of its own, with nothing open but the child's ends and ``inherit``."""
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.stdout_write_fd,
            stderr=self.stderr_write_fd,
            pass_fds=(self.theirs.fileno(), *inherit),
            start_new_session=True,
            cwd="/",
        )


@contextmanager
def ends(owner_uid: int | None = None) -> Iterator[Ends]:
    """New ends. The child's are closed here in any case, ours when starting it fails.

    With ``owner_uid`` that user owns the pipes: a program may open /dev/stdout by name only then.
    """
    ours, theirs = socketpair()
    stdout_fd, stdout_write_fd = os.pipe()
    stderr_fd, stderr_write_fd = os.pipe()
    made = Ends(ours, theirs, stdout_fd, stdout_write_fd, stderr_fd, stderr_write_fd)
    try:
        for fd in (stdout_write_fd, stderr_write_fd):
            if owner_uid is not None:
                os.fchown(fd, owner_uid, owner_uid)
        yield made
    except BaseException:
        made.close_ours()
        raise
    finally:
        theirs.close()
        os.close(stdout_write_fd)
        os.close(stderr_write_fd)
