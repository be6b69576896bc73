"""Cuts what a node sends into WebSocket messages: one per frame, a long one in fragments. Sans IO.

It looks at the lengths of frames and at nothing inside; it holds no more than one fragment.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fabric.wire.frames import PREFIX, Buffer, unpack_lengths

FRAGMENT_BYTES = 256 << 10
"""What is sent to customers in one piece; longer frames are fragmented."""


class Piece(NamedTuple):
    """A whole message, or a fragment of one."""

    data: bytes
    first: bool
    last: bool


class Cutter:
    """One node's stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0

    @property
    def between_frames(self) -> bool:
        """Whether everything that came has left as whole messages."""
        return not self._buffer and not self._left

    def feed(self, data: Buffer) -> Iterator[Piece]:
        """The pieces that can leave now.

        Raises:
            FrameError: what came is no frame.
        """
        self._buffer += data
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> Piece | None:
        have = len(self._buffer)
        if self._left:
            return self._fragment(first=False) if have else None
        if have < PREFIX.size:
            return None
        size = PREFIX.size + sum(unpack_lengths(self._buffer[: PREFIX.size]))
        if size <= FRAGMENT_BYTES:
            return Piece(self._cut(size), True, True) if have >= size else None
        self._left = size
        return self._fragment(first=True)

    def _fragment(self, *, first: bool) -> Piece:
        data = self._cut(min(len(self._buffer), self._left, FRAGMENT_BYTES))
        self._left -= len(data)
        return Piece(data, first, not self._left)

    def _cut(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data
