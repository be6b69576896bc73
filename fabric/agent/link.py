"""The agent's WebSocket to the control plane: dials out, proves its key, re-dials for ever, stops on a final refusal.

What the messages lead to is its listener's business. Messages that must not be lost are kept while there is no
connection; those that a reconnect makes anew (receipts, heartbeats) are not.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import structlog
from nacl.signing import SigningKey
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from fabric.wire import link
from fabric.wire.link import Challenge, Ended, Hello, LinkError, Logs, Refuse, Welcome, WorkDone

_log = structlog.get_logger(__name__)

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
SILENCE_S = 15.0
"""A control plane that sends no nonce for so long is dialled anew; they come every second."""

_KEPT = (Ended, WorkDone, Logs)
_MAX_KEPT = 10_000


class Refused(RuntimeError):
    """The control plane refuses this agent as it is configured."""


class Listener(Protocol):
    """Hears the control plane."""

    def hello(self, challenge: Challenge) -> Hello: ...
    async def on_welcome(self, fabric_id: str, welcome: Welcome) -> None: ...
    async def on_message(self, message: Any) -> None: ...
    def on_lost(self) -> None: ...


class Link:
    """One agent's connection. `url` is the control plane's `http(s)://…`."""

    def __init__(self, url: str, listener: Listener, jitter: Callable[[], float] = random.random) -> None:
        self._url = "ws" + url.removeprefix("http").rstrip("/") + "/v1/agent"
        self._listener = listener
        self._jitter = jitter
        self._queue: deque[BaseModel] = deque()
        self._more = asyncio.Event()
        self._connected = False
        self._failures = 0

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent."""
        return not self._queue

    def send(self, message: BaseModel) -> None:
        """Queue a message; without a connection only those that would be lost are kept."""
        if self._connected or isinstance(message, _KEPT):
            if len(self._queue) >= _MAX_KEPT and not self._connected:
                self._queue.popleft()
            self._queue.append(message)
            self._more.set()

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            Refused: the control plane refuses for good; the message says why.
        """
        while True:
            try:
                async with connect(self._url, max_size=link.MAX_MESSAGE_BYTES, compression=None) as socket:
                    await self._converse(socket)
            except (OSError, WebSocketException, InvalidHandshake, InvalidURI, LinkError, TimeoutError) as error:
                _log.info("no control plane", url=self._url, error=str(error) or type(error).__name__)
            finally:
                self._lose()
            delay = min(MAX_DELAY_S, FIRST_DELAY_S * 2**self._failures) * (0.5 + self._jitter() / 2)
            self._failures = min(self._failures + 1, 10)
            await asyncio.sleep(delay)

    async def _converse(self, socket: ClientConnection) -> None:
        challenge = await self._receive(socket)
        if not isinstance(challenge, Challenge):
            raise LinkError(f"the control plane began with {challenge.kind!r}, not with a challenge")
        await socket.send(link.encode(self._listener.hello(challenge)))
        answer = await self._receive(socket)
        if isinstance(answer, Refuse):
            if answer.final:
                raise Refused(f"the control plane at {self._url} refuses this agent: {answer.reason}")
            raise LinkError(f"refused for now: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise LinkError(f"the control plane answered {answer.kind!r} to our hello")
        self._failures = 0
        self._connected = True
        _log.info("connected", url=self._url, fabric=challenge.fabric_id)
        await self._listener.on_welcome(challenge.fabric_id, answer)
        sender = asyncio.create_task(self._send_forever(socket))
        try:
            while True:
                await self._listener.on_message(await self._receive(socket))
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketException, OSError):
                await sender

    async def _send_forever(self, socket: ClientConnection) -> None:
        while True:
            while self._queue:
                await socket.send(link.encode(self._queue[0]))
                self._queue.popleft()
            self._more.clear()
            await self._more.wait()

    @staticmethod
    async def _receive(socket: ClientConnection) -> Any:
        async with asyncio.timeout(SILENCE_S):
            data = await socket.recv(decode=False)
        return link.decode(data if isinstance(data, bytes) else bytes(data))

    def _lose(self) -> None:
        if self._connected:
            self._connected = False
            self._queue = deque(message for message in self._queue if isinstance(message, _KEPT))
            self._listener.on_lost()


def hello(challenge: Challenge, key: SigningKey, **fields: Any) -> Hello:
    """A `Hello` with its proof; the other fields are the agent's."""
    payload = link.hello_payload(challenge.value, fields["operator"], fields["cluster"])
    return Hello(protocol=link.PROTOCOL, session_key=bytes(key.verify_key), proof=key.sign(payload).signature, **fields)
