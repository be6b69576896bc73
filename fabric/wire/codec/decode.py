"""Header and buffers to value. The header is walked against the limits first; then entries are built from the last to
the first, so that whatever an entry refers to is there before it, with no recursion.
"""

from collections.abc import Sequence
from typing import Any

import msgpack

from fabric.wire.codec import rebuild
from fabric.wire.codec.errors import CodecError
from fabric.wire.codec.kinds import Kind
from fabric.wire.codec.scan import DEFAULT_LIMITS, FIXED_SIZES, Document, Limits, scan
from fabric.wire.codec.sources import TypeSource

Buffer = bytes | bytearray | memoryview


def decode(header: Buffer, buffers: Sequence[Buffer], *, types: TypeSource, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value that was encoded; classes that ``types`` does not know become ``Record`` or ``RemoteError``.

    Raises:
        CodecError: malformed, beyond a limit, or a library is missing here. Nothing else, whatever the bytes.
    """
    header = bytes(header)
    try:
        if header and FIXED_SIZES[header[0]] == len(header) and not buffers:
            return msgpack.unpackb(header, unicode_errors="surrogatepass")
        return _Reader(header, [memoryview(b).cast("B") for b in buffers], types, limits).read()
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"malformed: {type(error).__name__}: {error}") from error


def decode_exception(
    header: Buffer, buffers: Sequence[Buffer], *, types: TypeSource, limits: Limits = DEFAULT_LIMITS
) -> BaseException:
    """The exception that was encoded, its worker's traceback attached as a note.

    Raises:
        CodecError: as `decode`, or the bytes are a value that is no exception.
    """
    exception = decode(header, buffers, types=types, limits=limits)
    if not isinstance(exception, BaseException):
        raise CodecError(f"a {type(exception).__qualname__} where an exception was announced")
    return exception


class _Reader:
    """Builds one value."""

    def __init__(self, header: bytes, buffers: list[memoryview], types: TypeSource, limits: Limits) -> None:
        self._header = header
        self._buffers: dict[int, memoryview] = dict(enumerate(buffers))
        self._types = types
        self._limits = limits

    def read(self) -> Any:
        self._check_buffers()
        documents, kinds = scan(self._header, self._limits)
        built: list[Any] = [None] * len(kinds)
        for number in range(len(kinds) - 1, -1, -1):
            fields = self._unpack(documents[number + 1], built)
            built[number] = self._build(kinds[number], fields)
        value = self._unpack(documents[0], built)
        if self._buffers:
            raise CodecError(f"{len(self._buffers)} buffers that nothing refers to")
        return value

    def _check_buffers(self) -> None:
        size = sum(buffer.nbytes for buffer in self._buffers.values())
        if len(self._buffers) > self._limits.buffers or size > self._limits.buffer_bytes:
            raise CodecError(
                f"{len(self._buffers):,} buffers of {size:,} bytes; "
                f"{self._limits.buffers:,} of {self._limits.buffer_bytes:,} are allowed"
            )

    def _unpack(self, document: Document, built: list[Any]) -> Any:
        number = document.first_reference - 1

        def referred(_code: int, _data: bytes) -> Any:
            nonlocal number
            number += 1
            return built[number]

        return msgpack.unpackb(
            self._header[document.start : document.end],
            ext_hook=referred,
            strict_map_key=False,
            unicode_errors="surrogatepass",
        )

    def _build(self, kind: int, fields: Any) -> Any:
        if kind in rebuild.OF_FIELDS:
            return rebuild.OF_FIELDS[Kind(kind)](fields)
        if kind in rebuild.OF_TYPES:
            return rebuild.OF_TYPES[Kind(kind)](fields, self._types)
        number, inner = fields
        buffer = self._buffers.pop(number, None)
        if buffer is None:
            raise CodecError(f"buffer {number!r} is missing or used twice")
        return rebuild.OF_BUFFER[Kind(kind)](inner, buffer)
