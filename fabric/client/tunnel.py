"""Bytes through the control plane's relay: a transport whose other end is the gateway of an operator behind NAT.

What passes is what a direct connection would carry, TLS with the gateway's own certificate included, so the relay reads
nothing of it. It knows no frames and does not reconnect.
"""

import asyncio
from typing import Any, cast

from fabric.client.stream import Stream

PIECE_BYTES = 256 << 10
"""So much is one message of the relay at most, which holds a few of them for each side."""


class Tunnel(asyncio.Transport):
    """One connection through a relay. `attach` once the relay has answered; then `set_protocol`."""

    _start_tls_compatible = True
    """What asyncio's own transports say of themselves when `loop.start_tls` may put TLS over them."""

    def __init__(self) -> None:
        super().__init__()
        self._protocol: asyncio.BaseProtocol | None = None
        self._stream: Stream | None = None
        self._early: list[bytes] = []
        self._closing = False

    def attach(self, stream: Stream) -> None:
        """The relay's end, answered."""
        self._stream = stream

    def on_message(self, data: bytes) -> None:
        """From the gateway."""
        if self._protocol is None:
            self._early.append(data)
        elif isinstance(self._protocol, asyncio.BufferedProtocol):
            _fill(self._protocol, memoryview(data))
        else:
            cast("asyncio.Protocol", self._protocol).data_received(data)

    def on_lost(self) -> None:
        """The relay's connection is over."""
        self._closing = True
        if self._protocol is not None:
            protocol, self._protocol = self._protocol, None
            protocol.connection_lost(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        early, self._early = self._early, []
        for data in early:
            self.on_message(data)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        if self._stream is not None:
            for at in range(0, view.nbytes, PIECE_BYTES):
                self._stream.send([view[at : at + PIECE_BYTES]])

    def close(self) -> None:
        self._closing = True
        if self._stream is not None:
            self._stream.close()

    def abort(self) -> None:
        self.close()

    def _force_close(self, exc: BaseException | None) -> None:  # noqa: ARG002 - how asyncio's TLS aborts what is below
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self._stream is not None:
            self._stream.hold()

    def resume_reading(self) -> None:
        if self._stream is not None:
            self._stream.release()

    def get_write_buffer_size(self) -> int:
        return 0 if self._stream is None else self._stream.unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Whoever sends here does not wait: what the peer is slow to take is buffered."""


def _fill(protocol: asyncio.BufferedProtocol, data: memoryview) -> None:
    while data.nbytes:
        room = memoryview(protocol.get_buffer(data.nbytes))
        size = min(room.nbytes, data.nbytes)
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
