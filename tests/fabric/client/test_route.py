"""Ways to a gateway: whose certificate is believed, what travels in the clear, and what if nobody answers."""

import asyncio
import time

import pytest
from nacl.signing import SigningKey

from fabric.agent.certificate import load_or_make
from fabric.agent.gateway import Gateway
from fabric.client import route as routes
from fabric.client.route import Route, open_route
from fabric.ping import round_trips_us
from fabric.wire import channel
from fabric.wire.clock import SystemClock
from fabric.wire.errors import AuthError, ServiceError
from fabric.wire.frames import pack, pack_bytes, unpack
from fabric.wire.tokens import LeaseToken, sign_token


class Leases:
    """One lease, whose node listens at `address`."""

    def __init__(self, key, address):
        self.token_key = key
        self.address = address
        self.asked = 0

    def superseded(self, token):
        self.asked += 1
        return token.generation < 2

    async def node_of(self, token):
        return self.address, "secret"


class Node:
    """A node that is ready, and sends back what comes after the agent's greeting."""

    def __init__(self):
        self.tasks = []

    async def serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        writer.write(pack_bytes([channel.READY, {"node": "n1"}]))
        head = await reader.readexactly(12)
        await reader.readexactly(int.from_bytes(head[:4], "little"))
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


class Operator:
    """A gateway with TLS, its lease, and routes to it."""

    def __init__(self, key, leases, gateway, port):
        self.key, self.leases, self.gateway, self.port = key, leases, gateway, port

    def route(self, **changes):
        claims = {"audience": "op_1", "generation": 2, "lifetime_ms": 60_000, "fingerprint": self.gateway.fingerprint}
        claims |= {name: changes.pop(name) for name in list(changes) if name in claims and name != "fingerprint"}
        token = LeaseToken(
            claims["audience"], "lease_1", claims["generation"], "ses_1",
            time.time_ns() // 1_000_000 + claims["lifetime_ms"], changes.pop("claimed", claims["fingerprint"]),
        )  # fmt: skip
        signed = sign_token(token, changes.pop("key", self.key))
        made = {
            "gateway": f"wss://127.0.0.1:{self.port}/v1/channel",
            "token": signed,
            "fingerprint": self.gateway.fingerprint,
        }
        return Route("lease_1", 2, **made | changes)


@pytest.fixture
async def operator(tmp_path):
    key = SigningKey.generate()
    served = Node()
    node = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    leases = Leases(bytes(key.verify_key), f"tcp:127.0.0.1:{node.sockets[0].getsockname()[1]}")
    gateway = Gateway(leases, operator="op_1", clock=SystemClock(), certificate=load_or_make(tmp_path))
    yield Operator(key, leases, gateway, await gateway.start("127.0.0.1", 0))
    await gateway.stop()
    await asyncio.gather(*served.tasks)
    node.close()


class Heard:
    """What a stream tells."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.lost = asyncio.Event()

    async def frame(self):
        return unpack(await asyncio.wait_for(self.messages.get(), 10))

    def open(self, route):
        return open_route(route, self.messages.put_nowait, self.lost.set)


async def test_a_gateway_with_the_stated_fingerprint_is_believed(operator):
    heard = Heard()
    stream = await heard.open(operator.route())
    assert (await heard.frame())[0] == [channel.READY, {"node": "n1"}]
    body = bytes(range(256)) * 12_000
    stream.send(pack(["call", 1], body))
    header, back = await heard.frame()
    assert (header, bytes(back)) == (["call", 1], body)
    stream.close()
    await asyncio.wait_for(heard.lost.wait(), 10)


async def test_any_other_certificate_is_refused_before_the_token_is_sent(operator, tmp_path):
    (tmp_path / "other").mkdir()
    stated = load_or_make(tmp_path / "other").fingerprint
    with pytest.raises(AuthError, match=f"certificate has the fingerprint {operator.gateway.fingerprint}.*{stated}"):
        await Heard().open(operator.route(fingerprint=stated))
    assert operator.leases.asked == 0


async def test_a_gateway_without_stated_fingerprint_needs_a_certificate_that_the_system_knows(operator):
    with pytest.raises(ServiceError, match="certificate"):
        await Heard().open(operator.route(fingerprint=""))
    assert operator.leases.asked == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audience": "op_2"}, "for operator op_2, this is op_1"),
        ({"generation": 1}, "older generation"),
        ({"lifetime_ms": -1}, "expired"),
        ({"key": SigningKey.generate()}, "not signed by this fabric"),
        ({"token": "a.b.c"}, "not signed by this fabric"),
        ({"claimed": "ab" * 32}, "another certificate"),
        ({"claimed": ""}, "another certificate"),
    ],
)
async def test_a_token_that_opens_nothing_is_refused_with_the_reason_and_disturbs_nobody(operator, changes, words):
    here, heard = Heard(), Heard()
    stream = await here.open(operator.route())
    assert (await here.frame())[0][0] == channel.READY
    with pytest.raises(AuthError, match=words):
        await heard.open(operator.route(**changes))
    stream.send(pack(["call", 1]))
    assert (await here.frame())[0] == ["call", 1]
    stream.close()


async def test_data_does_not_travel_in_the_clear_beyond_this_machine():
    with pytest.raises(ServiceError, match="in the clear"):
        await Heard().open(Route("lease_1", 2, "ws://192.0.2.1:8970/v1/channel", "token"))


async def test_a_gateway_that_is_not_there_is_said_where_there_is_no_relay(operator):
    await operator.gateway.stop()
    with pytest.raises(ServiceError, match="cannot be reached"):
        await Heard().open(operator.route())


async def test_a_gateway_that_cannot_be_reached_is_not_tried_again_soon(operator, monkeypatch):
    monkeypatch.setattr(routes, "_out_of_reach", {})
    gateway = "wss://127.0.0.1:1/v1/channel"
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"the relay ws://127\.0\.0\.1:1/v1/relay cannot be reached"):
            await Heard().open(operator.route(gateway=gateway, relay="ws://127.0.0.1:1/v1/relay"))
        assert routes.is_unreachable(gateway)
    assert not routes.is_unreachable(operator.route().gateway)


async def test_a_gateway_with_tls_answers_pings(operator):
    found = await round_trips_us({"here": operator.route().gateway})
    assert 0 < found["here"] < 3_000_000
