"""The leases this process holds: given to one run at a time, kept a moment after it, then released.

A lease that lingers serves the next run that asks for the same resources and whose `max_price` covers its price. Lives
in the SDK's loop; asks the control plane for releases, never for leases.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fabric.client.channel import Channel
from fabric.client.pace import Pace, Steady
from fabric.wire import channel as wire
from fabric.wire.reasons import Reason


@dataclass(slots=True)
class HeldLease:
    """A lease whose channel is open. `facts` is the Lease as the control plane described it; `run` used it last."""

    id: str
    generation: int
    key: tuple[Any, ...]
    facts: dict[str, Any]
    channel: Channel
    run: str
    pace: Pace | Steady = field(default_factory=Pace)
    timer: asyncio.TimerHandle | None = None

    @property
    def price_dc_per_gpu_hour(self) -> int:
        return int(self.facts["price_dc_per_gpu_hour"])

    @property
    def leaving(self) -> bool:
        """Whether it got its notice: it ends soon, by itself."""
        return self.channel.leaving is not None


class LeasePool:
    """Lingering leases, newest first.

    Args:
        release: tells the control plane; called with the lease and a reason.
        start: runs a coroutine beside everything else.
        on_line: gets output that arrives after its run was over.
        on_ended: gets the id of a lingering lease that ended by itself.
    """

    def __init__(
        self,
        release: Callable[[HeldLease, Reason], Coroutine[Any, Any, None]],
        start: Callable[[Coroutine[Any, Any, None]], object],
        on_line: Callable[[int, str], None],
        on_ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._release = release
        self._start = start
        self._on_line = on_line
        self._on_ended = on_ended
        self._idle: list[HeldLease] = []
        self._waiting = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While a run of this process waits for GPUs, none are kept warm: what lingers is released at once."""
        self._waiting += 1
        for held in list(self._idle):
            if held.timer is not None:
                held.timer.cancel()
            self._expire(held)
        try:
            yield
        finally:
            self._waiting -= 1

    def take(self, key: tuple[Any, ...], max_price_dc: int | None) -> HeldLease | None:
        """A lingering lease for these resources at no more than this price, for the caller alone."""
        for at in range(len(self._idle) - 1, -1, -1):
            held = self._idle[at]
            affordable = max_price_dc is None or held.price_dc_per_gpu_hour <= max_price_dc
            if held.key == key and affordable and held.channel.is_open:
                del self._idle[at]
                if held.timer is not None:
                    held.timer.cancel()
                return held
        return None

    def give(self, held: HeldLease, linger_s: float) -> None:
        """Take a lease back; it is released after `linger_s` seconds unless somebody takes it."""
        if linger_s <= 0 or self._waiting or held.leaving or not held.channel.is_open:
            self.drop(held, Reason.DONE)
            return
        held.channel.listener = self
        held.timer = asyncio.get_running_loop().call_later(linger_s, self._expire, held)
        self._idle.append(held)

    def drop(self, held: HeldLease, reason: Reason) -> None:
        """Close the channel and release the lease."""
        held.channel.close()
        self._start(self._release(held, reason))

    def close(self) -> None:
        """Close every channel; the end of the session releases the leases."""
        for held in self._idle:
            if held.timer is not None:
                held.timer.cancel()
            held.channel.close()
        self._idle.clear()

    def on_frame(self, channel: Channel, header: list[Any], body: memoryview) -> None:  # noqa: ARG002
        """Between runs late output is of interest, and a notice: what leaves soon is worth nothing to the next run."""
        if header[0] == wire.LOG:
            for stream, _, text in header[3]:
                self._on_line(stream, text)
        elif header[0] == wire.NOTICE:
            for held in self._of(channel):
                if held.timer is not None:
                    held.timer.cancel()
                self._expire(held)

    def on_resumed(self, channel: Channel) -> None:
        """Nothing is owed between runs."""

    def on_gone(self, channel: Channel, reason: Reason, message: str) -> None:  # noqa: ARG002
        """A lingering lease ended by itself."""
        for held in self._of(channel):
            self._idle.remove(held)
            self._on_ended(held.id)
            if held.timer is not None:
                held.timer.cancel()

    def _expire(self, held: HeldLease) -> None:
        self._idle.remove(held)
        self.drop(held, Reason.DONE)

    def _of(self, channel: Channel) -> Iterable[HeldLease]:
        return [held for held in self._idle if held.channel is channel]
