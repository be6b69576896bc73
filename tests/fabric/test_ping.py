"""Round trips as they are measured, through proxies on loopback that delay every byte."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from fabric.agent.gateway import Gateway, Refusal
from fabric.ping import round_trips_us
from fabric.wire.clock import SystemClock
from fabric.wire.tokens import LeaseToken


class NoLeases:
    """A gateway behind which nothing is leased."""

    token_key: bytes | None = None

    def superseded(self, token: LeaseToken) -> bool:
        return False

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        raise Refusal("operator_lost", "there is no lease")


@asynccontextmanager
async def listening(serve):
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def gateway():
    one = Gateway(NoLeases(), operator="op-1", clock=SystemClock())
    yield await one.start("127.0.0.1", 0)
    await one.stop()


@asynccontextmanager
async def delayed(port, delay_s):
    """A TCP proxy that holds back each piece for `delay_s`, in both directions."""

    async def pump(reader, writer):
        while data := await reader.read(65536):
            await asyncio.sleep(delay_s)
            writer.write(data)
        writer.close()

    async def serve(reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with listening(serve) as at:
        yield f"ws://127.0.0.1:{at}/v1/channel"


async def test_a_round_trip_holds_the_delay_of_both_ways(caplog):
    async with gateway() as port, delayed(port, 0.004) as near, delayed(port, 0.015) as far:
        found = await round_trips_us({"here": f"ws://127.0.0.1:{port}/v1/channel", "near": near, "far": far})
    assert found["here"] < found["near"] < found["far"]
    assert found["near"] >= 8_000
    assert 30_000 <= found["far"] < 60_000


async def answering(reply):
    async def serve(reader, writer):
        await reader.readline()
        writer.write(reply)
        writer.close()

    return serve


@pytest.mark.parametrize("reply", [b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b""])
async def test_who_is_no_gateway_is_not_measured(reply):
    async with gateway() as port, listening(await answering(reply)) as other:
        urls = {"gateway": f"ws://127.0.0.1:{port}/v1/channel", "other": f"http://127.0.0.1:{other}"}
        assert set(await round_trips_us(urls)) == {"gateway"}


async def test_what_does_not_answer_or_is_no_address_is_left_out():
    async with gateway() as port:
        good = f"ws://127.0.0.1:{port}"
    bad = {"closed": good, "file": "file:///etc/passwd", "none": "", "port": "ws://127.0.0.1:99999/"}
    assert await round_trips_us(bad) == {}
