import asyncio
import platform
from importlib.metadata import version

import pytest
from websockets.asyncio.server import serve

from fabric.client.channel import Channel
from fabric.client.route import Route
from fabric.wire import channel as wire
from fabric.wire import frames
from fabric.wire.reasons import Reason

FACTS = {
    "node": "node-1",
    "python": ".".join(platform.python_version_tuple()[:2]),
    "cloudpickle": version("cloudpickle"),
}
READY = b"".join(frames.pack([wire.READY, FACTS]))
LOST = b"".join(frames.pack([wire.CLOSED, str(Reason.OPERATOR_LOST), "node node-1 is lost"]))


class Listener:
    def __init__(self):
        self.gone = asyncio.get_running_loop().create_future()

    def on_frame(self, channel, header, body):
        raise AssertionError(header)

    def on_resumed(self, channel):
        raise AssertionError("the lease is over")

    def on_gone(self, channel, reason, message):
        self.gone.set_result((reason, message))


@pytest.fixture
async def gateway():
    """A gateway that is told what to say to each connection; it closes them after it."""
    says = []

    async def answer(connection):
        await connection.send(says.pop(0))
        await connection.close()

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield says, Route("lease_1", 1, f"ws://127.0.0.1:{port}/v1/channel", "token")


async def test_a_lease_that_ends_while_its_channel_is_opened_anew_is_told_to_who_waits_for_it(gateway):
    says, route = gateway
    says += [READY, LOST]

    async def find_route():
        return route

    listener = Listener()
    channel = Channel("lease_1", find_route, listener)
    await channel.connect(route)
    assert await asyncio.wait_for(listener.gone, 10) == (Reason.OPERATOR_LOST, "node node-1 is lost")
    assert not channel.is_open
    channel.close()


@pytest.fixture
async def listening():
    """A gateway that keeps what customers send, frame by frame."""
    heard = asyncio.Queue()

    async def listen(connection):
        await connection.send(READY)
        async for message in connection:
            heard.put_nowait(frames.unpack(message)[0])

    async with serve(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channel = Channel("lease_1", None, Listener())
        await channel.connect(Route("lease_1", 1, f"ws://127.0.0.1:{port}/v1/channel", "token"))
        yield channel, heard
        channel.close()


async def test_acknowledgements_travel_before_the_next_frame(listening, monkeypatch):
    monkeypatch.setattr("fabric.client.channel.ACK_S", 3600)
    channel, heard = listening
    channel.acknowledge("run_1", [0])
    channel.acknowledge("run_2", [0, 1])
    channel.cancel("run_3")
    expected = [[wire.ACK, "run_1", [0]], [wire.ACK, "run_2", [0, 1]], [wire.CANCEL, "run_3", []]]
    assert [await asyncio.wait_for(heard.get(), 10) for _ in expected] == expected


async def test_an_acknowledgement_that_no_frame_follows_travels_alone(listening):
    channel, heard = listening
    channel.acknowledge("run_1", [0])
    assert await asyncio.wait_for(heard.get(), 10) == [wire.ACK, "run_1", [0]]


async def test_large_results_are_acknowledged_at_once(listening, monkeypatch):
    monkeypatch.setattr("fabric.client.channel.ACK_S", 3600)
    channel, heard = listening
    channel.acknowledge("run_1", [0], 600 << 10)
    channel.acknowledge("run_1", [1], 600 << 10)
    assert [await asyncio.wait_for(heard.get(), 10) for _ in range(2)] == [[wire.ACK, "run_1", [i]] for i in range(2)]


async def test_what_waits_to_be_acknowledged_is_told_before_the_end(listening, monkeypatch):
    monkeypatch.setattr("fabric.client.channel.ACK_S", 3600)
    channel, heard = listening
    channel.acknowledge("run_1", [0])
    channel.close()
    assert await asyncio.wait_for(heard.get(), 10) == [wire.ACK, "run_1", [0]]
