"""A gang's network: members reach each other at fixed addresses and names; nobody else reaches or is reached."""

import asyncio
import os
import shutil
import socket
import struct
import types
from contextlib import suppress
from ipaddress import IPv4Address

import pytest

from fabric.agent import dialect
from fabric.agent.mesh import Mesh, address_of
from fabric.agent.sandbox.tun import DEVICE


def packet(source: int, target: int, payload: bytes = b"hello") -> bytes:
    addresses = IPv4Address(address_of(source)).packed + IPv4Address(address_of(target)).packed
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0) + addresses + payload


def test_ranks_have_addresses_of_their_own():
    assert [address_of(rank) for rank in (0, 1, 254, 255)] == ["10.78.0.1", "10.78.0.2", "10.78.0.255", "10.78.1.0"]
    with pytest.raises(ValueError, match="ranks 0 to"):
        address_of(-1)


@pytest.fixture
async def wire():
    """A mesh of rank 1 of three, and the child's end of its wire."""
    child, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child.setblocking(False)
    outer.setblocking(False)
    mesh = Mesh("gang", 1, ["", "", ""], "token")
    mesh.attach(outer.fileno())
    yield mesh, child
    await mesh.close()
    child.close()
    outer.close()


@pytest.mark.parametrize(
    "forged",
    [packet(2, 1), packet(0, 2), packet(0, 1)[:19], b"", b"\x60" + packet(0, 1)[1:]],
    ids=["another-sender", "another-target", "short", "empty", "version-6"],
)
async def test_a_peer_can_send_only_as_itself_and_only_to_this_rank(wire, forged):
    mesh, child = wire
    mesh.on_packet(0, packet(0, 1))
    assert child.recv(100) == packet(0, 1)
    mesh.on_packet(0, forged)
    with pytest.raises(BlockingIOError):
        child.recv(100)


class Line:
    """A peer's connection that notes what is sent on it."""

    open = True
    unsent_bytes = 0

    def __init__(self):
        self.sent = []

    def send(self, header, *body):
        self.sent += body

    def close(self):
        self.open = False


async def test_a_child_can_send_only_as_itself_and_only_to_the_rank_it_names(wire):
    mesh, child = wire
    lines = {0: Line()}
    assert mesh.accept(0, lines[0])
    assert not mesh.accept(2, Line())
    assert not mesh.accept(-1, Line())
    for each in (packet(2, 0), packet(1, 2), packet(1, 1), b"x", packet(1, 0)):
        child.send(each)
    await asyncio.sleep(0.05)
    assert lines[0].sent == [packet(1, 0)]


async def test_a_connection_without_the_token_or_of_no_gang_here_is_closed(make_site, peer):
    site = make_site(isolation="bubblewrap", networks=("gang",))
    await site.start()
    try:
        for first in ([dialect.GANG, "wrong", "gang", 0, 1], [dialect.GANG, site.token, "gang", 0, 1]):
            stranger = type(peer)()
            await stranger.connect(site.address)
            stranger.send(first)
            await stranger.end()
    finally:
        await site.stop()


def serve_once(port):
    """Rank 0: take one connection at the own address, answer what came with how it came."""
    import socket

    with socket.create_server(("10.78.0.1", port)) as server:
        connection, (source, _) = server.accept()
        with connection:
            received = b""
            while len(received) < 3_000_000:
                received += connection.recv(1 << 20)
            connection.sendall(b"%d from %s" % (len(received), source.encode()))
    return os.environ["FABRIC_RANK"], os.environ["FABRIC_PEERS"]


def speak(port):
    """Rank 1: reach rank 0 by its name, then try who is not in the gang."""
    import socket
    import time

    for _ in range(100):
        try:
            connection = socket.create_connection(("rank-0", port), timeout=5)
            break
        except OSError:
            time.sleep(0.05)
    with connection:
        connection.sendall(bytes(3_000_000))
        answer = connection.recv(100).decode()
    reached = []
    for address in ("10.78.0.3", "127.0.0.1", "10.0.0.1", "1.1.1.1"):
        try:
            socket.create_connection((address, port), timeout=0.3).close()
            reached.append(address)
        except OSError:
            pass
    return answer, reached


def reaches(address, port):
    import socket

    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def by_value(function):
    """As a function of no module, so that it travels whole: the child has none of the tests."""
    made = types.FunctionType(function.__code__, {"os": os}, function.__name__)
    made.__module__ = "__main__"
    return made


@pytest.mark.sandbox
@pytest.mark.skipif(
    shutil.which("bwrap") is None or not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"needs bubblewrap and {DEVICE}"
)
async def test_two_nodes_of_a_gang_reach_each_other_and_a_stranger_with_the_same_address_reaches_nobody(
    make_site, tmp_path_factory
):
    serve, ask = by_value(serve_once), by_value(speak)
    sites = [make_site(isolation="bubblewrap", networks=("gang",)) for _ in range(2)]
    object.__setattr__(sites[1].config, "state_dir", tmp_path_factory.mktemp("other"))
    for site in sites:
        await site.start()
    try:
        assert all("network:gang" in site.hello["info"]["capabilities"] for site in sites)
        peers = [site.hello["gang"] for site in sites]
        customers = [
            await site.leased(network="gang", gang={"group": "g", "rank": rank, "peers": peers})
            for rank, site in enumerate(sites)
        ]
        other = {"group": "stranger", "rank": 1, "peers": peers}
        stranger = await sites[1].leased(
            "lease_2", run="run_2", gpus=[[sites[1].gpus[1], 1000]], network="gang", gang=other
        )
        customers[0].call(customers[0].function(serve), 29500)
        stranger.call(stranger.function(by_value(reaches)), "10.78.0.1", 29500, run="run_2")
        assert await stranger.outcomes(1) == {0: False}
        customers[1].call(customers[1].function(ask), 29500)
        assert (await customers[1].outcomes(1))[0] == ("3000000 from 10.78.0.2", [])
        assert (await customers[0].outcomes(1))[0] == ("0", "10.78.0.1,10.78.0.2")
    finally:
        for site in sites:
            with suppress(Exception):
                await site.stop()
