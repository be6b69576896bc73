"""Parts of streaming tasks that a lease's customer has not taken yet, so that a dropped connection loses none. Pure."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric.wire.frames import Buffer, FrameError

PART_BYTES = 256
"""What a part costs the node beside its bytes, roughly."""


@dataclass(slots=True)
class _Stream:
    attempt: int
    parts: deque[tuple[list[Any], Buffer]] = field(default_factory=deque)
    next_seq: int = 0
    hash: Any = field(default_factory=hashlib.sha256)


@dataclass(slots=True)
class Streams:
    """By (run, task). `size` is what is kept of all of them, in bytes."""

    size: int = 0
    _streams: dict[tuple[str, int], _Stream] = field(default_factory=dict)

    def add(self, header: Sequence[Any], body: Buffer) -> None:
        """Keep a PART; a newer attempt starts its stream anew.

        Raises:
            FrameError: its number does not follow the one before.
        """
        _, run, task, attempt, seq, _ = header
        stream = self._streams.get((run, task))
        if stream is None or stream.attempt != attempt:
            self.forget(run, [task])
            stream = self._streams[run, task] = _Stream(attempt)
        if seq != stream.next_seq:
            raise FrameError(f"part {seq} of a stream where {stream.next_seq} follows")
        stream.next_seq += 1
        stream.hash.update(body)
        stream.parts.append((list(header), body))
        self.size += _cost(body)

    @property
    def any(self) -> bool:
        return bool(self._streams)

    def taken(self, run: str, task: int, attempt: int, seq: int) -> None:
        """The customer has the parts up to this number."""
        stream = self._streams.get((run, task))
        while stream is not None and stream.attempt == attempt and stream.parts and stream.parts[0][0][4] <= seq:
            self.size -= _cost(stream.parts.popleft()[1])

    def forget(self, run: str, tasks: Iterable[int]) -> None:
        """These tasks are over for their customer."""
        for task in tasks:
            stream = self._streams.pop((run, task), None)
            if stream is not None:
                self.size -= sum(_cost(body) for _, body in stream.parts)

    def digest(self, run: str, task: int, attempt: int, result: Buffer) -> bytes | None:
        """SHA-256 of all parts and the result behind them; None when the task sent no parts."""
        stream = self._streams.get((run, task))
        if stream is None or stream.attempt != attempt:
            return None
        whole = stream.hash.copy()
        whole.update(result)
        return whole.digest()

    def kept(self, run: str, tasks: Iterable[Sequence[int]]) -> Iterator[tuple[list[Any], Buffer]]:
        """The parts kept of these [task, attempt], in order."""
        for task, attempt in tasks:
            stream = self._streams.get((run, task))
            if stream is not None and stream.attempt == attempt:
                yield from stream.parts


def _cost(body: Buffer) -> int:
    return PART_BYTES + memoryview(body).nbytes
