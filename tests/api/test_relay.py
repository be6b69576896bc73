"""The relay between a customer and an operator's gateway that cannot be reached; the control plane is a process."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from nacl.signing import SigningKey
from scripted import KEY, bootstrap_file, nodes
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fabric.agent.certificate import load_or_make
from fabric.agent.gateway import Gateway
from fabric.agent.relay import Relays
from fabric.client.route import Route, open_route
from fabric.ping import round_trips_us
from fabric.wire import channel, link
from fabric.wire.clock import SystemClock
from fabric.wire.errors import AuthError, ServiceError
from fabric.wire.frames import pack, pack_bytes, unpack
from fabric.wire.ids import new_id
from fabric.wire.tokens import LeaseToken, sign_token

MIB = 1 << 20
LITTLE_KIB = 24 << 10
"""What the control plane's process may grow by, whatever passes."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A control plane: (URL, its process, the key that signs its lease tokens)."""
    folder = tmp_path_factory.mktemp("plane")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    environ |= {
        "FABRIC_PORT": "0",
        "FABRIC_STATE_DIR": str(folder / "state"),
        "FABRIC_BOOTSTRAP": str(bootstrap_file(folder)),
        "FABRIC_ALLOW_SIMULATED": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-P", "-m", "api"], env=environ, stderr=log)
    try:
        yield _url(folder / "log", process), process, SigningKey((folder / "state" / "token.key").read_bytes())
    finally:
        process.terminate()
        process.wait(20)


def _url(log: Path, process) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"url": "' in line:
                return line.split('"url": "')[1].split('"')[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


class Node:
    """Keeps how much came and sends `answer` for each whole frame; takes nothing while `closed`."""

    def __init__(self):
        self.received = 0
        self.taking = asyncio.Event()
        self.taking.set()
        self.answer_bytes = 0
        self.tasks = []
        self.connections = 0

    async def serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._greet(reader, writer)
            while True:
                head = await reader.readexactly(12)
                left = int.from_bytes(head[:4], "little") + int.from_bytes(head[4:], "little")
                while left:
                    await self.taking.wait()
                    piece = await reader.read(min(left, MIB))
                    if not piece:
                        raise ConnectionError
                    left -= len(piece)
                    self.received += len(piece)
                await self._answer(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _greet(self, reader, writer):
        writer.write(pack_bytes([channel.READY, {"node": "n1"}]))
        head = await reader.readexactly(12)
        await reader.readexactly(int.from_bytes(head[:4], "little"))

    async def _answer(self, writer):
        size = self.answer_bytes
        writer.write(pack(["result", size], b"")[0] if not size else _head(size))
        while size:
            writer.write(bytes(min(size, MIB)))
            await writer.drain()
            size -= min(size, MIB)


def _head(size):
    return pack(["result", size], memoryview(bytearray(size)))[0]


class Operator:
    """An agent behind NAT: its link, relay and gateway are the real ones, its node is the test's."""

    def __init__(self, url, token_key, state):
        self.url, self.token_key = url, token_key
        self.node = Node()
        self.gateway = Gateway(self, operator="op-1", clock=SystemClock(), certificate=load_or_make(state))
        self.relays = Relays(url, lambda: ("127.0.0.1", self.port))
        self.grants = asyncio.Queue()
        self.called = 0
        self.silent = False
        self.beaten = asyncio.Event()
        """Set when a second nonce came: by then the answer to the first was heard."""

    def superseded(self, token):
        return False

    async def node_of(self, token):
        return f"tcp:127.0.0.1:{self.server.sockets[0].getsockname()[1]}", "secret"

    async def start(self):
        self.server = await asyncio.start_server(self.node.serve, "127.0.0.1", 0)
        self.port = await self.gateway.start("127.0.0.1", 0)
        self.socket = await connect("ws" + self.url.removeprefix("http") + "/v1/agent", max_size=None)
        challenge = link.decode(await self.socket.recv())
        payload = link.hello_payload(challenge.value, "op-1", "main")
        hello = link.Hello(
            protocol=link.PROTOCOL, version="1", operator="op-1", cluster="main", session_key=bytes(KEY.verify_key),
            proof=KEY.sign(payload).signature, gateway="", nodes=nodes(), prices={"L4": {"on_demand": 1}},
            fingerprint=self.gateway.fingerprint,
        )  # fmt: skip
        await self.socket.send(link.encode(hello))
        assert isinstance(link.decode(await self.socket.recv()), link.Welcome)
        self.listening = asyncio.ensure_future(self.listen())

    async def listen(self):
        beats = 0
        with suppress(ConnectionClosed):
            async for data in self.socket:
                message = link.decode(data)
                if isinstance(message, link.Nonce):
                    beats += 1
                    if beats > 1:
                        self.beaten.set()
                    await self.socket.send(link.encode(link.Heartbeat(nonce_seq=message.seq)))
                elif isinstance(message, link.Grant):
                    self.grants.put_nowait(message)
                elif isinstance(message, link.Relay) and not self.silent:
                    self.called += 1
                    self.relays.begin(message)

    @property
    def token_key(self):
        return bytes(self._token_key.verify_key)

    @token_key.setter
    def token_key(self, key):
        self._token_key = key

    async def stop(self):
        await self.relays.stop()
        await self.socket.close()
        await self.listening
        await self.gateway.stop()
        for task in self.node.tasks:
            task.cancel()
        await asyncio.gather(*self.node.tasks, return_exceptions=True)
        self.server.close()


class Customer:
    """Alice, with one lease of an L4."""

    def __init__(self, operator, url):
        self.operator = operator
        self.http = httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer key-alice"})

    async def lease(self):
        self.run, self.session = new_id("run"), new_id("ses")
        body = {"id": self.run, "session": self.session, "python": "3.11", "gpu": ["L4"], "kind": "run"}
        (await self.http.post("/v1/runs", json=body)).raise_for_status()
        self.grant = await asyncio.wait_for(self.operator.grants.get(), 20)

    async def route(self) -> Route:
        answer = (await self.http.get(f"/v1/runs/{self.run}/route")).raise_for_status().json()
        (one,) = answer["routes"]
        assert one["gateway"] == ""
        relay = "ws" + self.operator.url.removeprefix("http") + one["relay"]
        return Route(one["lease"], one["generation"], "", one["token"], one["fingerprint"], relay)

    async def release(self):
        body = {"generation": 1, "reason": "done"}
        (await self.http.post(f"/v1/leases/{self.grant.lease}/release", json=body)).raise_for_status()
        ended = link.Ended(lease=self.grant.lease, generation=1, reason="done")
        await self.operator.socket.send(link.encode(ended))
        await self.http.post(f"/v1/sessions/{self.session}/end")
        await self.http.aclose()


class Heard:
    """What a stream tells."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.lost = asyncio.Event()

    async def frame(self, within_s=20):
        return unpack(await asyncio.wait_for(self.messages.get(), within_s))

    async def open(self, route):
        return await open_route(route, self.messages.put_nowait, self.lost.set)


@pytest.fixture
async def customer(plane, tmp_path):
    url, _, key = plane
    operator = Operator(url, key, tmp_path)
    await operator.start()
    made = Customer(operator, url)
    await made.lease()
    yield made
    await made.release()
    await operator.stop()


async def test_frames_go_both_ways_and_the_gateway_is_known_by_its_certificate(customer):
    heard = Heard()
    stream = await heard.open(await customer.route())
    assert (await heard.frame())[0] == [channel.READY, {"node": "n1"}]
    customer.operator.node.answer_bytes = 3 * MIB
    stream.send(pack(["call", 1], bytes(5 * MIB)))
    header, body = await heard.frame()
    assert (header, body.nbytes) == (["result", 3 * MIB], 3 * MIB)
    assert customer.operator.node.received > 5 * MIB
    stream.close()
    await asyncio.wait_for(heard.lost.wait(), 10)


async def test_a_relay_that_leads_elsewhere_is_noticed(customer):
    route = await customer.route()
    with pytest.raises(AuthError, match="the far end of the relay is not the operator's gateway"):
        await Heard().open(Route(route.lease, 1, "", route.token, "ab" * 32, route.relay))
    assert customer.operator.node.connections == 0


async def test_a_gateway_that_cannot_be_reached_is_reached_through_the_relay(customer):
    route, heard = await customer.route(), Heard()
    gateway = "wss://127.0.0.1:1/v1/channel"
    stream = await heard.open(Route(route.lease, 1, gateway, route.token, route.fingerprint, route.relay))
    assert (await heard.frame())[0][0] == channel.READY
    assert customer.operator.called == 1
    stream.close()


async def test_a_gateway_that_can_be_reached_is_not_relayed(customer):
    route, heard = await customer.route(), Heard()
    gateway = f"wss://127.0.0.1:{customer.operator.port}/v1/channel"
    stream = await heard.open(Route(route.lease, 1, gateway, route.token, route.fingerprint, route.relay))
    assert (await heard.frame())[0][0] == channel.READY
    assert customer.operator.called == 0
    stream.close()


async def test_a_dropped_connection_is_made_anew_and_the_older_one_ends(customer):
    first, second = Heard(), Heard()
    await first.open(await customer.route())
    await first.frame()
    stream = await second.open(await customer.route())
    assert (await second.frame())[0][0] == channel.READY
    await asyncio.wait_for(first.lost.wait(), 10)
    stream.send(pack(["call", 1]))
    assert (await second.frame())[0] == ["result", 0]
    stream.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audience": "op-2"}, "not known here"),
        ({"lease": "lease_none"}, "not known here"),
        ({"generation": 2}, "older generation"),
        ({"expires_ms": 1}, "expired"),
        ({"key": SigningKey.generate()}, "not signed by this fabric"),
        ({"fingerprint": "ab" * 32}, "another certificate"),
    ],
)
async def test_a_token_that_opens_nothing_is_refused_with_the_reason_and_disturbs_nobody(customer, changes, words):
    here, heard = Heard(), Heard()
    stream = await here.open(await customer.route())
    await here.frame()
    fields = {
        "audience": "op-1",
        "lease": customer.grant.lease,
        "generation": 1,
        "session": "ses",
        "expires_ms": time.time_ns() // 1_000_000 + 60_000,
        "fingerprint": customer.operator.gateway.fingerprint,
    } | changes
    key = fields.pop("key", customer.operator._token_key)
    route = await customer.route()
    bad = Route(route.lease, 1, "", sign_token(LeaseToken(**fields), key), route.fingerprint, route.relay)
    with pytest.raises(AuthError, match=words):
        await heard.open(bad)
    if "fingerprint" in changes:  # only the gateway can say so: by then it is the newest connection of its lease
        return
    stream.send(pack(["call", 1]))
    assert (await here.frame())[0] == ["result", 0]
    assert customer.operator.called == 1
    stream.close()


async def test_no_token_at_all_and_an_uncalled_agent_are_refused(customer):
    url = (await customer.route()).relay
    for address, status in ((url, 401), (f"{url}/relay_nobody", 404)):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address)
        assert refused.value.response.status_code == status


async def test_an_agent_that_does_not_dial_is_said(customer, monkeypatch):
    customer.operator.silent = True
    with pytest.raises(ServiceError, match="504"):
        await Heard().open(await customer.route())


async def test_a_ping_takes_the_way_through_the_relay(customer):
    url = f"{customer.operator.url}{channel.RELAY_PATH}"
    await asyncio.wait_for(customer.operator.beaten.wait(), 20)
    found = await round_trips_us({"here": f"{url}/op-1/main/ping"})
    assert 0 < found["here"] < 3_000_000
    assert await round_trips_us({"nobody": f"{url}/op-1/other/ping"}) == {}


def _resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


async def test_a_slow_node_slows_the_customer_and_the_control_plane_holds_little(customer, plane):
    """What does not fit on the way stays in the customer's process."""
    node, heard = customer.operator.node, Heard()
    stream = await heard.open(await customer.route())
    await heard.frame()
    before = _resident_kib(plane[1].pid)
    node.taking.clear()
    body = bytes(192 * MIB)
    stream.send(pack(["call", 1], body))
    seen = [_resident_kib(plane[1].pid)]
    while len(seen) < 5 or max(seen[-5:]) - min(seen[-5:]) > 64:  # until nothing moves any more
        await asyncio.sleep(0.2)
        seen.append(_resident_kib(plane[1].pid))
    assert node.received < 4 * MIB
    assert _resident_kib(plane[1].pid) - before < LITTLE_KIB
    node.answer_bytes = 192 * MIB
    node.taking.set()
    header, back = await heard.frame(within_s=120)
    assert (header, back.nbytes) == (["result", 192 * MIB], 192 * MIB)
    assert _resident_kib(plane[1].pid) - before < LITTLE_KIB
    stream.close()
