"""The customers' door: a WebSocket server that checks lease tokens and moves bytes between customer and node.

It looks at the lengths of the node's frames and at nothing inside; no body is held here as a whole, and a slow side
slows the other. A connection whose lease is not open yet is held until it is.
"""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Protocol

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from fabric.agent.dialect import CHANNEL
from fabric.wire import channel
from fabric.wire.clock import Clock
from fabric.wire.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES, PREFIX, FrameError, pack_bytes, unpack_lengths
from fabric.wire.tokens import LeaseToken, TokenError, verify_token

_log = structlog.get_logger(__name__)

PATH = "/v1/channel"
FRAGMENT_BYTES = 256 << 10
"""What is sent to customers in one piece; longer frames are fragmented."""
MAX_FRAGMENT_BYTES = 4 << 20
"""A customer's fragment may be this long; longer frames must come in several."""

_MAX_FRAME_BYTES = PREFIX.size + MAX_HEADER_BYTES + MAX_BODY_BYTES


class Refusal(Exception):
    """The lease will not open, or is over: reason and words for the customer."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Leases(Protocol):
    """The leases of this operator, as the gateway needs them."""

    token_key: bytes | None

    def superseded(self, token: LeaseToken) -> bool:
        """Whether the token is of an older generation of its lease than the one known here."""
        ...

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        """Wait until the lease is open; address and token of its node.

        Raises:
            Refusal: it is over, or does not open.
        """
        ...


class Gateway:
    """`start`, then customers may come, until `stop`."""

    def __init__(self, leases: Leases, *, operator: str, clock: Clock) -> None:
        self._leases = leases
        self._operator = operator
        self._clock = clock
        self._server: Server | None = None
        self._tokens: dict[ServerConnection, LeaseToken] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one for 0.

        Raises:
            OSError: the port is taken.
        """
        self._server = await serve(
            self._serve,
            host,
            port,
            process_request=self._admit,
            compression=None,
            max_size=(_MAX_FRAME_BYTES, MAX_FRAGMENT_BYTES),
            write_limit=1 << 20,
        )
        return next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"nothing here; the data channel is {PATH}\n")
        scheme, _, compact = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not compact:
            return connection.respond(HTTPStatus.UNAUTHORIZED, "send the lease token: Authorization: Bearer <token>\n")
        key = self._leases.token_key
        if key is None:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "this operator has no control plane yet\n")
        try:
            token = verify_token(compact.strip(), key, audience=self._operator, clock=self._clock)
        except TokenError as error:
            return connection.respond(HTTPStatus.UNAUTHORIZED, f"{error}\n")
        if self._leases.superseded(token):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the lease token is of an older generation\n")
        self._tokens[connection] = token
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        token = self._tokens.pop(connection)
        try:
            await self._connect(connection, token)
        except Refusal as refusal:
            await _close(connection, refusal.reason, refusal.message)
        except (OSError, FrameError, asyncio.IncompleteReadError) as error:
            _log.info("a channel ended", lease=token.lease, error=str(error))
            await connection.close(1011, "the node is not reachable")
        except ConnectionClosed:
            pass

    async def _connect(self, connection: ServerConnection, token: LeaseToken) -> None:
        opening = asyncio.ensure_future(self._leases.node_of(token))
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await asyncio.wait((opening, gone), return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return
            address, secret = opening.result()
        finally:
            opening.cancel()
            gone.cancel()
        reader, writer = await _open(address)
        writer.write(pack_bytes([CHANNEL, secret, token.lease, token.generation]))
        pumps = [asyncio.ensure_future(_up(connection, writer)), asyncio.ensure_future(_down(reader, connection))]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            writer.close()


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(rest, limit=FRAGMENT_BYTES)
    host, _, port = rest.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=FRAGMENT_BYTES)


async def _up(connection: ServerConnection, writer: asyncio.StreamWriter) -> None:
    """Customer to node, fragment by fragment, until the customer goes."""
    while True:
        async for fragment in connection.recv_streaming(decode=False):
            writer.write(fragment)
            await writer.drain()


async def _down(reader: asyncio.StreamReader, connection: ServerConnection) -> None:
    """Node to customer, one message per frame, until the node closes."""
    while True:
        prefix = await reader.read(PREFIX.size)
        if not prefix:
            await connection.close()
            return
        if len(prefix) < PREFIX.size:
            prefix += await reader.readexactly(PREFIX.size - len(prefix))
        size = sum(unpack_lengths(prefix))
        if size <= FRAGMENT_BYTES:
            await connection.send(prefix + await reader.readexactly(size))
        else:
            await connection.send(_fragments(prefix, reader, size))


async def _fragments(prefix: bytes, reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    yield prefix
    while size:
        fragment = await reader.read(min(size, FRAGMENT_BYTES))
        if not fragment:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(fragment)
        yield fragment


async def _close(connection: ServerConnection, reason: str, message: str) -> None:
    await connection.send(pack_bytes([channel.CLOSED, reason, message]))
    await connection.close()
