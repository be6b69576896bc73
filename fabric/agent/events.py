"""What a node's journal records about its leases, in nanoseconds of the node's monotonic clock. Values only.

Each event is one msgpack array that starts with a letter for its kind. `Passed` is written before a frame of tasks goes
to the child, `Finished` before its results go to the customer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import msgpack


class EventError(ValueError):
    """Bytes that are not one of our events."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The node is ready to take the customer's code; the meter runs from `ns`. `run` pays until another one works.

    With `setup` the time until `Prepared` is that run's setup.
    """

    letter: ClassVar[str] = "o"
    lease: str
    generation: int
    ns: int
    run: str
    session: str
    gpus: tuple[tuple[str, int], ...]
    simulated: bool
    setup: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The lease's environment is there; what follows is not setup any more."""

    letter: ClassVar[str] = "s"
    lease: str
    generation: int
    ns: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A frame with these (task, attempt) goes to the child now; `at_once`: they work beside those that are there."""

    letter: ClassVar[str] = "p"
    lease: str
    generation: int
    ns: int
    run: str
    tasks: tuple[tuple[int, int], ...]
    energy_mj: int = 0
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """These tasks of the oldest passed frames of `run` are over, one after the other, the last of them at `ns`.

    Of frames that were passed `at_once` they may be any, and all end at `ns`. Each is (task, attempt, reason, result
    digest, worked_ns); `worked_ns` is the child's own measure and only divides the interval which the node observed.
    `counters` are the tasks' named counts, in the same order, or nothing.
    """

    letter: ClassVar[str] = "f"
    lease: str
    generation: int
    ns: int
    run: str
    tasks: tuple[tuple[int, int, str, bytes, int], ...]
    energy_mj: int = 0
    counters: tuple[tuple[tuple[str, int], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Returned:
    """These tasks were passed but never started: their child is gone, another one will get them."""

    letter: ClassVar[str] = "r"
    lease: str
    generation: int
    ns: int
    run: str
    tasks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ticked:
    """The lease was alive at `ns`. Per GPU in the lease's order, since `Opened`: utilised ms, energy in mJ."""

    letter: ClassVar[str] = "t"
    lease: str
    generation: int
    ns: int
    utilised_ms: tuple[int, ...]
    energy_mj: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The lease is over on the node."""

    letter: ClassVar[str] = "c"
    lease: str
    generation: int
    ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """The whole meter of a lease that is open when a new journal segment starts, so that older ones may go."""

    letter: ClassVar[str] = "h"
    lease: str
    generation: int
    ns: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Began:
    """The node process started under this boot of the machine."""

    letter: ClassVar[str] = "b"
    boot: str


LeaseEvent = Opened | Prepared | Passed | Finished | Returned | Ticked | Closed | Held
Event = LeaseEvent | Began

_BY_LETTER: dict[str, type[Any]] = {
    cls.letter: cls for cls in (Opened, Prepared, Passed, Finished, Returned, Ticked, Closed, Held, Began)
}
_NAMES = {cls: tuple(field.name for field in fields(cls)) for cls in _BY_LETTER.values()}


def encode(event: Event) -> bytes:
    names = _NAMES[type(event)]
    return cast("bytes", msgpack.packb([event.letter, *(getattr(event, name) for name in names)]))


def decode(data: bytes) -> Event:
    """The event in `data`.

    Raises:
        EventError: not msgpack, of an unknown kind, or with a wrong number of fields.
    """
    try:
        letter, *values = msgpack.unpackb(data, use_list=False)
        return _event(letter, values)
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
        raise EventError(f"not an event of the journal: {error}") from None


def _event(letter: str, values: Sequence[Any]) -> Event:
    return cast("Event", _BY_LETTER[letter](*values))
