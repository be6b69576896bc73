"""A child's results, read as a stranger's: whose bytes are whose, what was counted, how each ended. Pure."""

import hashlib
from collections.abc import Sequence
from typing import Any

from fabric.wire import channel
from fabric.wire.frames import Buffer, FrameError
from fabric.wire.reasons import Reason
from fabric.wire.receipts import MAX_NUMBER

REASON_OF_STATUS = {
    channel.STATUS_VALUE: Reason.DONE,
    channel.STATUS_EXCEPTION: Reason.USER_ERROR,
    channel.STATUS_NOT_TRANSPORTABLE: Reason.RESULT_NOT_TRANSPORTABLE,
}


def cut(entries: Sequence[Sequence[Any]], body: Buffer) -> list[memoryview]:
    """Each task's part of a RESULT's body.

    Raises:
        FrameError: the sizes do not add up to the body.
    """
    view = memoryview(body)
    sizes = [sum(entry[6]) for entry in entries]
    if sum(sizes) != view.nbytes or any(min(entry[6], default=0) < 0 for entry in entries):
        raise FrameError("the sizes of a result's pieces do not add up to its body")
    at, pieces = 0, []
    for size in sizes:
        pieces.append(view[at : at + size])
        at += size
    return pieces


def counters_of(given: Sequence[Any]) -> tuple[tuple[str, int], ...]:
    """A task's named counts as its child states them: shown, never billed, and of bounded size.

    Raises:
        FrameError: they are something else.
    """
    if not given or not given[0]:
        return ()
    pairs = tuple((name, count) for name, count in given[0])
    fine = all(type(name) is str and len(name) <= 40 and type(n) is int and 0 <= n <= MAX_NUMBER for name, n in pairs)
    if len(pairs) > channel.MAX_COUNTERS or not fine:
        raise FrameError("a task's counts are a few names with whole numbers")
    return pairs


def digest_of(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()
