"""What a hostile or broken customer sends through the relay ends that connection, and nothing else."""

import asyncio
import shutil

import httpx
import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.small_fabric import SmallFabric
from fabric.client.route import Route, open_route
from fabric.wire import channel
from fabric.wire.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES, PREFIX, pack_bytes, unpack
from fabric.wire.ids import new_id
from fabric.wire.link import MAX_MESSAGE_BYTES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
]


def framed(header: bytes) -> bytes:
    return PREFIX.pack(len(header), 0) + header


BAD = {
    "a header that is too long": PREFIX.pack(MAX_HEADER_BYTES + 1, 0),
    "a body that is too long": PREFIX.pack(6, MAX_BODY_BYTES + 1) + msgpack.packb(["ping"]),
    "a header that is too deep": framed(b"\x92" + msgpack.packb("call") + b"\x91" * 100_000 + b"\xc0"),
    "a header that is cut off within its frame": framed(msgpack.packb(["ping", "x" * 100])[:-50]),
    "a header that is no array": framed(msgpack.packb({"call": 1})),
    "a header without a kind": framed(msgpack.packb([1, 2])),
    "a kind that customers do not send": pack_bytes([channel.READY, {}]),
    "a call whose fields are nonsense": pack_bytes([channel.CALL, "run", b"", [[{}, None, "x"]], -1]),
    "a call whose sizes do not add up": pack_bytes([channel.CALL, "run", b"", [[0, 1, [1 << 40]]], 0], b"x"),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An operator behind NAT, and a customer's lease there: (fabric, its run)."""
    made = SmallFabric(tmp_path_factory.mktemp("relayed"), nodes=1, gateway_direct=False)
    try:
        with customer(made) as http:
            run, session = new_id("run"), new_id("ses")
            body = {"id": run, "session": session, "python": "3.11", "gpu": ["L4"], "kind": "run"}
            http.post("/v1/runs", json=body).raise_for_status()
            yield made, run
            http.post(f"/v1/sessions/{session}/end").raise_for_status()
        assert [lease["gpu_ms"] > 0 for lease in made.ended(run)["leases"]] == [True]
        assert made.audit() == []
    finally:
        made.tell()
        made.stop()


def customer(made: SmallFabric) -> httpx.Client:
    return httpx.Client(base_url=made.url, headers={"Authorization": "Bearer key-alice"}, timeout=40, trust_env=False)


def find_route(real) -> Route:
    made, run = real
    with customer(made) as http:
        answer = http.get(f"/v1/runs/{run}/route", params={"wait_s": 25}).raise_for_status().json()
    (one,) = answer["routes"]
    assert one["gateway"] == ""
    relay = "ws" + made.url.removeprefix("http") + one["relay"]
    return Route(one["lease"], one["generation"], "", one["token"], one["fingerprint"], relay)


class Connection:
    """A customer's, through the relay."""

    async def open(self, real):
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.stream = await open_route(find_route(real), self.messages.put_nowait, self.lost.set)
        assert (await self.frame())[0][0] == channel.READY
        return self

    async def frame(self):
        return unpack(await asyncio.wait_for(self.messages.get(), 30))

    async def answers(self):
        """Whether the node still serves this connection."""
        self.stream.send([pack_bytes([channel.PING, 7])])
        while (header := (await self.frame())[0])[0] != channel.PONG:
            pass
        return header == [channel.PONG, 7]


async def works(real):
    connection = await Connection().open(real)
    assert await connection.answers()
    connection.stream.close()
    await asyncio.wait_for(connection.lost.wait(), 20)
    made, run = real
    (lease,) = made.get(f"/v1/runs/{run}")["leases"]
    assert lease["state"] == "OPEN"


@pytest.mark.parametrize("what", BAD)
async def test_what_is_no_frame_ends_its_connection_and_not_the_lease(real, what):
    connection = await Connection().open(real)
    connection.stream.send([BAD[what]])
    await asyncio.wait_for(connection.lost.wait(), 30)
    await works(real)


async def test_a_frame_that_is_cut_off_by_the_end_of_its_connection_does_nothing(real):
    connection = await Connection().open(real)
    connection.stream.send([PREFIX.pack(6, 1 << 20) + msgpack.packb(["ping"]) + bytes(1000)])
    connection.stream.close()
    await asyncio.wait_for(connection.lost.wait(), 30)
    await works(real)


async def test_a_message_that_is_too_long_for_the_relay_ends_that_line_alone(real):
    route = find_route(real)
    headers = {"Authorization": f"Bearer {route.token}"}
    async with connect(route.relay, additional_headers=headers, max_size=None, compression=None) as line:
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.gather(line.send(bytes(MAX_MESSAGE_BYTES + 1)), asyncio.wait_for(line.recv(), 30))
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    await works(real)


async def test_text_where_bytes_are_wanted_ends_that_line_alone(real):
    route = find_route(real)
    headers = {"Authorization": f"Bearer {route.token}"}
    async with connect(route.relay, additional_headers=headers, compression=None) as line:
        await line.send("hello")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(line.recv(), 30)
    await works(real)
