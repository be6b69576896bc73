"""Ways to a lease's gateway: direct where it can be reached, through the control plane's relay where it cannot.

A gateway with a certificate of its own is believed only when that has the fingerprint that the control plane states;
the lease token is not sent before that is sure. Reconnecting is the channel's.
"""

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import cast
from urllib.parse import SplitResult, urlsplit

from websockets.exceptions import WebSocketException

from fabric.client.stream import CONNECT_S, Stream
from fabric.client.tunnel import Tunnel
from fabric.wire.errors import AuthError, ServiceError

DIRECT_S = 1.0
"""A gateway with which no connection is made within this is tried through the relay."""
REMEMBERED_S = 120.0
"""So long a gateway that could not be reached is not tried again."""

OnMessage = Callable[[bytes], None]
OnLost = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a lease's data channel is, and the token that opens it.

    `gateway` is "" where only the `relay` leads there; `relay` is "" where there is none. `fingerprint` is the SHA-256
    (hexadecimal) of the gateway's own certificate, "" where it has none.
    """

    lease: str
    generation: int
    gateway: str
    token: str
    fingerprint: str = ""
    relay: str = ""


class _Unreachable(Exception):
    """No connection; the gateway may still be reached another way."""


_out_of_reach: dict[str, float] = {}
"""Until when a gateway is not tried; of the whole process, which stands in one network."""


def note_unreachable(gateway: str) -> None:
    """It was tried in vain just now."""
    _out_of_reach[gateway] = time.monotonic() + REMEMBERED_S


def is_unreachable(gateway: str) -> bool:
    return not gateway or _out_of_reach.get(gateway, 0.0) > time.monotonic()


async def open_route(route: Route, on_message: OnMessage, on_lost: OnLost) -> Stream:
    """A connection to the lease's gateway, answered.

    Raises:
        AuthError: the token opens nothing there, or somebody else answers there.
        ServiceError: nobody there, or no WebSocket.
    """
    if not (route.relay and is_unreachable(route.gateway)):
        try:
            transport = await _connect(urlsplit(route.gateway), DIRECT_S if route.relay else CONNECT_S)
        except _Unreachable as error:
            if not route.relay:
                raise ServiceError(f"the gateway {route.gateway} cannot be reached: {error}", retryable=True) from None
            note_unreachable(route.gateway)
        else:
            return await _enter(route, transport, on_message, on_lost)
    return await _enter(route, await _tunnel(route), on_message, on_lost)


async def _connect(parts: SplitResult, within_s: float) -> asyncio.Transport:
    """A TCP connection, on which nothing was sent."""
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    if parts.scheme == "ws" and not _is_loopback(parts.hostname or ""):
        raise ServiceError(
            f"the gateway {parts.geturl()} would carry the lease token and data in the clear; its operator must "
            "switch on TLS (gateway_tls)"
        )
    try:
        async with asyncio.timeout(within_s):
            made = asyncio.get_running_loop().create_connection(asyncio.Protocol, parts.hostname or "", port)
            transport, _ = await made
    except TimeoutError:
        raise _Unreachable(f"no connection within {within_s:g} s") from None
    except OSError as error:
        raise _Unreachable(str(error)) from None
    return transport


async def _tunnel(route: Route) -> Tunnel:
    """Through the relay, which has answered."""
    tunnel = Tunnel()
    outer = Stream(route.relay, route.token, tunnel.on_message, tunnel.on_lost)
    tunnel.attach(outer)
    parts = urlsplit(route.relay)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: outer,
                parts.hostname or "",
                parts.port or (443 if parts.scheme == "wss" else 80),
                ssl=ssl.create_default_context() if parts.scheme == "wss" else None,
            )
        await outer.opened()
    except (OSError, TimeoutError, WebSocketException) as error:
        raise ServiceError(
            f"the relay {route.relay} cannot be reached: {error or 'no answer'}", retryable=True
        ) from None
    except BaseException:
        outer.close()
        raise
    return tunnel


async def _enter(route: Route, transport: asyncio.Transport, on_message: OnMessage, on_lost: OnLost) -> Stream:
    """The data channel over a connection to the gateway."""
    parts = urlsplit(route.gateway)
    address = route.gateway or ("wss" if route.fingerprint else "ws") + "://gateway/v1/channel"
    stream = Stream(address, route.token, on_message, on_lost)
    try:
        if route.fingerprint or parts.scheme == "wss":
            transport = await _secured(transport, stream, route.fingerprint, parts.hostname)
            _expect(transport, route)
        else:
            transport.set_protocol(stream)
        stream.connection_made(transport)
        await stream.opened()
    except (OSError, TimeoutError, WebSocketException) as error:
        transport.abort()
        raise ServiceError(f"the gateway {address} cannot be reached: {error or 'no answer'}", retryable=True) from None
    except BaseException:
        transport.abort()
        raise
    return stream


async def _secured(
    transport: asyncio.Transport, stream: Stream, fingerprint: str, host: str | None
) -> asyncio.Transport:
    """TLS over it; by the fingerprint alone where there is one, else as the system's authorities say."""
    context = ssl.create_default_context()
    if fingerprint:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    loop = asyncio.get_running_loop()
    made = await loop.start_tls(
        transport, stream, context, server_hostname=host or "gateway", ssl_handshake_timeout=CONNECT_S
    )
    return cast("asyncio.Transport", made)


def _expect(transport: asyncio.Transport, route: Route) -> None:
    """Raises AuthError when the certificate is another than the control plane states."""
    if not route.fingerprint:
        return
    shown = hashlib.sha256(transport.get_extra_info("ssl_object").getpeercert(binary_form=True)).hexdigest()
    if shown != route.fingerprint:
        raise AuthError(
            f"what answers at {route.gateway or 'the far end of the relay'} is not the operator's gateway: its "
            f"certificate has the fingerprint {shown}, the control plane states {route.fingerprint}; nothing was sent"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
