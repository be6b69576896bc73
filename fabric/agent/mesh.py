"""A gang's network on one node: passes packets between one lease's `fab0` and its peers' nodes, and to nobody else.

Each pair of ranks has one connection between their nodes; the lower rank dials. A packet leaves only to the rank whose
address it bears, and enters only with the sender's and the own address on it: whoever sits in a sandbox of the gang can
forge neither. Packets for which there is no way yet are dropped, as a network does.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import structlog

from fabric.agent.dialect import GANG
from fabric.agent.stream import FrameStream, connect
from fabric.wire.frames import Buffer

_log = structlog.get_logger(__name__)

MAX_RANKS = 60_000
_FIRST = int(IPv4Address("10.78.0.1"))
_PACKET = ["p"]
_PACKET_BYTES = 65_536
_AHEAD_BYTES = 4 << 20
_AT_A_TIME = 64
_RETRY_S = 0.2


def address_of(rank: int) -> str:
    """A rank's address in its gang's network.

    Raises:
        ValueError: a gang has no such rank.
    """
    if not 0 <= rank < MAX_RANKS:
        raise ValueError(f"rank {rank}; a gang has ranks 0 to {MAX_RANKS - 1}")
    return str(IPv4Address(_FIRST + rank))


class Mesh:
    """One lease's. `peers` are the addresses at which the nodes of all ranks take gangs' connections."""

    def __init__(self, group: str, rank: int, peers: Sequence[str], token: str) -> None:
        self.group = group
        self.rank = rank
        self._peers = peers
        self._token = token
        self._links: dict[int, FrameStream] = {}
        self._wire: int | None = None
        self._own = IPv4Address(address_of(rank)).packed
        self._dialling = [
            asyncio.ensure_future(self._stay_linked(other, peers[other])) for other in range(rank + 1, len(peers))
        ]
        self._draining: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(address, name) of every rank."""
        return tuple((address_of(rank), f"rank-{rank}") for rank in range(len(self._peers)))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FABRIC_RANK": str(self.rank),
            "FABRIC_WORLD_SIZE": str(len(self._peers)),
            "FABRIC_PEERS": ",".join(address for address, _ in self.names),
        }

    def attach(self, wire: int) -> None:
        """The other end of this descriptor is the child's interface from now on."""
        self.detach()
        self._wire = wire
        asyncio.get_running_loop().add_reader(wire, self._on_wire)

    def detach(self) -> None:
        """The child is gone; its end of the wire is about to be closed."""
        if self._wire is not None:
            asyncio.get_running_loop().remove_reader(self._wire)
            self._wire = None

    def accept(self, other: int, stream: FrameStream) -> bool:
        """A lower rank's node has dialled; False when no such rank would."""
        if not 0 <= other < self.rank:
            return False
        self._link(other, stream)
        return True

    def on_packet(self, other: int, packet: Buffer) -> None:
        """From a peer, to the child."""
        view = memoryview(packet)
        sender = IPv4Address(address_of(other)).packed
        fits = view.nbytes >= 20 and view[0] >> 4 == 4 and view[12:16] == sender and view[16:20] == self._own
        if fits and self._wire is not None:
            with contextlib.suppress(OSError):  # a full interface drops, as any does
                os.write(self._wire, packet)

    async def close(self) -> None:
        self.detach()
        tasks = [*self._dialling, *([self._draining] if self._draining is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in self._links.values():
            stream.close()
        self._links.clear()

    def _link(self, other: int, stream: FrameStream) -> None:
        older = self._links.get(other)
        if older is not None and older is not stream:
            older.close()
        self._links[other] = stream

    async def _stay_linked(self, other: int, address: str) -> None:
        """Dial a higher rank's node until it takes the connection, and again when it breaks."""
        while True:
            down = asyncio.Event()
            try:
                stream = await connect(
                    address, lambda _, body: self.on_packet(other, body), lambda _, down=down: down.set()
                )
            except (OSError, ValueError):
                await asyncio.sleep(_RETRY_S)
                continue
            stream.send([GANG, self._token, self.group, self.rank, other])
            self._link(other, stream)
            await down.wait()
            await asyncio.sleep(_RETRY_S)

    def _on_wire(self) -> None:
        """Packets of the child, a few at a time; none are read while a peer is slow."""
        for _ in range(_AT_A_TIME):
            if self._wire is None:
                return
            try:
                packet = os.read(self._wire, _PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("a gang's wire broke", group=self.group, error=str(error))
                self.detach()
                return
            stream = self._stream_to(packet)
            if stream is None:
                continue
            stream.send(_PACKET, packet)
            if stream.unsent_bytes > _AHEAD_BYTES:
                self._wait_for(stream)
                return

    def _stream_to(self, packet: bytes) -> FrameStream | None:
        if len(packet) < 20 or packet[0] >> 4 != 4 or packet[12:16] != self._own:
            return None
        stream = self._links.get(int.from_bytes(packet[16:20], "big") - _FIRST)
        return stream if stream is not None and stream.open else None

    def _wait_for(self, stream: FrameStream) -> None:
        wire = self._wire
        assert wire is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(wire)

        async def wait() -> None:
            await stream.drain()
            if self._wire == wire:
                loop.add_reader(wire, self._on_wire)

        self._draining = asyncio.ensure_future(wait())


class GangLine:
    """A connection that another node has dialled for one of its ranks: what follows are packets."""

    def __init__(self, mesh: Mesh, other: int) -> None:
        self._mesh = mesh
        self._other = other

    def handle(self, header: list[Any], body: Buffer) -> None:
        del header
        self._mesh.on_packet(self._other, body)
