import asyncio
import platform
from importlib.metadata import version

import pytest
from websockets.asyncio.server import serve

from fabric.client.channel import Channel, Route
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
