"""A lease's customer as its node speaks to it: one connection at a time, and the lines it missed between two."""

from collections import deque
from itertools import groupby
from typing import Any

from fabric.agent.stream import FrameStream
from fabric.agent.tasks import Key
from fabric.wire import channel
from fabric.wire.frames import Buffer

BACKLOG_LINES = 10_000
"""Lines kept for a customer whose connection is gone; fewer when they are long."""
BACKLOG_CHARS = 8 << 20
UNREAD_BYTES = 64 << 20
"""A customer that leaves so much unread is not heard until it reads."""

_LOG_BUFFER_BYTES = 8 << 20


class Customer:
    """Frames to one that is not connected are dropped: it asks for its results when it comes again."""

    def __init__(self) -> None:
        self._stream: FrameStream | None = None
        self._held = False
        self._backlog: deque[tuple[Key, list[Any]]] = deque()
        self._backlog_chars = 0

    def attach(self, stream: FrameStream) -> None:
        """Speak on this connection; an older one is closed."""
        if self._stream is not None and self._stream is not stream:
            self._stream.close()
        self._stream = stream
        self._held = False

    def detach(self, stream: FrameStream) -> None:
        if self._stream is stream:
            self._stream = None

    def send(self, header: list[Any], *body: Buffer) -> None:
        if self._stream is not None:
            self._stream.send(header, *body)

    def send_if_read(self, header: list[Any]) -> None:
        """Send what the next one replaces anyhow, to who reads it."""
        if self._stream is not None and self._stream.unsent_bytes < _LOG_BUFFER_BYTES:
            self._stream.send(header)

    def unread(self) -> FrameStream | None:
        """The connection, when its customer leaves too much unread."""
        behind = self._stream is not None and self._stream.open and self._stream.unsent_bytes > UNREAD_BYTES
        return self._stream if behind else None

    def log(self, key: Key, entries: list[Any]) -> FrameStream | None:
        """Send lines or keep them; returns the connection when it is so far behind that more should wait for it."""
        if self._stream is None or not self._stream.open:
            self._keep(key, entries)
            return None
        self._stream.send([channel.LOG, *key, entries])
        return self._stream if self._stream.unsent_bytes > _LOG_BUFFER_BYTES else None

    def _keep(self, key: Key, entries: list[Any]) -> None:
        for entry in entries:
            self._backlog.append((key, entry))
            self._backlog_chars += len(entry[-1])
        while len(self._backlog) > BACKLOG_LINES or self._backlog_chars > BACKLOG_CHARS:
            self._backlog_chars -= len(self._backlog.popleft()[1][-1])

    def catch_up(self) -> None:
        """Send the lines that were kept."""
        for key, kept in groupby(self._backlog, key=lambda pair: pair[0]):
            self.send([channel.LOG, *key, [line for _, line in kept]])
        self._backlog.clear()
        self._backlog_chars = 0

    def hold(self, *, held: bool) -> None:
        """Leave what it sends in its connection, or take it again."""
        if self._stream is not None and held != self._held:
            self._held = held
            (self._stream.hold if held else self._stream.release)()

    def close(self, reason: str, message: str) -> None:
        if self._stream is not None:
            self._stream.send([channel.CLOSED, reason, message])
            self._stream.close()
