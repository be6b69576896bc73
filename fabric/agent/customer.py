"""A lease's customer as its node speaks to it: one connection at a time, and the lines it missed between two."""

from collections import deque
from typing import Any

from fabric.agent.stream import FrameStream
from fabric.agent.tasks import Key
from fabric.wire import channel
from fabric.wire.frames import Buffer

BACKLOG_LINES = 10_000
"""Lines kept for a customer whose connection is gone."""

_LOG_BUFFER_BYTES = 8 << 20


class Customer:
    """Frames to one that is not connected are dropped: it asks for its results when it comes again."""

    def __init__(self) -> None:
        self._stream: FrameStream | None = None
        self._held = False
        self._backlog: deque[tuple[Key, list[Any]]] = deque(maxlen=BACKLOG_LINES)

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

    def log(self, key: Key, entries: list[Any]) -> FrameStream | None:
        """Send lines or keep them; returns the connection when it is so far behind that more should wait for it."""
        if self._stream is None or not self._stream.open:
            self._backlog.append((key, entries))
            return None
        self._stream.send([channel.LOG, *key, entries])
        return self._stream if self._stream.unsent_bytes > _LOG_BUFFER_BYTES else None

    def catch_up(self) -> None:
        """Send the lines that were kept."""
        while self._backlog:
            key, lines = self._backlog.popleft()
            self.send([channel.LOG, *key, lines])

    def hold(self, *, held: bool) -> None:
        """Leave what it sends in its connection, or take it again."""
        if self._stream is not None and held != self._held:
            self._held = held
            (self._stream.hold if held else self._stream.release)()

    def close(self, reason: str, message: str) -> None:
        if self._stream is not None:
            self._stream.send([channel.CLOSED, reason, message])
            self._stream.close()
