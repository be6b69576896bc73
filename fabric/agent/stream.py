"""Frames over a stream socket in asyncio: whole frames in and out, with back-pressure. Knows no frame's meaning.

A large body is received straight into its own buffer; lengths are checked before it is allocated.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from fabric.wire.frames import PREFIX, Buffer, FrameError, pack, pack_head, unpack_header, unpack_lengths

OnFrame = Callable[[list[Any], Buffer], None]
OnClosed = Callable[[Exception | None], None]

_BUFFER_BYTES = 256 << 10
_JOIN_BYTES = 64 << 10
"""Up to this size a frame's parts are joined and written at once."""
_PIECE_BYTES = 512 << 10


class FrameStream(asyncio.BufferedProtocol):
    """One connection. `on_frame` and `on_closed` are called from the event loop and must not block."""

    def __init__(self, on_frame: OnFrame, on_closed: OnClosed) -> None:
        self.on_frame = on_frame
        self.on_closed = on_closed
        self._buffer = bytearray(_BUFFER_BYTES)
        self._at = 0
        self._have = 0
        self._large: bytearray | None = None
        self._large_have = 0
        self._large_header: list[Any] = []
        self._holds = 0
        self._transport: asyncio.Transport | None = None
        self._outgoing: deque[memoryview] = deque()
        self._outgoing_bytes = 0
        self._paused = False
        self._closing = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._error: Exception | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._closing and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        return self._outgoing_bytes + (self._transport.get_write_buffer_size() if self._transport else 0)

    def send(self, header: Sequence[Any], *body: Buffer) -> None:
        """Queue one frame; when the connection is gone it is dropped. Its body must not change afterwards."""
        if not self.open:
            return
        size = sum(memoryview(part).nbytes for part in body)
        if size <= _JOIN_BYTES:
            self._put(b"".join(pack(header, *body)))
            return
        self._put(pack_head(header, size))
        for part in body:
            self._put(part)

    async def drain(self) -> None:
        """Wait until the peer has taken most of what was sent; returns at once when the connection is gone."""
        await self._drained.wait()

    def hold(self) -> None:
        """Deliver no further frames until as many `release` calls came."""
        self._holds += 1
        if self._holds == 1 and self.open and self._transport is not None:
            self._transport.pause_reading()

    def release(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            asyncio.get_running_loop().call_soon(self._resume)

    def close(self) -> None:
        """Send what is queued, then close."""
        self._closing = True
        if self._transport is not None and not self._outgoing:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        duplex = cast("asyncio.Transport", transport)  # what uvloop makes is one without being of that class
        self._transport = duplex
        duplex.set_write_buffer_limits(high=4 << 20)
        if self._holds:
            duplex.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._drained.set()
        self.on_closed(self._error or exc)

    def pause_writing(self) -> None:
        self._paused = True
        self._drained.clear()

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        if self._large is not None:
            return memoryview(self._large)[self._large_have :]
        return memoryview(self._buffer)[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._large is not None:
            self._large_have += nbytes
        else:
            self._have += nbytes
        self._deliver()

    def _put(self, data: Buffer) -> None:
        """Write now what may be written now, keep the rest without copying it."""
        assert self._transport is not None
        view = memoryview(data).cast("B")
        if not self._outgoing and not self._paused and view.nbytes <= _PIECE_BYTES:
            self._transport.write(view)
            return
        self._outgoing.append(view)
        self._outgoing_bytes += view.nbytes
        self._pump()

    def _pump(self) -> None:
        """Give the transport small pieces: it moves all that it holds whenever it could send some."""
        assert self._transport is not None
        while self._outgoing and not self._paused:
            view = self._outgoing.popleft()
            if view.nbytes > _PIECE_BYTES:
                self._outgoing.appendleft(view[_PIECE_BYTES:])
                view = view[:_PIECE_BYTES]
            self._outgoing_bytes -= view.nbytes
            self._transport.write(view)
        if self._outgoing:
            return
        if not self._paused:
            self._drained.set()
        if self._closing:
            self._transport.close()

    def _resume(self) -> None:
        if self._holds:
            return
        self._deliver()
        if not self._holds and self.open and self._transport is not None:
            self._transport.resume_reading()

    def _deliver(self) -> None:
        try:
            while not self._holds and self._next():
                pass
        except FrameError as error:
            self._error = error
            self.abort()
            return
        if self._large is None:
            self._make_room()

    def _next(self) -> bool:
        """Deliver one frame if it is complete."""
        if self._large is not None:
            if self._large_have < len(self._large):
                return False
            header, body, self._large = self._large_header, self._large, None
            self.on_frame(header, body)
            return True
        available = self._have - self._at
        if available < PREFIX.size:
            return False
        view = memoryview(self._buffer)
        header_bytes, body_bytes = unpack_lengths(view[self._at : self._at + PREFIX.size])
        head_end = self._at + PREFIX.size + header_bytes
        if head_end + body_bytes <= self._have:
            header = unpack_header(view[self._at + PREFIX.size : head_end])
            body = bytes(view[head_end : head_end + body_bytes])
            self._at = head_end + body_bytes
            self.on_frame(header, body)
            return True
        if head_end <= self._have and PREFIX.size + header_bytes + body_bytes > _BUFFER_BYTES // 2:
            self._begin_large(view, head_end, body_bytes)
        return False

    def _begin_large(self, view: memoryview, head_end: int, body_bytes: int) -> None:
        self._large_header = unpack_header(view[self._at + PREFIX.size : head_end])
        self._large = bytearray(body_bytes)
        self._large_have = self._have - head_end
        self._large[: self._large_have] = view[head_end : self._have]
        self._at = self._have = 0

    def _make_room(self) -> None:
        """Move what is left to the front, into a larger buffer when a long header needs it."""
        rest = bytes(memoryview(self._buffer)[self._at : self._have])
        if self._at or self._have == len(self._buffer):
            needed = _BUFFER_BYTES
            if len(rest) >= PREFIX.size:
                header_bytes, _ = unpack_lengths(rest[: PREFIX.size])
                needed = max(needed, PREFIX.size + header_bytes + _BUFFER_BYTES)
            if needed != len(self._buffer):
                self._buffer = bytearray(needed)
            self._buffer[: len(rest)] = rest
            self._at, self._have = 0, len(rest)


async def connect(address: str, on_frame: OnFrame, on_closed: OnClosed) -> FrameStream:
    """Connect to `unix:<path>` or `tcp:<host>:<port>`.

    Raises:
        OSError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    kind, _, rest = address.partition(":")
    if kind == "unix":
        _, stream = await loop.create_unix_connection(lambda: FrameStream(on_frame, on_closed), rest)
        return stream
    host, _, port = rest.rpartition(":")
    _, stream = await loop.create_connection(lambda: FrameStream(on_frame, on_closed), host, int(port))
    return stream
