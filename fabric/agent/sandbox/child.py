"""A running child, seen from the node's process: how to speak with it, watch it and end it."""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from socket import socket
from typing import Protocol

from fabric.agent.sandbox.spec import ChildSpec
from fabric.agent.sandbox.usage import memory_bytes


@dataclass(slots=True, kw_only=True)
class Child:
    """One child and everything it started.

    Attributes:
        pid: the first process of the sandbox, in the node's numbering.
        pidfd: readable once that process is gone; under bubblewrap all others are gone then too.
        socket: the node's end of the pair; blocking, until somebody sets it otherwise.
        stdout_fd, stderr_fd: the node's ends of the pipes. A child that is not read is stopped by its full pipe.
    """

    pid: int
    pidfd: int
    socket: socket
    stdout_fd: int
    stderr_fd: int
    wire_fd: int | None = None
    """The outer end of its interface `fab0`, if it has one."""
    process: subprocess.Popen[bytes] = field(repr=False)
    launcher: object = field(repr=False)
    """Held, because the end of its thread would end the child."""

    def kill(self) -> None:
        """SIGKILL, to the whole sandbox under bubblewrap; does nothing when it is already gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def exit_code(self, timeout_s: float | None = None) -> int | None:
        """Waits; 0 to 255, 128 + n for signal n; None when it still runs after ``timeout_s``."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def memory_bytes(self) -> int:
        """What the child and everything it started hold now; see `usage.memory_bytes`."""
        return memory_bytes(self.pid)

    def close(self) -> None:
        """Ends the child, waits for it, and closes the node's ends. Once."""
        self.kill()
        self.socket.close()
        wire = () if self.wire_fd is None else (self.wire_fd,)
        for fd in (self.stdout_fd, self.stderr_fd, self.pidfd, *wire):
            os.close(fd)
        self.exit_code()


class Isolation(Protocol):
    """A way to start children, from any thread."""

    name: str

    def launch(self, spec: ChildSpec) -> Child:
        """Start a child that ends when this process does. Blocks for some ten milliseconds.

        Until its first word the child may outlive this process; so a program ends when its socket does.

        Raises:
            SandboxError: it did not start.
        """
        ...

    def close(self) -> None:
        """End the launcher, and with it every child that still runs."""
        ...
