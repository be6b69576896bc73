"""Walks a header before anything is built from it: decides whether depth, count and size are within the limits.

A header is a row of msgpack documents: the value itself, then one entry for each reference (a msgpack ext of length
0 whose code is the kind). The k-th reference of the row means the k-th entry and stands before it. So no value can be
shared or contain itself, whatever the sender writes, and one walk from left to right sees every depth. A header that
has buffers behind it is padded with nils to a multiple of 64 bytes, so that the first buffer is aligned when joined.
"""

from dataclasses import dataclass

from fabric.wire.codec.errors import CodecError
from fabric.wire.codec.kinds import Kind


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts.

    Attributes:
        depth: levels of nesting, all kinds of containers counted.
        items: values in all, those inside containers counted.
        header_bytes: size of the header.
        buffer_bytes: size of all buffers together.
        buffers: number of buffers.
    """

    depth: int = 200
    items: int = 20_000_000
    header_bytes: int = 1 << 30
    buffer_bytes: int = 1 << 40
    buffers: int = 1_000_000


DEFAULT_LIMITS = Limits()

ALIGNMENT = 64
PADDING = b"\xc0"


@dataclass(frozen=True, slots=True)
class Document:
    """One msgpack document of a header: bytes ``start:end``; its first reference is number ``first_reference``."""

    start: int
    end: int
    first_reference: int


def scan(header: bytes, limits: Limits) -> tuple[list[Document], list[int]]:
    """The documents of a header, and the kind of each reference (and so of each document but the first).

    Raises:
        CodecError: malformed, truncated, or beyond a limit.
    """
    if len(header) > limits.header_bytes:
        raise CodecError(f"a header of {len(header):,} bytes; {limits.header_bytes:,} are allowed")
    walk = _Walk(header, limits)
    documents = [walk.document(depth=1)]
    while walk.position < len(header):
        if len(documents) > len(walk.kinds):
            _check_padding(header, walk.position)
            break
        documents.append(walk.document(walk.depths[len(documents) - 1]))
    if len(documents) != len(walk.kinds) + 1:
        raise CodecError(f"{len(walk.kinds)} references but {len(documents) - 1} entries")
    return documents, walk.kinds


def _check_padding(header: bytes, position: int) -> None:
    rest = len(header) - position
    if rest >= ALIGNMENT or header.count(PADDING, position) != rest:
        raise CodecError(f"{rest} bytes that nothing refers to")


def _fixed_sizes() -> list[int]:
    """Whole size of a token by its first byte; 0 where it depends on more than that byte, or has children."""
    sizes = [0] * 256
    for byte in (*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)):
        sizes[byte] = 1
    for length in range(32):
        sizes[0xA0 + length] = 1 + length
    for byte, payload in ((0xCA, 4), (0xCB, 8)):
        sizes[byte] = 1 + payload
    for power in range(4):
        sizes[0xCC + power] = sizes[0xD0 + power] = 1 + (1 << power)
    return sizes


FIXED_SIZES = _fixed_sizes()
"""A header of exactly this size is one number, short text, None or bool: nothing in it can exceed a limit."""

_LENGTH_OF_BLOB = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LENGTH_OF_CONTAINER = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # array, map: a pair is two values
_REFERENCE = 0xC7
_KINDS = frozenset(Kind)


class _Walk:
    """One pass over a header. ``kinds`` and ``depths`` grow by one with each reference met."""

    def __init__(self, header: bytes, limits: Limits) -> None:
        self.header = header
        self.limits = limits
        self.position = 0
        self.items = 0
        self.kinds: list[int] = []
        self.depths: list[int] = []

    def document(self, depth: int) -> Document:
        """Walk one document that stands at ``depth``."""
        start, first_reference, end = self.position, len(self.kinds), len(self.header)
        header, fixed, position = self.header, FIXED_SIZES, start
        above: list[int] = []  # how many values each open container still lacks, the innermost apart
        missing = 1
        while True:
            if position >= end:
                raise CodecError("the header is cut off")
            size = fixed[header[position]]
            missing -= 1
            if size:
                position += size
            else:
                position, children = self._token(position, depth + len(above))
                if children:
                    self._check_depth(depth + len(above))
                    above.append(missing)
                    self.items += children
                    missing = children
            while not missing and above:
                missing = above.pop()
            if not missing:
                break
        if position > end:
            raise CodecError("the header is cut off")
        self.position = position
        self._check_items()
        return Document(start, position, first_reference)

    def _token(self, position: int, depth: int) -> tuple[int, int]:
        """The position after a token that is not of fixed size, and how many values follow inside it."""
        byte = self.header[position]
        if 0x80 <= byte <= 0x9F:
            return position + 1, (byte & 0x0F) * (1 if byte >= 0x90 else 2)
        if byte in _LENGTH_OF_BLOB:
            width = _LENGTH_OF_BLOB[byte]
            return position + 1 + width + self._length(position, width), 0
        if byte in _LENGTH_OF_CONTAINER:
            width, each = _LENGTH_OF_CONTAINER[byte]
            return position + 1 + width, self._length(position, width) * each
        if byte == _REFERENCE:
            self._refer(position, depth)
            return position + 3, 0
        raise CodecError(f"byte {byte:#04x} at {position} has no meaning here")

    def _length(self, position: int, width: int) -> int:
        return int.from_bytes(self.header[position + 1 : position + 1 + width], "big")

    def _refer(self, position: int, depth: int) -> None:
        reference = self.header[position + 1 : position + 3]
        if len(reference) < 2 or reference[0] != 0 or reference[1] not in _KINDS:
            raise CodecError(f"no known kind of value at {position}")
        self.kinds.append(reference[1])
        self.depths.append(depth)
        self.items += 1

    def _check_depth(self, depth: int) -> None:
        if depth > self.limits.depth:
            raise CodecError(f"nested more than {self.limits.depth} levels deep")

    def _check_items(self) -> None:
        if self.items > self.limits.items:
            raise CodecError(f"{self.items:,} values; {self.limits.items:,} are allowed")
