"""Customers who come through the control plane's relay: for each a connection is dialled out and joined to our gateway.

What passes is not looked at here, and the gateway treats it as any other connection. A slow side slows the other.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urljoin

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidURI, WebSocketException

from fabric.wire.link import Relay

_log = structlog.get_logger(__name__)

PIECE_BYTES = 256 << 10
OPEN_S = 10.0
AT_ONCE = 1024
"""Further customers are not let in; their leases' own connections come one at a time."""


class Relays:
    """One agent's.

    Args:
        url: the control plane's.
        gateway: host and port of our own gateway.
    """

    def __init__(self, url: str, gateway: Callable[[], tuple[str, int]]) -> None:
        self._url = url.rstrip("/") + "/"
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, message: Relay) -> None:
        """Let the customer in who waits there."""
        if len(self._tasks) >= AT_ONCE:
            _log.warning("a relayed customer was not let in", at_once=AT_ONCE)
            return
        task = asyncio.get_running_loop().create_task(self._join(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Every connection ends."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _join(self, message: Relay) -> None:
        url = "ws" + urljoin(self._url, message.url.lstrip("/")).removeprefix("http")
        dialled = connect(
            url,
            additional_headers={"Authorization": f"Bearer {message.secret}"},
            compression=None,
            open_timeout=OPEN_S,
            ping_interval=None,  # the gateway asks the customer for signs of life
            max_queue=4,
        )
        try:
            async with dialled as relay:
                host, port = self._gateway()
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    await _pump(relay, reader, writer)
                finally:
                    writer.close()
        except (OSError, WebSocketException, InvalidURI, TimeoutError) as error:
            _log.info("a relayed customer is gone", error=str(error) or type(error).__name__)


async def _pump(relay: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends."""
    ways = [asyncio.create_task(_inwards(relay, writer)), asyncio.create_task(_outwards(reader, relay))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _inwards(relay: ClientConnection, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, WebSocketException):
        async for data in relay:
            writer.write(data if isinstance(data, bytes) else data.encode())
            await writer.drain()


async def _outwards(reader: asyncio.StreamReader, relay: ClientConnection) -> None:
    with suppress(OSError, WebSocketException):
        while data := await reader.read(PIECE_BYTES):
            await relay.send(data)
