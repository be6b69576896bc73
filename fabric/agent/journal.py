"""The node's append-only journal: records that survive a kill of the process, and, once synced, a loss of power.

A directory of segments named by the offset at which they begin. A record is `<length: u32 LE> <crc32: u32 LE> <bytes>`;
an offset counts bytes from the very first record and only grows. A torn or damaged tail is cut off when the journal
is opened. What a record means is not decided here.
"""

import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SEGMENT_BYTES = 64 << 20
"""A segment this long is followed by a new one."""

_HEAD = struct.Struct("<II")
_MAX_RECORD_BYTES = 16 << 20


def framed_bytes(record: bytes) -> int:
    """By how much a record moves the offset."""
    return _HEAD.size + len(record)


class JournalGone(LookupError):
    """An offset whose segment was dropped already."""


class Journal:
    """One process writes; the same process reads along.

    Attributes:
        id: random name of this journal; another one means that offsets start anew.
        end: offset behind the last record.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create it, and cut off a torn tail.

        Raises:
            OSError: the directory cannot be used.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self.id = self._identity()
        self._starts = sorted(int(path.stem) for path in directory.glob("*.journal")) or [0]
        self._fd = self._open(self._starts[-1])
        self.end = self._starts[-1] + _cut_torn_tail(self._fd)

    @property
    def start(self) -> int:
        """The lowest offset that can still be read."""
        return self._starts[0]

    @property
    def full(self) -> bool:
        """Whether the current segment is long enough for `rotate`."""
        return self.end - self._starts[-1] >= SEGMENT_BYTES

    def append(self, record: bytes) -> int:
        """Write one record to the operating system; returns the offset behind it."""
        if len(record) > _MAX_RECORD_BYTES:
            raise ValueError(f"a record of {len(record)} bytes; at most {_MAX_RECORD_BYTES} are allowed")
        framed = _HEAD.pack(len(record), zlib.crc32(record)) + record
        view = memoryview(framed)
        while view:
            view = view[os.write(self._fd, view) :]
        self.end += len(framed)
        return self.end

    def sync(self) -> None:
        """Make everything appended so far survive a loss of power. Safe to call from another thread."""
        os.fdatasync(self._fd)

    def rotate(self, first: Sequence[bytes]) -> None:
        """Begin a new segment with these records, which must stand for all that older segments would tell."""
        os.fdatasync(self._fd)
        os.close(self._fd)
        self._starts.append(self.end)
        self._fd = self._open(self.end)
        for record in first:
            self.append(record)
        os.fdatasync(self._fd)

    def drop_before(self, offset: int) -> None:
        """Delete the segments that end at or before `offset`; the current one stays."""
        while len(self._starts) > 1 and self._starts[1] <= offset:
            self._path(self._starts.pop(0)).unlink(missing_ok=True)

    def read(self, offset: int, limit: int = 1 << 20) -> tuple[list[bytes], int]:
        """Records from `offset` on, about `limit` bytes of them, and the offset behind them.

        Raises:
            JournalGone: `offset` lies before the oldest segment or behind the end.
        """
        records: list[bytes] = []
        size = 0
        for record, behind in self._records(offset):
            records.append(record)
            size += len(record)
            offset = behind
            if size >= limit:
                break
        return records, offset

    def close(self) -> None:
        os.close(self._fd)

    def _records(self, offset: int) -> Iterator[tuple[bytes, int]]:
        if not self.start <= offset <= self.end:
            raise JournalGone(f"offset {offset} is not within {self.start} to {self.end} of journal {self.id}")
        for number, start in enumerate(self._starts):
            end = self._starts[number + 1] if number + 1 < len(self._starts) else self.end
            if offset < end:
                with self._path(start).open("rb") as file:
                    file.seek(offset - start)
                    while offset < end and (record := _read_record(file.read)) is not None:
                        offset += _HEAD.size + len(record)
                        yield record, offset

    def _identity(self) -> str:
        path = self._directory / "id"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.write_text(secrets.token_hex(8))
            temporary.replace(path)
        return path.read_text().strip()

    def _open(self, start: int) -> int:
        return os.open(self._path(start), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _path(self, start: int) -> Path:
        return self._directory / f"{start:020d}.journal"


def _cut_torn_tail(fd: int) -> int:
    """Truncate the file behind its last whole record; returns its length then."""
    good = 0
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        while (record := _read_record(file.read)) is not None:
            good += _HEAD.size + len(record)
    os.ftruncate(fd, good)
    return good


def _read_record(read: Callable[[int], bytes]) -> bytes | None:
    """The next whole and undamaged record, else None."""
    head = read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    size, checksum = _HEAD.unpack(head)
    if size > _MAX_RECORD_BYTES:
        return None
    record = read(size)
    return record if len(record) == size and zlib.crc32(record) == checksum else None
