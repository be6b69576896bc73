"""Value to header and buffers. One pass in C for what msgpack knows; the rest is described, entry by entry.

When it fails it looks for the place: only then is the value walked in Python. A value that appears twice arrives twice;
one that contains itself is refused, as is what a receiver with the same limits would refuse.
"""

from typing import Any, NamedTuple, cast

import msgpack

from fabric.wire.codec import exceptions
from fabric.wire.codec.describe import Described, describe, parts
from fabric.wire.codec.errors import CodecError, NotTransportable
from fabric.wire.codec.hints import Unfit
from fabric.wire.codec.kinds import Kind
from fabric.wire.codec.scan import ALIGNMENT, DEFAULT_LIMITS, PADDING, Limits, scan

LARGE_BYTES = 64 << 10
"""From this size on, a result that is one `bytes` travels as a buffer, uncopied."""

_SCALARS = frozenset((type(None), bool, float))
_WORD = 1 << 63


class Encoded(NamedTuple):
    """A value on the wire. Written one after the other, the first buffer starts at a multiple of 64 bytes."""

    header: bytes
    buffers: tuple[memoryview | bytes, ...]


def encode(value: Any, *, path: str = "result", limits: Limits = DEFAULT_LIMITS) -> Encoded:
    """The wire form of a value; array buffers are views of the value's own memory wherever it is contiguous.

    Raises:
        NotTransportable: some part of it does not travel; ``path`` names the value in the message.
    """
    cls = type(value)
    if cls in _SCALARS or (cls is int and -_WORD <= value < _WORD) or (cls is str and len(value) < LARGE_BYTES):
        return Encoded(cast("bytes", msgpack.packb(value, unicode_errors="surrogatepass")), ())
    try:
        return _Writer(limits).write(value)
    except (Unfit, CodecError, ValueError, OverflowError, RecursionError, BufferError) as error:
        raise _Search(limits, path).run(value) or _refusal(path, value, error) from None


def encode_exception(exception: BaseException, traceback: str) -> Encoded:
    """The wire form of an exception; ``traceback`` is the worker's, as text. Never fails: what does not travel
    of its arguments is sent as its ``repr``, of its attributes is left out.
    """
    module, qualname, arguments, attributes, message, text = exceptions.fields(exception, traceback)
    sent = [argument if _travels(argument) else _repr(argument) for argument in arguments]
    kept = {name: value for name, value in attributes.items() if _travels(value)}
    described = Described(Kind.EXCEPTION, [module, qualname, sent, kept, message, text])
    return _Writer(DEFAULT_LIMITS).write_described(described, exception)


class _Writer:
    """Collects the entries and buffers of one value."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries: list[tuple[Any, int]] = []  # fields, and the entry it was found in (-1: the value itself)
        self._sources: list[Any] = []  # keeps what was described alive, so that identities stay unique
        self._buffers: list[memoryview | bytes] = []
        self._within = -1
        self._packer = msgpack.Packer(default=self._refer, strict_types=True, unicode_errors="surrogatepass")

    def write(self, value: Any) -> Encoded:
        if type(value) is bytes and len(value) >= LARGE_BYTES:
            return self.write_described(Described(Kind.LARGE_BYTES, None, value), value)
        return self._finish(self._packer.pack(value))

    def write_described(self, described: Described, value: Any) -> Encoded:
        return self._finish(self._packer.pack(self._add(described, value)))

    def _finish(self, first: bytes) -> Encoded:
        documents = [first]
        for number, (fields, _) in enumerate(self._entries):  # grows while it is walked
            self._within = number
            documents.append(self._packer.pack(fields))
        header = b"".join(documents)
        scan(header, self._limits)
        if self._buffers:
            header += PADDING * (-len(header) % ALIGNMENT)
        return Encoded(header, tuple(self._buffers))

    def _refer(self, value: Any) -> msgpack.ExtType:
        within, levels = self._within, 0
        while within >= 0:
            levels += 1
            if self._sources[within] is value or levels > self._limits.depth:
                raise RecursionError
            within = self._entries[within][1]
        return self._add(describe(value), value)

    def _add(self, described: Described, value: Any) -> msgpack.ExtType:
        fields = described.fields
        if described.buffer is not None:
            fields = [len(self._buffers), fields]
            self._buffers.append(described.buffer)
        self._entries.append((fields, self._within))
        self._sources.append(value)
        return msgpack.ExtType(described.kind, b"")


class _Search:
    """Finds the first part of a value that does not travel, to name it."""

    def __init__(self, limits: Limits, path: str) -> None:
        self._limits = limits
        self._path = path
        self._above: list[Any] = []

    def run(self, value: Any) -> NotTransportable | None:
        return self._visit(value, self._path)

    def _visit(self, value: Any, path: str) -> NotTransportable | None:
        name = type(value).__qualname__
        if any(value is outer for outer in self._above):
            return NotTransportable(path, name, "return a copy without the cycle", "contains itself")
        unfit = _unfit(value)
        if unfit is not None:
            return NotTransportable(path, unfit.type_name, unfit.hint)
        if len(self._above) >= self._limits.depth:
            return NotTransportable(path, name, "return it flatter", f"is nested more than {self._limits.depth} levels")
        self._above.append(value)
        for suffix, inner in parts(value):
            found = self._visit(inner, path + suffix)
            if found is not None:
                return found
        self._above.pop()
        return None


_PLAIN = (*_SCALARS, int, str, bytes, list, dict, bytearray)


def _unfit(value: Any) -> Unfit | None:
    """Why the value itself, whatever is inside it, does not travel."""
    if type(value) in _PLAIN:
        return None
    if type(value) is memoryview:
        return None if value.c_contiguous else Unfit(value, hint="return bytes(…) of it")
    try:
        describe(value)
    except Unfit as unfit:
        return unfit
    return None


def _refusal(path: str, value: Any, error: Exception) -> NotTransportable:
    return NotTransportable(path, type(value).__qualname__, "return it in smaller pieces", f"cannot be sent ({error})")


def _travels(value: Any) -> bool:
    try:
        encode(value)
    except NotTransportable:
        return False
    return True


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - a user's __repr__ may raise anything; the exception must still be told
        return f"<{type(value).__qualname__}, whose __repr__ raised {type(error).__name__}>"
