"""Customers' connections that the gateway gives to a node on the same machine."""

import asyncio
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from fabric.agent.dialect import CHANNEL
from fabric.agent.gateway import PATH, Gateway
from fabric.agent.hall import Hall
from fabric.agent.handover import MAX_EARLY_BYTES, Handed, door_of, hand_over
from fabric.agent.stream import FrameStream
from fabric.wire.clock import SystemClock
from fabric.wire.frames import pack_bytes, unpack
from fabric.wire.tokens import LeaseToken, sign_token

GREETING = [CHANNEL, "secret", "lease_1", 2]


class Leases:
    def __init__(self, key, address):
        self.token_key = key
        self.opened = asyncio.Event()
        self.address = address

    def superseded(self, token):
        return False

    async def node_of(self, token):
        await self.opened.wait()
        return self.address, "secret"


class Node:
    """Keeps what its one customer sends."""

    def __init__(self, path):
        self.heard = asyncio.Queue()
        self.gone = asyncio.Event()
        self.stream = None
        self.hall = Hall(f"unix:{path}", "secret", self.serve)

    def serve(self):
        self.stream = FrameStream(lambda *frame: self.heard.put_nowait(frame), lambda _: self.gone.set())
        return self.stream

    async def hear(self):
        header, body = await asyncio.wait_for(self.heard.get(), 10)
        return header, bytes(body)


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="hall") as folder:
        yield Path(folder) / "n"


@pytest.fixture
async def lease(path):
    """(leases, dial, node): a gateway whose only way to the node is to hand its customers over."""
    key = SigningKey.generate()
    leases, node = Leases(key.verify_key.encode(), f"unix:{path}"), Node(path)
    gateway = Gateway(leases, operator="op_1", clock=SystemClock())
    port = await gateway.start("127.0.0.1", 0)

    def dial(**more):
        token = LeaseToken("op_1", "lease_1", 2, "ses_1", time.time_ns() // 1_000_000 + 60_000)
        headers = {"Authorization": f"Bearer {sign_token(token, key)}"}
        return connect(f"ws://127.0.0.1:{port}{PATH}", additional_headers=headers, max_size=None, **more)

    yield leases, dial, node
    node.hall.close()
    await gateway.stop()


async def stuck(step):
    try:
        await asyncio.wait_for(step, 0.5)
    except TimeoutError:
        return True
    return False


async def test_frames_pass_both_ways_whole_and_in_order(lease):
    leases, dial, node = lease
    async with dial() as socket:
        await socket.send(pack_bytes(["early"], b"1"))
        leases.opened.set()
        assert await node.hear() == (GREETING, b"")
        assert await node.hear() == (["early"], b"1")
        large = bytes(range(256)) * (3 << 12)
        frame = pack_bytes(["large"], large) + pack_bytes(["small"], b"2")
        await socket.send(frame[at : at + 100_000] for at in range(0, len(frame), 100_000))
        assert await node.hear() == (["large"], large)
        assert await node.hear() == (["small"], b"2")
        node.stream.send(["large"], large)
        node.stream.send(["small"], b"3")
        assert [unpack(await socket.recv()) for _ in range(2)] == [(["large"], large), (["small"], b"3")]


async def test_who_sent_much_before_the_lease_was_open_stays_with_the_gateway(lease, path):
    leases, dial, node = lease
    taken = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(lambda *streams: taken.set_result(streams), path)
    async with dial() as socket:
        body = bytes(MAX_EARLY_BYTES)
        await socket.send(pack_bytes(["early"], body))
        await (await socket.ping())
        leases.opened.set()
        reader, writer = await taken
        assert await reader.readexactly(len(body))
        assert node.stream is None
        writer.close()
    server.close()


async def test_a_node_that_does_not_listen_for_connections_is_reached_through_the_gateway(lease, path):
    leases, dial, node = lease
    node.hall.close()
    taken = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(lambda *streams: taken.set_result(streams), path)
    leases.opened.set()
    async with dial() as socket:
        _, writer = await taken
        writer.write(pack_bytes(["here"]))
        assert unpack(await socket.recv())[0] == ["here"]
        writer.close()
    server.close()


async def test_the_gateway_may_go_and_the_customer_stays(lease):
    leases, dial, node = lease
    leases.opened.set()
    async with dial() as socket:
        await node.hear()
        await socket.send(pack_bytes(["still"]))
        assert await node.hear() == (["still"], b"")
        node.stream.send(["here"])
        assert unpack(await socket.recv())[0] == ["here"]


@pytest.mark.parametrize(("end", "code"), [("close", 1000), ("abort", 1011)])
async def test_the_node_s_end_of_the_connection_is_the_customer_s(lease, end, code):
    leases, dial, node = lease
    leases.opened.set()
    async with dial() as socket:
        await node.hear()
        node.stream.send(["last"])
        getattr(node.stream, end)()
        assert unpack(await socket.recv())[0] == ["last"]
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == code
    await asyncio.wait_for(node.gone.wait(), 10)


async def test_a_customer_that_goes_is_told_to_the_node_after_its_last_frame(lease):
    leases, dial, node = lease
    leases.opened.set()
    async with dial() as socket:
        await node.hear()
        await socket.send(pack_bytes(["last"]))
    assert await node.hear() == (["last"], b"")
    await asyncio.wait_for(node.gone.wait(), 10)


async def test_a_node_that_takes_nothing_slows_its_customer(lease):
    leases, dial, node = lease
    leases.opened.set()
    total, sent, frame = 64 << 20, 0, pack_bytes(["bulk"], bytes(1 << 20))
    async with dial(write_limit=1) as socket:
        await node.hear()
        node.stream.hold()
        while sent < total and not await stuck(socket.send(frame)):
            sent += len(frame)
        assert sent < total // 2
        assert node.heard.empty()
        node.stream.release()
        for _ in range(sent // len(frame)):
            assert await node.hear() == (["bulk"], bytes(1 << 20))


async def test_a_customer_that_takes_nothing_slows_its_node(lease):
    leases, dial, node = lease
    leases.opened.set()
    total, sent, body = 64 << 20, 0, bytes(1 << 20)
    async with dial(max_queue=1) as socket:
        await node.hear()
        node.stream.send(["bulk"], body)
        while sent < total and not await stuck(node.stream.drain()):
            node.stream.send(["bulk"], body)
            sent += len(body)
        assert sent < total // 2
        for _ in range(1 + sent // len(body)):
            assert unpack(await socket.recv()) == (["bulk"], body)


@pytest.fixture
def customer():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    yield ours, theirs
    ours.close()
    theirs.close()


async def ended(ours):
    with suppress(ConnectionResetError):
        return await asyncio.to_thread(ours.recv, 1) == b""
    return True


async def test_who_does_not_know_the_node_s_token_hands_nobody_over(lease, path, customer):
    _, _, node = lease
    ours, theirs = customer
    assert hand_over(f"unix:{path}", theirs.fileno(), Handed("guess", "lease_1", 2, b""))
    theirs.close()
    assert await ended(ours)
    assert node.stream is None


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x94\1\2\3", b"\x94\xa1x\xa1x\xa1x\xc0"])
async def test_what_is_no_handing_over_is_dropped(lease, path, customer, message):
    _, _, node = lease
    ours, theirs = customer
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver:
        giver.connect(str(door_of(path)))
        socket.send_fds(giver, [message], [theirs.fileno()])
    theirs.close()
    assert await ended(ours)
    assert node.stream is None


def test_what_cannot_be_handed_over_stays(path, customer):
    _, theirs = customer
    assert not hand_over(f"unix:{path}", theirs.fileno(), Handed("secret", "lease_1", 2, b""))
    assert not hand_over("tcp:127.0.0.1:1", theirs.fileno(), Handed("secret", "lease_1", 2, b""))
    assert theirs.fileno() >= 0
