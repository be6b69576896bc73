"""A sandbox child as its node sees it: frames, output lines, the shared page, and the end of the process.

How it was started is the sandbox's business; what it is for is its owner's.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import termios
from typing import Any, Protocol

from fabric.agent.dialect import ASSIGN, STAMP_BYTES
from fabric.agent.exits import Exit
from fabric.agent.output import Line, OutputPipe
from fabric.agent.page import Page
from fabric.agent.sandbox import Child
from fabric.agent.stream import FrameStream
from fabric.wire import channel
from fabric.wire.frames import Buffer

_EXIT_S = 2.0
"""How long a sandbox's outermost process may linger behind its first one."""


class Owner(Protocol):
    """Who hears of a worker. Lines come before the frame that was sent after them; nothing comes after the exit."""

    def on_frame(self, header: list[Any], body: Buffer) -> None: ...
    def on_lines(self, lines: list[Line]) -> None: ...
    def on_exit(self, ended: Exit) -> None: ...


class Worker:
    """One child. Warm until `assign` gives it to a lease, then that lease's for the rest of its life."""

    def __init__(self, child: Child) -> None:
        self.pid = child.pid
        self.wire_fd = child.wire_fd
        self.python: dict[str, Any] = {}
        self._child = child
        self._owner: Owner | None = None
        self._dead = False
        self._ready = asyncio.get_running_loop().create_future()
        self._gone = asyncio.get_running_loop().create_future()
        self._stamp = secrets.token_hex(STAMP_BYTES // 2).encode()
        self.page = self._share_page()
        self._pipes = [
            OutputPipe(child.stdout_fd, 1, self._stamp),
            OutputPipe(child.stderr_fd, 2, self._stamp),
        ]
        self.stream = FrameStream(self._on_frame, self._on_stream_closed)

    @property
    def alive(self) -> bool:
        return not self._dead

    async def start(self) -> None:
        """Begin to listen to the child."""
        loop = asyncio.get_running_loop()
        self._child.socket.setblocking(False)
        await loop.create_unix_connection(lambda: self.stream, sock=self._child.socket)
        for pipe in self._pipes:
            os.set_blocking(pipe.fd, False)
            loop.add_reader(pipe.fd, self._on_output)
        loop.add_reader(self._child.pidfd, self._on_pidfd)

    async def ready(self) -> None:
        """Wait until the child can take functions.

        Raises:
            ChildProcessError: it ended before that.
        """
        await asyncio.shield(self._ready)

    def assign(self, owner: Owner, environment: dict[str, str], *, site: str = "", network: str = "") -> None:
        """Give the child to a lease; it was nobody's before.

        Args:
            owner: hears of it from now on.
            environment: variables of the lease.
            site: folder of packages that go before all others; "" for none.
            network: socket of the way to the network; "" for none.
        """
        assert self._owner is None
        self._owner = owner
        self.stream.send([ASSIGN, environment, site, network])

    def drain_output(self) -> None:
        """Hand on every line that was written before now."""
        lines = [line for pipe in self._pipes for line in pipe.drain(self.page)]
        if lines and self._owner is not None:
            self._owner.on_lines(lines)

    def pause_output(self) -> None:
        """Let the child wait in its next print once the pipe is full."""
        for pipe in self._pipes:
            asyncio.get_running_loop().remove_reader(pipe.fd)

    def resume_output(self) -> None:
        for pipe in self._pipes:
            if not pipe.ended and self.alive:
                asyncio.get_running_loop().add_reader(pipe.fd, self._on_output)

    def kill(self) -> None:
        """SIGKILL for the child and what it started; `on_exit` follows."""
        if self.alive:
            _kill_group(self.pid)
            self._child.kill()

    async def gone(self) -> Exit:
        """Wait until the process has ended, its owner has heard everything, and nothing of it is left."""
        return await asyncio.shield(self._gone)

    def _share_page(self) -> Page:
        fd = Page.create()
        try:
            socket.send_fds(self._child.socket, [self._stamp], [fd])
            return Page(fd)
        finally:
            os.close(fd)

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        if header[0] == channel.READY:
            self.python = header[1]
            if not self._ready.done():
                self._ready.set_result(None)
            return
        self.drain_output()
        if self._owner is not None:
            self._owner.on_frame(header, body)

    def _on_output(self) -> None:
        self.drain_output()
        for pipe in self._pipes:
            if pipe.ended:
                asyncio.get_running_loop().remove_reader(pipe.fd)

    def _on_stream_closed(self, error: Exception | None) -> None:
        """The socket is at its end, or what came was no frame: the process must end too."""
        del error
        self.kill()

    def _on_pidfd(self) -> None:
        asyncio.get_running_loop().remove_reader(self._child.pidfd)
        self._dead = True
        _kill_group(self.pid)
        self._last = asyncio.ensure_future(self._bury())

    async def _bury(self) -> None:
        """Take what the dead child had sent, then tell its owner."""
        for _ in range(500):
            if not self.stream.open or not _unread_bytes(self._child.socket):
                break
            await asyncio.sleep(0.002)
        ended = Exit.of(await asyncio.to_thread(self._child.exit_code, _EXIT_S))
        self.stream.abort()
        loop = asyncio.get_running_loop()
        lines: list[Line] = []
        for pipe in self._pipes:
            loop.remove_reader(pipe.fd)
            lines += pipe.finish(self.page.running)
        if lines and self._owner is not None:
            self._owner.on_lines(lines)
        if not self._ready.done():
            self._ready.set_exception(ChildProcessError(f"the sandbox child {ended} before it was ready"))
            self._ready.exception()
        if self._owner is not None:
            self._owner.on_exit(ended)
        self.page.close()
        await asyncio.to_thread(self._child.close)
        self._gone.set_result(ended)


def _kill_group(pid: int) -> None:
    """SIGKILL for the processes that a plain child started and did not detach."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def _unread_bytes(sock: socket.socket) -> int:
    """What the child sent and nobody has received yet."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except (OSError, ValueError):
        return 0
    return count[0]
