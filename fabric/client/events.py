"""What a crew tells the thread that waits for it, in order. Values only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fabric.client.tasks import Ended


class Placed(NamedTuple):
    """A lease joined the run; `facts` is the Lease as the control plane describes it."""

    facts: dict[str, Any]


class Results(NamedTuple):
    """Tasks that are over for good with an answer: (index, status, pieces) each."""

    results: Sequence[tuple[int, int, list[memoryview]]]


class AttemptEnded(NamedTuple):
    """An attempt ended without an answer; `ended.retry_at` says whether another one follows."""

    ended: Ended
    lease: str


class Lines(NamedTuple):
    """Output of a task: (stream, ms since the lease opened, text) each; stream 1 is stdout, 2 stderr."""

    task: int
    lines: Sequence[tuple[int, int, str]]


class Progress(NamedTuple):
    task: int
    done: int
    total: int | None


class Part(NamedTuple):
    """A value of a streaming task, before its answer."""

    task: int
    seq: int
    pieces: list[memoryview]


class Broken(NamedTuple):
    """The whole run is over with this error."""

    error: BaseException


class Fed(NamedTuple):
    """The iterable of inputs is at its end; `error` is what it raised instead, `total` how many it gave."""

    total: int
    error: BaseException | None


Event = Placed | Results | AttemptEnded | Lines | Progress | Part | Broken | Fed
