"""Round trips to gateways and control planes, measured: a small HTTP request that everybody may make, timed.

The time runs from the request's last byte sent to the answer's first line, so that relays and load balancers on the way
are in it and setting up the connection is not. It estimates nothing.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from fabric.wire.channel import PING_PATH

TRIES = 3
"""The least of so many counts: whatever disturbs a round trip makes it longer."""
TIMEOUT_S = 3.0
_AT_ONCE = 8
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}


async def round_trips_us(urls: Mapping[str, str]) -> dict[str, int]:
    """The least of a few round trips to each of these addresses, in microseconds; who does not answer is left out.

    Args:
        urls: ws, wss, http or https addresses by any name; of each only scheme, host and port are used, unless its path
            is a ping's of its own.
    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(url: str) -> int | None:
        async with gate:
            return await _round_trip_us(url)

    found = await asyncio.gather(*(one(url) for url in urls.values()))
    return {name: rtt_us for name, rtt_us in zip(urls, found, strict=True) if rtt_us is not None}


async def _round_trip_us(url: str) -> int | None:
    with suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            return min([await _once(url) for _ in range(TRIES)])
    return None


async def _once(url: str) -> int:
    """One round trip.

    Raises:
        OSError: nobody listens there. ValueError: no such address, or somebody else answers there.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not the address of a gateway")
    secure = _unverified() if parts.scheme in ("wss", "https") else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or _PORTS[parts.scheme], ssl=secure)
    try:
        started = time.perf_counter_ns()
        path = parts.path if parts.path.endswith("/ping") else PING_PATH
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.readline()
        ended = time.perf_counter_ns()
    finally:
        writer.close()
    status = answer.split(b" ", 2)[1:2]
    if not answer.startswith(b"HTTP/1.1 ") or status not in ([b"200"], [b"204"]):
        raise ValueError(f"{url} answered {answer[:40]!r} to a ping")
    return max(1, (ended - started) // 1000)


def _unverified() -> ssl.SSLContext:
    """A ping tells nothing and believes nothing, so whose certificate it is does not matter."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
