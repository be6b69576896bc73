"""The connection between a customer and a node, with a node that only keeps and sends bytes."""

import asyncio
import time
from contextlib import suppress

import pytest
from nacl.signing import SigningKey
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fabric.agent import passage
from fabric.agent.dialect import CHANNEL
from fabric.agent.gateway import PATH, Gateway
from fabric.agent.passage import Refusal
from fabric.wire import channel
from fabric.wire.clock import SystemClock
from fabric.wire.frames import PREFIX, pack_bytes, unpack, unpack_header, unpack_lengths
from fabric.wire.tokens import LeaseToken, sign_token


class Leases:
    """One lease, whose node listens at `address` once `opened` is set."""

    def __init__(self, key):
        self.token_key = key
        self.opened = asyncio.Event()
        self.refusal = None
        self.address = ""

    def superseded(self, token):
        return token.generation < 2

    async def node_of(self, token):
        await self.opened.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.address, "secret"


@pytest.fixture
async def lease():
    """A gateway, a lease, and a node that takes one connection: (leases, dial, node's connection)."""
    key = SigningKey.generate()
    leases = Leases(key.verify_key.encode())
    node = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *streams: node.set_result(streams), "127.0.0.1", 0)
    leases.address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    gateway = Gateway(leases, operator="op_1", clock=SystemClock())
    port = await gateway.start("127.0.0.1", 0)

    def dial(generation=2, path=PATH, **more):
        token = LeaseToken("op_1", "lease_1", generation, "ses_1", time.time_ns() // 1_000_000 + 60_000)
        headers = {"Authorization": f"Bearer {sign_token(token, key)}"}
        return connect(f"ws://127.0.0.1:{port}{path}", additional_headers=headers, max_size=None, **more)

    yield leases, dial, node
    await gateway.stop()
    if node.done():
        node.result()[1].close()
    server.close()


async def greeting(reader):
    header_bytes, _ = unpack_lengths(await reader.readexactly(PREFIX.size))
    return unpack_header(await reader.readexactly(header_bytes))


async def stuck(step):
    """Whether it is not over in a moment."""
    try:
        await asyncio.wait_for(step, 0.5)
    except TimeoutError:
        return True
    return False


async def test_what_is_sent_before_the_lease_is_open_arrives_once_it_is(lease):
    leases, dial, node = lease
    async with dial() as socket:
        await socket.send(b"early")
        leases.opened.set()
        reader, writer = await node
        assert await greeting(reader) == [CHANNEL, "secret", "lease_1", 2]
        await socket.send([b" and", b"", b" late"])
        assert await reader.readexactly(14) == b"early and late"
        writer.write(pack_bytes(["pong", 1]) + pack_bytes(["pong", 2]))
        assert [unpack(await socket.recv())[0] for _ in range(2)] == [["pong", 1], ["pong", 2]]


@pytest.mark.parametrize(("how", "status"), [({"path": "/other"}, 404), ({"generation": 1}, 401)])
async def test_nobody_else_passes(lease, how, status):
    _, dial, _ = lease
    with pytest.raises(InvalidStatus) as refused:
        async with dial(**how):
            pass
    assert refused.value.response.status_code == status


async def test_a_lease_that_does_not_open_says_why(lease):
    leases, dial, _ = lease
    leases.refusal = Refusal("no_capacity", "taken")
    leases.opened.set()
    async with dial() as socket:
        assert unpack(await socket.recv())[0] == [channel.CLOSED, "no_capacity", "taken"]
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 1000


async def test_a_node_that_is_not_there_is_said(lease):
    leases, dial, _ = lease
    leases.address = "unix:/nowhere/at/all"
    leases.opened.set()
    async with dial() as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 1011


@pytest.mark.parametrize(("sent", "code"), [(b"", 1000), (b"\1\0\0", 1011), (b"\xff" * 12, 1011)])
async def test_a_node_that_ends_within_a_frame_is_an_error(lease, sent, code):
    leases, dial, node = lease
    leases.opened.set()
    async with dial() as socket:
        reader, writer = await node
        await greeting(reader)
        writer.write(sent)
        writer.close()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == code


async def test_a_customer_that_goes_ends_the_node_s_connection_after_its_last_byte(lease):
    leases, dial, node = lease
    leases.opened.set()
    async with dial() as socket:
        reader, _ = await node
        await socket.send(b"last")
    await greeting(reader)
    assert await reader.read() == b"last"


async def test_a_slow_node_slows_its_customer(lease):
    leases, dial, node = lease
    leases.opened.set()
    total, sent = 64 << 20, 0
    async with dial(write_limit=1) as socket:
        reader, _ = await node
        while sent < total and not await stuck(socket.send(bytes(1 << 20))):
            sent += 1 << 20
        assert sent < total // 2
        await greeting(reader)
        assert await reader.readexactly(sent) == bytes(sent)


async def test_a_slow_customer_slows_its_node(lease):
    leases, dial, node = lease
    leases.opened.set()
    frame, total, sent = pack_bytes(["result"], bytes(1 << 20)), 64 << 20, 0
    async with dial(max_queue=1) as socket:
        _, writer = await node
        writer.write(frame)
        while sent < total and not await stuck(writer.drain()):
            writer.write(frame)
            sent += len(frame)
        assert sent < total // 2
        assert await socket.recv() == frame
        socket.transport.abort()


async def test_who_says_nothing_is_let_go(lease, monkeypatch):
    monkeypatch.setattr(passage, "HANDSHAKE_S", 0.01)
    _, dial, _ = lease
    port = int(dial().uri.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_who_answers_no_ping_is_let_go(lease, monkeypatch):
    monkeypatch.setattr(passage, "PING_S", 0.05)
    leases, dial, node = lease
    leases.opened.set()
    async with dial(ping_interval=None) as socket:
        reader, _ = await node
        await greeting(reader)
        socket.transport.pause_reading()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        socket.transport.abort()


async def test_who_answers_pings_stays(lease, monkeypatch):
    monkeypatch.setattr(passage, "PING_S", 0.02)
    leases, dial, node = lease
    leases.opened.set()
    async with dial(ping_interval=None) as socket:
        reader, _ = await node
        await greeting(reader)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.2)
        await socket.send(b"here")
        assert await reader.readexactly(4) == b"here"


async def test_a_fragment_beyond_the_limit_ends_the_connection(lease, monkeypatch):
    leases, dial, _ = lease
    leases.opened.set()
    async with dial() as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.gather(socket.send(bytes(passage.MAX_FRAGMENT_BYTES + 1)), socket.recv())
    assert closed.value.rcvd.code == 1009
