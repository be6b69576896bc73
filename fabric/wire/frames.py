"""Frames of the data channel: a small msgpack header and a body of opaque bytes, both length-prefixed.

    <header length: uint32 LE> <body length: uint64 LE> <header: msgpack array> <body>

Sans-IO: nothing here reads or writes a socket. Lengths are checked before anything is allocated.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgpack

PREFIX = struct.Struct("<IQ")
MAX_HEADER_BYTES = 8 << 20
MAX_BODY_BYTES = 4 << 30

Buffer = bytes | bytearray | memoryview


class FrameError(ValueError):
    """Bytes that are not a frame: too long, cut off, or with a header that is not a msgpack array."""


def pack_head(header: Sequence[Any], body_bytes: int) -> bytes:
    """Prefix and header of a frame whose body of `body_bytes` follows separately."""
    packed = cast("bytes", msgpack.packb(header, use_bin_type=True))
    if len(packed) > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(
            f"a frame of {len(packed)} + {body_bytes} bytes; at most {MAX_HEADER_BYTES} + {MAX_BODY_BYTES} are allowed"
        )
    return PREFIX.pack(len(packed), body_bytes) + packed


def pack(header: Sequence[Any], *body: Buffer) -> list[Buffer]:
    """A frame as a list of buffers to write in order (large buffers are not copied)."""
    size = sum(memoryview(b).nbytes for b in body)
    return [pack_head(header, size), *body]


def pack_bytes(header: Sequence[Any], *body: Buffer) -> bytes:
    """A frame as one piece; for small bodies."""
    return b"".join(pack(header, *body))


def unpack_lengths(prefix: Buffer) -> tuple[int, int]:
    """(header length, body length) of a 12-byte prefix, checked against the limits."""
    header_bytes, body_bytes = PREFIX.unpack(prefix)
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(
            f"a frame announces {header_bytes} + {body_bytes} bytes; "
            f"at most {MAX_HEADER_BYTES} + {MAX_BODY_BYTES} are allowed"
        )
    return header_bytes, body_bytes


def unpack_header(packed: Buffer) -> list[Any]:
    """The header; always a non-empty array whose first item is the frame's kind.

    Raises:
        FrameError: not msgpack, not an array, or without a kind.
    """
    try:
        header = msgpack.unpackb(packed, raw=False, strict_map_key=False, use_list=True)
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"a frame's header is not msgpack: {error}") from None
    if not isinstance(header, list) or not header or not isinstance(header[0], str):
        raise FrameError("a frame's header is not an array that starts with its kind")
    return header


def unpack(frame: Buffer) -> tuple[list[Any], memoryview]:
    """(header, body) of exactly one whole frame."""
    view = memoryview(frame)
    if view.nbytes < PREFIX.size:
        raise FrameError(f"a frame of {view.nbytes} bytes is cut off; its prefix alone has {PREFIX.size}")
    header_bytes, body_bytes = unpack_lengths(view[: PREFIX.size])
    start = PREFIX.size + header_bytes
    if view.nbytes != start + body_bytes:
        raise FrameError(f"a frame announces {start + body_bytes} bytes and has {view.nbytes}")
    return unpack_header(view[PREFIX.size : start]), view[start:]


def split(body: memoryview, sizes: Sequence[int]) -> Iterator[memoryview]:
    """The consecutive pieces of a body, by their sizes.

    Raises:
        FrameError: the sizes do not add up to the body.
    """
    if any(size < 0 for size in sizes) or sum(sizes) != body.nbytes:
        raise FrameError(f"pieces of {sum(sizes)} bytes announced in a body of {body.nbytes}")
    at = 0
    for size in sizes:
        yield body[at : at + size]
        at += size
