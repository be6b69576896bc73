"""One customer's connection: a WebSocket on one side, a node's stream on the other, bytes moved between by callback.

The WebSocket itself is `websockets`' sans-IO server. No body is held here as a whole, and a slow side slows the other.
Who may pass is the gateway's to say.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, cast

import structlog
from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from fabric.agent.cutter import Cutter
from fabric.agent.dialect import CHANNEL
from fabric.agent.handover import Handed, hand_over
from fabric.wire import channel
from fabric.wire.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES, PREFIX, FrameError, pack_bytes
from fabric.wire.tokens import LeaseToken

_log = structlog.get_logger(__name__)

MAX_FRAGMENT_BYTES = 4 << 20
"""A customer's fragment may be this long; longer frames must come in several."""
HANDSHAKE_S = 10.0
"""How long a connection may take to say what it wants."""
PING_S = 20.0
"""A customer that has sent nothing since the last ping, so long ago, is gone."""
CLOSE_S = 10.0
"""How long a customer may take to answer the end of the connection."""

_MAX_FRAME_BYTES = PREFIX.size + MAX_HEADER_BYTES + MAX_BODY_BYTES
_BUFFER_BYTES = 1 << 20
_JOIN_BYTES = 64 << 10
_DATA = frozenset({Opcode.BINARY, Opcode.TEXT, Opcode.CONT})


class Denied(Exception):
    """The request opens nothing: an HTTP status and words for the customer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refusal(Exception):
    """The lease will not open, or is over: reason and words for the customer."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Keeper(Protocol):
    """Who says who may pass, and knows who is here."""

    def admit(self, request: Request) -> LeaseToken:
        """Raises Denied."""
        ...

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        """Wait until the lease is open; address and token of its node. Raises Refusal."""
        ...

    def entered(self, passage: "Passage") -> None: ...
    def left(self, passage: "Passage") -> None: ...


class NodeSide(Protocol):
    """The way to a node."""

    def write(self, parts: list[bytes]) -> None: ...
    def close(self) -> None:
        """Send what is buffered, then end; the customer's side hears nothing more."""
        ...

    def hold(self) -> None:
        """Take nothing more from the node until `release`."""
        ...

    def release(self) -> None: ...


class Passage(asyncio.Protocol):
    """The customer's side.

    Args:
        keeper: who says who may pass.
        inside: makes the node's side of a connection that was let in already, where the node is this process.
    """

    def __init__(self, keeper: Keeper, inside: Callable[["Passage"], NodeSide] | None = None) -> None:
        self._keeper = keeper
        self._inside = inside
        self._loop = asyncio.get_running_loop()
        state = State.CONNECTING if inside is None else State.OPEN
        self._websocket = ServerProtocol(state=state, max_size=(_MAX_FRAME_BYTES, MAX_FRAGMENT_BYTES))
        self._node: NodeSide | None = None
        self._early: list[bytes] = []
        self._opening: asyncio.Task[None] | None = None
        self._heard = True
        self._reading = True

    def close(self, code: int, reason: str = "") -> None:
        """End the connection; it is cut when the customer does not answer that, or has not even said what it wants."""
        if self._websocket.state is State.CONNECTING:
            self._transport.abort()
            return
        if self._websocket.state is State.OPEN:
            try:
                self._websocket.send_close(code, reason)
            except ProtocolError:  # in the middle of a fragmented message
                self._websocket.fail(CloseCode.INTERNAL_ERROR)
        self._flush()
        self._resume()
        self._wait(CLOSE_S, self._transport.abort)

    def send(self, data: bytes, *, first: bool, last: bool) -> None:
        """A piece of what the node sends; `flush` follows."""
        if self._websocket.state is State.OPEN:
            if first:
                self._websocket.send_binary(data, fin=last)
            else:
                self._websocket.send_continuation(data, fin=last)

    def flush(self) -> None:
        self._flush()

    @property
    def unsent_bytes(self) -> int:
        """What the customer has not taken yet."""
        return self._transport.get_write_buffer_size()

    def hold(self) -> None:
        """Take nothing more from the customer until `release`."""
        self._reading = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        self._resume()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # what uvloop makes is one without being of that class
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self._timer = self._loop.call_later(HANDSHAKE_S, self._transport.abort)
        self._keeper.entered(self)
        if self._inside is not None:
            self._wait(PING_S, self._ping)
            self._node = self._inside(self)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._websocket.receive_data(data)
        self._take_events()

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        self._take_events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._node is not None:
            self._node.close()
        self._keeper.left(self)

    def pause_writing(self) -> None:
        if self._node is not None:
            self._node.hold()

    def resume_writing(self) -> None:
        if self._node is not None:
            self._node.release()

    def node_lost(self, *, clean: bool) -> None:
        """The node's side is at its end; `clean` when it was between two frames."""
        self._node = None
        if clean:
            self.close(CloseCode.NORMAL_CLOSURE)
        else:
            self.close(CloseCode.INTERNAL_ERROR, "the node is not reachable")

    def _take_events(self) -> None:
        parts: list[bytes] = []
        for event in self._websocket.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA and event.data:
                parts.append(bytes(event.data))
            elif isinstance(event, Request):
                self._on_request(event)
        if parts:
            self._to_node(parts)
        self._flush()

    def _on_request(self, request: Request) -> None:
        try:
            token = self._keeper.admit(request)
        except Denied as denied:
            self._websocket.send_response(self._websocket.reject(denied.status, str(denied)))
            return
        self._websocket.send_response(self._websocket.accept(request))
        if self._websocket.state is State.OPEN:
            self._wait(PING_S, self._ping)
            self._opening = self._loop.create_task(self._open(token))

    async def _open(self, token: LeaseToken) -> None:
        try:
            address, secret = await self._keeper.node_of(token)
            if self._hand_over(address, secret, token):
                return
            node = await _connect(address, self)
        except Refusal as refusal:
            self.send(pack_bytes([channel.CLOSED, refusal.reason, refusal.message]), first=True, last=True)
            self.close(CloseCode.NORMAL_CLOSURE)
        except OSError as error:
            _log.info("a channel was not opened", lease=token.lease, error=str(error))
            self.close(CloseCode.INTERNAL_ERROR, "the node is not reachable")
        else:
            node.write([pack_bytes([CHANNEL, secret, token.lease, token.generation]), *self._early])
            self._node, self._early = node, []
            self._resume()

    def _hand_over(self, address: str, secret: str, token: LeaseToken) -> bool:
        """Give the connection itself to a node on this machine, so that no byte passes here; False where that fails.

        Only between two messages of the customer and with nothing of ours unsent: what is half done stays here.
        """
        websocket, transport = self._websocket, self._transport
        clean = websocket.state is State.OPEN and websocket.current_size is None and not websocket.reader.buffer
        if not clean or transport.get_write_buffer_size() or transport.get_extra_info("ssl_object") is not None:
            return False
        transport.pause_reading()
        given = Handed(secret, token.lease, token.generation, b"".join(self._early))
        if hand_over(address, transport.get_extra_info("socket").fileno(), given):
            transport.abort()
            return True
        transport.resume_reading()
        return False

    def _to_node(self, parts: list[bytes]) -> None:
        if self._node is not None:
            self._node.write(parts)
            return
        self._early += parts
        if sum(map(len, self._early)) > _BUFFER_BYTES:
            self.hold()

    def _ping(self) -> None:
        """Ask the customer for a sign of life; who has given none since the last time is gone."""
        if not self._heard and self._reading:
            self._transport.abort()
            return
        self._heard = False
        if self._websocket.state is State.OPEN:
            self._websocket.send_ping(b"")
            self._flush()
        self._wait(PING_S, self._ping)

    def _wait(self, seconds: float, then: Callable[[], Any]) -> None:
        """Instead of what was waited for before."""
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _resume(self) -> None:
        if not self._reading:
            self._reading = True
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _flush(self) -> None:
        _write(self._transport, self._websocket.data_to_send())


class _Connected(asyncio.Protocol):
    """The node's side of a passage: a connection to the node."""

    def __init__(self, customer: Passage) -> None:
        self._customer: Passage | None = customer
        self._cutter = Cutter()

    def write(self, parts: list[bytes]) -> None:
        _write(self._transport, parts)

    def close(self) -> None:
        """Send what is buffered, then end; the customer's side hears nothing more."""
        self._customer = None
        self._transport.close()

    def hold(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        customer = self._customer
        if customer is None:
            return
        try:
            for piece in self._cutter.feed(data):
                customer.send(piece.data, first=piece.first, last=piece.last)
        except FrameError as error:
            _log.warning("a node sent what is no frame", error=str(error))
            self._transport.abort()
        customer.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        customer, self._customer = self._customer, None
        if customer is not None:
            customer.node_lost(clean=exc is None and self._cutter.between_frames)

    def pause_writing(self) -> None:
        if self._customer is not None:
            self._customer.hold()

    def resume_writing(self) -> None:
        if self._customer is not None:
            self._customer.release()


async def _connect(address: str, customer: Passage) -> _Connected:
    """Connect to `unix:<path>` or `tcp:<host>:<port>`.

    Raises:
        OSError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    kind, _, rest = address.partition(":")
    if kind == "unix":
        _, node = await loop.create_unix_connection(lambda: _Connected(customer), rest)
        return node
    host, _, port = rest.rpartition(":")
    _, node = await loop.create_connection(lambda: _Connected(customer), host, int(port))
    return node


def _write(transport: asyncio.Transport, parts: list[bytes]) -> None:
    """Write small parts together; an empty one stands for the end."""
    joined: list[bytes] = []
    for part in parts:
        if part and len(part) <= _JOIN_BYTES:
            joined.append(part)
            continue
        if joined:
            transport.write(b"".join(joined))
            joined.clear()
        if part:
            transport.write(part)
        else:
            transport.close()
    if joined:
        transport.write(joined[0] if len(joined) == 1 else b"".join(joined))
