"""The data channel to one lease: frames to and from its node, reconnected when the connection drops.

It knows frames and the lease; what tasks there are and what becomes of them is its listener's. Lives in the SDK's loop.
"""

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from fabric.client.pack import Packed
from fabric.client.route import Route, open_route
from fabric.client.stream import Stream
from fabric.client.tasks import Task
from fabric.wire import channel, frames
from fabric.wire.errors import AuthError, Error, InvalidRequest, ServiceError
from fabric.wire.reasons import Reason

READY_S = 650.0
"""A lease that is not ready by then never will be; the node's own `startup_timeout` ends it long before."""
RECONNECT_S = 30.0
"""After this long without a connection the lease is given up and its tasks go elsewhere."""
QUIET_S = 10.0
"""Silence after which the node is asked whether it is still there; three times as long ends the connection."""
ACK_S = 0.02
"""How long an acknowledgement of small results waits for a frame to travel with."""
ACK_BYTES = 1 << 20
"""Results of this size together are acknowledged at once: the node holds them until then."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A lease that is over, and why."""

    reason: Reason
    message: str


class Listener(Protocol):
    """Whoever uses the lease now. Called in the loop; must not block."""

    def on_frame(self, channel: "Channel", header: list[Any], body: memoryview) -> None: ...

    def on_resumed(self, channel: "Channel") -> None:
        """Connected again: ask for what is owed, then go on."""
        ...

    def on_gone(self, channel: "Channel", reason: Reason, message: str) -> None:
        """The lease is over; nothing follows."""
        ...


class Channel:
    """One lease's. `find_route` asks for a fresh route, and says `Gone` when the lease is over or None when not yet.

    Attributes:
        leaving: why the lease ends soon, once it got its notice: what is sent there now may not be done in time.
    """

    def __init__(
        self, lease: str, find_route: Callable[[], Awaitable[Route | Gone | None]], listener: Listener
    ) -> None:
        self.lease = lease
        self.listener = listener
        self.node = ""
        self.leaving: Reason | None = None
        self.waited_s = 0.0
        """For how long the node was waited for when its gateway had answered, the last time."""
        self.reconnect_s = RECONNECT_S
        self._find_route = find_route
        self._stream: Stream | None = None
        self._ready: asyncio.Future[None] | None = None
        self._known: set[bytes] = set()
        self._acks: list[list[Any]] = []
        self._acked_bytes = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._over = False
        self._heard = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        return (
            not self._over and self._stream is not None and self._stream.is_open
            and self._ready is not None and self._ready.done() and self._ready.exception() is None
        )  # fmt: skip

    async def connect(self, route: Route) -> None:
        """Connect and wait until the node is ready.

        Raises:
            InvalidRequest: the node runs another Python or cloudpickle.
            Error: the gateway refused, or the lease ended first.
        """
        self._known.clear()
        self._ready = asyncio.get_running_loop().create_future()
        self._stream = await open_route(route, self._on_message, self._on_lost)
        answered = time.monotonic()
        async with asyncio.timeout(READY_S):
            await asyncio.shield(self._ready)
        self.waited_s = time.monotonic() - answered
        self._start(self._watch(self._stream))

    def call(self, run: str, packed: Packed, tasks: Sequence[Task], timeout_ms: int, checkpoint: str = "") -> None:
        """Send tasks in one frame, the function before them if this connection has not carried it yet."""
        if packed.digest not in self._known:
            self._known.add(packed.digest)
            actor = [packed.at_once] if packed.at_once else []
            self._send([channel.FN, packed.digest, *actor], packed.code)
        listed = [[task.index, task.attempt, task.sizes] for task in tasks]
        header = [channel.CALL, run, packed.digest, listed, timeout_ms, *channel.begun_with(checkpoint)]
        self._send(header, *(piece for task in tasks for piece in task.pieces))

    def acknowledge(self, run: str, indices: Sequence[int], size: int = 0) -> None:
        """Tell the node that it may forget these results, `size` bytes together: with the next frame, or soon."""
        self._acks.append([channel.ACK, run, list(indices)])
        self._acked_bytes += size
        if self._acked_bytes >= ACK_BYTES:
            self._send_acks()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_S, self._ack_late)

    def cancel(self, run: str, indices: Sequence[int] = ()) -> None:
        """End these of the run's tasks on this lease, all of them for none named."""
        self._send([channel.CANCEL, run, list(indices)])

    def taken(self, run: str, index: int, attempt: int, seq: int) -> None:
        """The parts of a streaming task up to this one were read."""
        self._send([channel.TAKEN, run, index, attempt, seq])

    def resume(self, run: str, owed: Sequence[tuple[int, int]]) -> None:
        self._send([channel.RESUME, run, [list(pair) for pair in owed]])

    def close(self) -> None:
        """End the connection; the listener hears nothing more."""
        self._send_acks()
        self._over = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._stream is not None:
            self._stream.close()

    def _send(self, header: list[Any], *body: frames.Buffer) -> None:
        if self._stream is not None and self._stream.is_open:
            self._stream.send(*self._taken_acks(), frames.pack(header, *body))

    def _send_acks(self) -> None:
        if self._stream is not None and self._stream.is_open and self._acks:
            self._stream.send(*self._taken_acks())

    def _ack_late(self) -> None:
        self._ack_timer = None
        self._send_acks()

    def _taken_acks(self) -> list[list[frames.Buffer]]:
        """The frames of what waits to be acknowledged; it waits no longer."""
        acks, self._acks, self._acked_bytes = self._acks, [], 0
        return [frames.pack(header) for header in acks]

    def _on_message(self, message: bytes) -> None:
        if self._over:
            return
        self._heard = time.monotonic()
        try:
            self._on_frame(*frames.unpack(message))
        except (ValueError, TypeError, LookupError) as error:
            self._on_closed(Reason.INTERNAL_ERROR, f"the node sent what is no frame of ours: {error}")

    def _on_frame(self, header: list[Any], body: memoryview) -> None:
        if header[0] == channel.READY:
            self._on_ready(header[1])
        elif header[0] == channel.CLOSED:
            self._on_closed(_reason(header[1]), str(header[2]))
        elif header[0] != channel.PONG:
            if header[0] == channel.NOTICE:
                self.leaving = _reason(header[1])
            self.listener.on_frame(self, header, body)

    def _on_ready(self, facts: dict[str, Any]) -> None:
        assert self._ready is not None
        self.node = str(facts.get("node", ""))
        problem = _mismatch(facts)
        if problem is None:
            self._ready.set_result(None)
        else:
            self._ready.set_exception(problem)

    def _on_closed(self, reason: Reason, message: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(_Closed(reason, message))  # who connects, or connects again, hears it there
            return
        self.close()
        self.listener.on_gone(self, reason, message)

    def _on_lost(self) -> None:
        if self._over or self._ready is None:
            return
        if not self._ready.done():
            self._ready.set_exception(ServiceError("the gateway closed the connection before the lease was ready"))
            self._ready.exception()  # read: `connect` may already have failed
        elif self._ready.exception() is None:
            self._start(self._reconnect())

    async def _reconnect(self) -> None:
        until = time.monotonic() + self.reconnect_s
        delay = 0.02
        while time.monotonic() < until:
            try:
                route = await self._find_route()
                if isinstance(route, Gone):
                    self._give_up(route.reason, route.message)
                    return
                if route is not None:
                    await self.connect(route)
                    self.listener.on_resumed(self)
                    return
            except _Closed as closed:
                self._give_up(closed.reason, str(closed))
                return
            except (AuthError, ServiceError, OSError, TimeoutError):
                pass  # the operator's agent may be starting again: the next route is another
            except Error as error:
                self._give_up(Reason.INTERNAL_ERROR, str(error))
                return
            await asyncio.sleep(delay)
            delay = min(1.0, delay * 2)
        self._give_up(Reason.OPERATOR_LOST, f"no connection to the node for {self.reconnect_s:.0f} s")

    def _give_up(self, reason: Reason, message: str) -> None:
        self._over = True
        self.listener.on_gone(self, reason, message)

    async def _watch(self, stream: Stream) -> None:
        """Notices a peer that is gone without a word."""
        self._heard = time.monotonic()
        while stream is self._stream and stream.is_open:
            await asyncio.sleep(QUIET_S)
            silence = time.monotonic() - self._heard
            if silence > 3 * QUIET_S:
                stream.close()
            elif silence >= QUIET_S:
                self._send([channel.PING, 0])

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Closed(ServiceError):
    """The lease ended while its channel was being opened."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message or reason)
        self.reason = reason


def closed_reason(error: BaseException) -> Reason:
    """Why a lease could not be opened, as an attempt's reason."""
    return error.reason if isinstance(error, _Closed) else Reason.INTERNAL_ERROR


def _reason(word: Any) -> Reason:
    try:
        return Reason(word)
    except ValueError:
        return Reason.INTERNAL_ERROR


def _mismatch(facts: dict[str, Any]) -> InvalidRequest | None:
    """Functions travel only between equal minor versions of Python and of cloudpickle."""
    ours = {"python": ".".join(platform.python_version_tuple()[:2]), "cloudpickle": _minor(version("cloudpickle"))}
    for what, here in ours.items():
        there = _minor(str(facts.get(what, "")))
        if there != here:
            return InvalidRequest(
                f"this process runs {what} {here}, the node {facts.get('node', '')} {what} {there or 'unknown'}; "
                f"functions travel only between equal versions: use {what} {there} here or another operator"
            )
    return None


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])
