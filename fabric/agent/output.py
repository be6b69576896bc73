"""A child's output pipe: bytes in, lines out, each with the number of the task that wrote it.

The child marks the end of a task's output when the node has not read all of it yet; what stands before such a mark is
that task's, what stands behind the last one is the running task's. A line ends at its newline or with its task.
"""

import os
from dataclasses import dataclass
from typing import Protocol

MAX_LINE_BYTES = 64 << 10
"""A longer line is cut here."""

_READ_BYTES = 64 << 10
_MAX_AT_ONCE = 4 << 20
_MARK_SLACK = 64
"""A mark is shorter than this."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output without its newline. `number` counts the child's tasks from 1; 0 is before the first."""

    number: int
    stream: int
    text: str


class Progress(Protocol):
    """Of the child's tasks, which are counted from 1: the one that runs or ran last, and the last one that is over."""

    @property
    def running(self) -> int: ...
    @property
    def ended(self) -> int: ...


class OutputPipe:
    """The node's end of a child's stdout (stream 1) or stderr (stream 2); the descriptor is non-blocking, not ours."""

    def __init__(self, fd: int, stream: int, stamp: bytes) -> None:
        self.fd = fd
        self.ended = False
        self._stream = stream
        self._mark = b"\x1e" + stamp + b" "
        self._rest = b""
        self._rest_number = 0
        self._new = b""

    def drain(self, now: Progress) -> list[Line]:
        """All lines that are there, and the unfinished one of a task that is over.

        What was written before the running task's number changed is read before that change is believed.
        """
        while True:
            number, ended = now.running, now.ended
            self._read_all()
            if now.running == number:
                return self._split(number) + (self._unfinished() if number <= ended else [])

    def finish(self, number: int) -> list[Line]:
        """The last lines, once the child is gone; an unfinished one counts."""
        self._read_all()
        return self._split(number) + self._unfinished()

    def _read_all(self) -> None:
        size = 0
        while size < _MAX_AT_ONCE and not self.ended:
            try:
                chunk = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            self.ended = not chunk
            size += len(chunk)
            self._new += chunk

    def _split(self, number: int) -> list[Line]:
        """Cut what was read into lines; `number` runs now and owns what stands behind the last mark."""
        text, *marked = (self._rest + self._new).split(self._mark)
        first = _owner(marked[0], number) if marked else number
        lines: list[Line] = []
        if self._rest and self._rest_number != first and b"\x1e" not in self._rest:
            lines.append(self._line(self._rest_number, self._rest))
            text = text[len(self._rest) :]
        for at, piece in enumerate(marked):
            owner, closed, behind = piece.partition(b"\x1e")
            if not closed:
                text = self._mark.join([text, *marked[at:]])
                break
            lines += self._lines(_owner(owner, number), text, whole=False)
            text = behind
        end = text.rfind(b"\n") + 1
        lines += self._lines(number, text[:end], whole=True)
        self._rest, self._rest_number, self._new = text[end:], number, b""
        if len(self._rest) > MAX_LINE_BYTES + _MARK_SLACK:
            self._rest = self._rest[:MAX_LINE_BYTES] + self._rest[-_MARK_SLACK:]
        return lines

    def _unfinished(self) -> list[Line]:
        rest, self._rest = self._rest, b""
        return [self._line(self._rest_number, rest)] if rest else []

    def _lines(self, number: int, data: bytes, *, whole: bool) -> list[Line]:
        """The lines of `data`; `whole`: it ends with a newline or is empty."""
        pieces = data.split(b"\n")
        if whole or not pieces[-1]:
            pieces.pop()
        return [self._line(number, piece) for piece in pieces]

    def _line(self, number: int, data: bytes) -> Line:
        text = data[:MAX_LINE_BYTES].decode(errors="replace").removesuffix("\r")
        return Line(number, self._stream, text + ("… (cut)" if len(data) > MAX_LINE_BYTES else ""))


def _owner(mark: bytes, otherwise: int) -> int:
    """The number that a mark begins with; a mark that the customer's code made up may have none."""
    digits = mark.partition(b"\x1e")[0]
    return int(digits) if digits.isdigit() and len(digits) < 20 else otherwise
