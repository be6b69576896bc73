"""A child's way to the network: an HTTP proxy on a unix socket, outside the sandbox, that dials for it what is allowed.

The child's own network has only `lo`. Names are resolved here, once, and the address that was checked is the one that
is dialled, so a name cannot change its meaning in between. Private, loopback, link-local and reserved addresses and the
node's own are refused, whatever a name resolves to, unless the run lists the host and the operator allows its address.
It knows CONNECT (any protocol on TCP) and plain `http://` requests; it looks into neither.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import structlog

from fabric.wire.surroundings import HOSTS, OPEN

_log = structlog.get_logger(__name__)

WEB_PORTS = frozenset({80, 443})
"""A host that is listed without a port means these."""
MAX_CONNECTIONS = 256

_HEAD_BYTES = 16 << 10
_HEAD_S = 30.0
_DIAL_S = 20.0
_PIECE_BYTES = 256 << 10

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_TUNNELS = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
"""Addresses that stand for an IPv4 address behind them."""


class Refused(Exception):
    """The child may not reach it; says what and what it could."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one child may reach.

    Attributes:
        network: `hosts` or `open`.
        hosts: with `hosts`, as `surroundings.check_network` gives them.
        private: networks that are not public and that a listed host may lie in, by the operator's word.
    """

    network: str
    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    def lists(self, host: str, port: int) -> bool:
        """Whether the run asked for this host and port."""
        return self.network == OPEN or any(_matches(entry, host, port) for entry in self.hosts)

    def permits(self, address: IpAddress, own: frozenset[str]) -> bool:
        """Whether an address that a listed host has may be dialled."""
        address = getattr(address, "ipv4_mapped", None) or address
        listed = self.network == HOSTS and any(address in ipaddress.ip_network(one) for one in self.private)
        public = address.is_global and not address.is_multicast and not any(address in one for one in _TUNNELS)
        return listed or (public and str(address) not in own)


class Proxy:
    """One child's, on a socket of its own."""

    def __init__(self, path: Path, allowed: Allowed, own: Callable[[], frozenset[str]] | None = None) -> None:
        self.path = path
        self._allowed = allowed
        self._own = own or own_addresses
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; whoever can reach the path may use it."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._on_client, self.path, limit=_HEAD_BYTES)
        self.path.chmod(0o666)

    async def stop(self) -> None:
        self._server.close()
        self.path.unlink(missing_ok=True)
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side is gone, or talks no HTTP
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
        if len(self._open) > MAX_CONNECTIONS:
            await _answer(writer, "503 Service Unavailable", f"{MAX_CONNECTIONS} connections are open; close some")
            return
        try:
            host, port, onward = _wanted(head)
            far_reader, far_writer = await self._dial(host, port)
        except Refused as refused:
            await _answer(writer, "403 Forbidden", str(refused))
            return
        except (OSError, TimeoutError) as error:
            await _answer(writer, "502 Bad Gateway", f"it does not answer: {error}")
            return
        try:
            if onward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far_writer.write(onward)
            await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
        finally:
            far_writer.transport.abort()

    async def _dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first address of the host that is allowed.

        Raises:
            Refused: the host is not listed, or no address of it may be dialled.
            OSError, TimeoutError: it does not answer.
        """
        if not self._allowed.lists(host, port):
            raise Refused(f"{host}:{port} is not in the run's network={list(self._allowed.hosts)}")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_DIAL_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            own = self._own()
            names = dict.fromkeys(str(one[4][0]) for one in found)
            may = [name for name in names if self._allowed.permits(ipaddress.ip_address(name.partition("%")[0]), own)]
            if not may:
                raise Refused(f"{host} has no public address; private ones are closed unless the operator opens them")
            last: OSError = ConnectionRefusedError(host)
            for name in may:
                try:
                    return await asyncio.open_connection(name, port)
                except OSError as error:
                    last = error
            raise last


def own_addresses() -> frozenset[str]:
    """Every address of this machine: services on them are the operator's, whatever port they have."""
    return frozenset(one.address.partition("%")[0] for each in psutil.net_if_addrs().values() for one in each)


def _matches(entry: str, host: str, port: int) -> bool:
    name, _, listed_port = entry.partition(":")
    right_port = port == int(listed_port) if listed_port else port in WEB_PORTS
    same = host.endswith(name[1:]) if name.startswith("*.") else host == name
    return right_port and same


def _wanted(head: bytes) -> tuple[str, int, bytes | None]:
    """Host, port, and what to send there first; None for a tunnel.

    Raises:
        Refused: no request that a proxy can serve.
    """
    line, _, rest = head.partition(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise Refused("not a request of HTTP") from None
    if not host or (method != "CONNECT" and parts.scheme != "http") or (method == "CONNECT" and port is None):
        raise Refused("a proxy serves CONNECT host:port, and http:// addresses")
    if method == "CONNECT":
        return host, port or 0, None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [one for one in rest[:-4].split(b"\r\n") if not one.lower().startswith((b"proxy-", b"connection:"))]
    return (
        host,
        port or 80,
        b"\r\n".join((f"{method} {path} {version}".encode(), *kept, b"Connection: close", b"", b"")),
    )


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes in one direction to their end, no faster than they are taken."""
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = f"fabric: {text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.write_eof()
    await asyncio.sleep(0)
