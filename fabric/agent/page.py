"""One page of memory shared by a node and its child: which task runs, since when. It outlives the child.

The child writes, the node reads. Tasks are counted from 1 in the order in which they were passed to this child. The
child is the customer's: what stands here divides only the customer's own tasks among themselves.
"""

import mmap
import os
import struct

_LAYOUT = struct.Struct("<QQ")
_ENDED = struct.Struct("<Q")
_DEADLINE = struct.Struct("<Q")
_STORED = struct.Struct("<QH")
_STORED_AT = 32
_PROBLEM_BYTES = 1000


class Page:
    """`running` is the number of the task that runs or ran last, 0 before the first; `started_ns` its start.

    `ended` is the number of the last task that is over and whose output is all in the pipes. `deadline_ns` is written
    by the node: when the lease ends after a notice, on the machine's monotonic clock; 0 while there is no notice.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, mmap.PAGESIZE)

    @staticmethod
    def create() -> int:
        """A descriptor to share; the caller closes it."""
        fd = os.memfd_create("fabric-page")
        os.ftruncate(fd, mmap.PAGESIZE)
        return fd

    def begin(self, number: int, now_ns: int) -> None:
        _LAYOUT.pack_into(self._map, 0, number, now_ns)

    def end(self, number: int) -> None:
        _ENDED.pack_into(self._map, _LAYOUT.size, number)

    @property
    def ended(self) -> int:
        return _ENDED.unpack_from(self._map, _LAYOUT.size)[0]

    @property
    def running(self) -> int:
        return _LAYOUT.unpack_from(self._map, 0)[0]

    @property
    def started_ns(self) -> int:
        return _LAYOUT.unpack_from(self._map, 0)[1]

    def warn(self, deadline_ns: int) -> None:
        _DEADLINE.pack_into(self._map, _LAYOUT.size + _ENDED.size, deadline_ns)

    @property
    def deadline_ns(self) -> int:
        return _DEADLINE.unpack_from(self._map, _LAYOUT.size + _ENDED.size)[0]

    def store(self, number: int, problem: str = "") -> None:
        """What the child sent up to this number is durable; or, with a problem, it is not."""
        text = problem.encode()[:_PROBLEM_BYTES]
        at = _STORED_AT + _STORED.size
        self._map[at : at + len(text)] = text
        _STORED.pack_into(self._map, _STORED_AT, number, len(text))

    @property
    def stored(self) -> int:
        return _STORED.unpack_from(self._map, _STORED_AT)[0]

    @property
    def problem(self) -> str:
        length = _STORED.unpack_from(self._map, _STORED_AT)[1]
        at = _STORED_AT + _STORED.size
        return self._map[at : at + length].decode(errors="replace")

    def close(self) -> None:
        self._map.close()
