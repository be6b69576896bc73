"""The functions that a lease's customer sent: checked, bounded, by digest."""

import hashlib

from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError

FUNCTION_BYTES = 1 << 30
"""Of all functions of a lease together: they are kept in the node's own process, outside the child's limits."""


class Functions:
    """They stay for the life of the lease: each child it gets may need them."""

    def __init__(self) -> None:
        self._bodies: dict[bytes, Buffer] = {}
        self._at_once: dict[bytes, int] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._bodies

    def __getitem__(self, digest: bytes) -> Buffer:
        return self._bodies[digest]

    def at_once(self, digest: bytes) -> int:
        """How many tasks of this actor may be at work together; 0 for a function."""
        return self._at_once.get(digest, 0)

    def add(self, digest: bytes, body: Buffer, at_once: int = 0) -> None:
        """Keep one.

        Raises:
            FrameError: it is not what its digest says, too large with the others, or no actor of a kind there is.
        """
        if not isinstance(at_once, int) or not 0 <= at_once <= channel.MAX_AT_ONCE:
            raise FrameError(f"an actor runs 1 to {channel.MAX_AT_ONCE} of its tasks at once, not {at_once!r}")
        if hashlib.sha256(body).digest() != digest:
            raise FrameError("a function's digest is not the SHA-256 of its bytes")
        others = sum(memoryview(known).nbytes for other, known in self._bodies.items() if other != digest)
        if others + memoryview(body).nbytes > FUNCTION_BYTES:
            raise FrameError(
                f"the functions of a lease may have {FUNCTION_BYTES} bytes together; pass data as arguments"
            )
        self._bodies[digest] = body
        self._at_once[digest] = at_once
