"""The node's side of a customer's connection that the node itself holds: frames change hands without a socket between.

What a socket would do is done here: bytes in and out in order, and a slow side slows the other.
"""

import asyncio

from fabric.agent.cutter import Cutter
from fabric.agent.passage import Passage
from fabric.agent.stream import FrameStream
from fabric.wire.frames import Buffer


class Inside(asyncio.Transport):
    """What the node's stream takes for its transport, and the passage for its way to the node."""

    def __init__(self, customer: Passage, stream: FrameStream) -> None:
        super().__init__()
        self._customer: Passage | None = customer
        self._stream = stream
        self._cutter = Cutter()
        self._waiting: list[memoryview] = []
        self._held = False
        self.way = _Way(self)
        stream.connection_made(self)

    def write(self, data: Buffer) -> None:
        """From the node to the customer."""
        if self._customer is not None:
            for piece in self._cutter.feed(data):
                self._customer.send(piece.data, first=piece.first, last=piece.last)
            self._customer.flush()

    def take(self, parts: list[bytes]) -> None:
        """From the customer to the node."""
        self._waiting += map(memoryview, parts)
        self._deliver()

    def close(self) -> None:
        self._end(clean=self._cutter.between_frames)

    def abort(self) -> None:
        self._end(clean=False)

    def is_closing(self) -> bool:
        return self._customer is None

    def pause_reading(self) -> None:
        self._held = True

    def resume_reading(self) -> None:
        self._held = False
        self._deliver()

    def get_write_buffer_size(self) -> int:
        return self._customer.unsent_bytes if self._customer is not None else 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The customer's connection has its own."""

    def customer_left(self) -> None:
        if self._customer is not None:
            self._customer = None
            self._stream.connection_lost(None)

    def customer_slow(self) -> None:
        self._stream.pause_writing()

    def customer_ready(self) -> None:
        self._stream.resume_writing()

    def _deliver(self) -> None:
        """Give the node what it takes now; while it takes nothing the customer waits."""
        while self._waiting and not self._held and self._customer is not None:
            part = self._waiting[0]
            room = self._stream.get_buffer(part.nbytes)
            size = min(room.nbytes, part.nbytes)
            room[:size] = part[:size]
            self._waiting[0] = part[size:]
            if size == part.nbytes:
                del self._waiting[0]
            self._stream.buffer_updated(size)
        if self._customer is not None:
            (self._customer.hold if self._waiting else self._customer.release)()

    def _end(self, *, clean: bool) -> None:
        customer, self._customer = self._customer, None
        if customer is not None:
            asyncio.get_running_loop().call_soon(self._stream.connection_lost, None)
            customer.node_lost(clean=clean)


class _Way:
    """The passage's way to the node."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

    def write(self, parts: list[bytes]) -> None:
        self._inside.take(parts)

    def close(self) -> None:
        self._inside.customer_left()

    def hold(self) -> None:
        self._inside.customer_slow()

    def release(self) -> None:
        self._inside.customer_ready()
