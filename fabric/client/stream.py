"""One WebSocket connection as an asyncio protocol: frames out without a task switch, messages in by callback.

The protocol itself is `websockets`' sans-IO client; this only moves bytes. It does not reconnect.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from fabric.wire.errors import AuthError, ServiceError
from fabric.wire.frames import Buffer

CONNECT_S = 10.0
JOIN_BYTES = 64 << 10
"""A message up to this size is joined and goes out as one frame; a larger one in fragments, its buffers not joined."""
FRAGMENT_BYTES = 1 << 20
"""So long is a fragment at most; the gateway, which holds no body, takes none beyond 4 MiB."""


class Stream(asyncio.Protocol):
    """An open connection. `on_message` gets each whole binary message, `on_lost` is called once at its end."""

    def __init__(self, url: str, token: str, on_message: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._websocket = ClientProtocol(parse_uri(url), max_size=None)
        self._token = token
        self._on_message = on_message
        self._on_lost = on_lost
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and self._websocket.state is State.OPEN

    def send(self, *messages: list[Buffer]) -> None:
        """Binary messages, each given as its parts; buffered when the peer is slow."""
        if not self.is_open:
            return
        for parts in messages:
            if sum(memoryview(part).nbytes for part in parts) <= JOIN_BYTES:
                self._websocket.send_binary(parts[0] if len(parts) == 1 else b"".join(parts))
            else:
                self._send_fragments([part for part in parts if memoryview(part).nbytes])
        self._flush()

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def hold(self) -> None:
        """Take nothing more from the peer until `release`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """End the connection; `on_lost` follows."""
        if self._transport is not None:
            if self.is_open:
                self._websocket.send_close(1000)
                self._flush()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        request = self._websocket.connect()
        request.headers["Authorization"] = f"Bearer {self._token}"
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self._websocket.receive_data(data)
        finally:
            for event in self._websocket.events_received():
                self._on_event(event)
            self._flush()

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(ServiceError(f"the gateway closed the connection ({exc})", retryable=True))
        self._on_lost()

    async def opened(self) -> None:
        """Wait for the gateway's answer.

        Raises:
            AuthError: it refused the token; its words are the message.
            ServiceError: it answered something else, or nothing in time.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.shield(self._opened)
        except TimeoutError:
            raise ServiceError(f"the gateway did not answer within {CONNECT_S:.0f} s", retryable=True) from None

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Response):
            self._on_response(event)
        elif isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.CONT):
            self._parts.append(bytes(event.data))
            if event.fin:
                message = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._on_message(message)

    def _on_response(self, response: Response) -> None:
        error = self._websocket.handshake_exc
        if self._opened.done():
            return
        if error is None:
            self._opened.set_result(None)
        elif response.status_code in (401, 403):
            self._opened.set_exception(AuthError(bytes(response.body).decode(errors="replace") or "token refused"))
        else:
            what = response.status_code if isinstance(error, InvalidHandshake) else error
            self._opened.set_exception(ServiceError(f"the gateway answered {what}", retryable=True))

    def _send_fragments(self, parts: list[Buffer]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        cut = [view[at : at + FRAGMENT_BYTES] for view in views for at in range(0, view.nbytes, FRAGMENT_BYTES)]
        last = len(cut) - 1
        for at, part in enumerate(cut):
            if at == 0:
                self._websocket.send_binary(part, fin=last == 0)
            else:
                self._websocket.send_continuation(part, fin=at == last)

    def _flush(self) -> None:
        if self._transport is None:
            return
        joined: list[bytes] = []
        for data in self._websocket.data_to_send():
            if data and len(data) <= JOIN_BYTES:
                joined.append(data)
                continue
            self._transport.write(b"".join(joined))
            joined.clear()
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
        if joined:
            self._transport.write(joined[0] if len(joined) == 1 else b"".join(joined))
