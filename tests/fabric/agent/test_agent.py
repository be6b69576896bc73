"""The agent between a real node and a control plane that speaks the real protocol (and decides nothing)."""
# ruff: noqa: T201 - customers' functions print

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import pytest
from nacl.signing import SigningKey
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fabric.agent.agent import Agent
from fabric.agent.cluster import Site as NodeSite
from fabric.agent.link import Refused
from fabric.agent.outbox import Outbox
from fabric.agent.settings import AgentSettings
from fabric.wire import channel, codec, link
from fabric.wire.clock import SystemClock
from fabric.wire.frames import pack_bytes, split, unpack
from fabric.wire.reasons import Reason
from fabric.wire.receipts import ReceiptKind, SignedReceipt
from fabric.wire.surroundings import Gang
from fabric.wire.tokens import LeaseToken, sign_token

OPERATOR = "op_1"


class ControlPlane:
    """Speaks `fabric.wire.link`; keeps what it hears; acknowledges receipts unless told not to."""

    def __init__(self) -> None:
        self.key = SigningKey.generate()
        self.heard: list[Any] = []
        self.receipts: dict[tuple[str, int], list[SignedReceipt]] = {}
        self.acknowledging = True
        self.refusal: link.Refuse | None = None
        self.connections = 0
        self._socket: ServerConnection | None = None
        self._changed = asyncio.Condition()
        self._nonce = 0

    async def start(self, port: int = 0) -> None:
        self._server = await serve(self._serve, "127.0.0.1", port, max_size=link.MAX_MESSAGE_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def drop_agent(self) -> None:
        assert self._socket is not None
        await self._socket.close()

    def nonce(self) -> link.Nonce:
        self._nonce += 1
        return link.Nonce(seq=self._nonce, value=self._nonce.to_bytes(32, "big"))

    async def send(self, message: Any) -> None:
        assert self._socket is not None
        await self._socket.send(link.encode(message))

    async def wait(self, condition, within_s: float = 20) -> Any:
        """The first true value of `condition()`."""
        async with asyncio.timeout(within_s), self._changed:
            while not (value := condition()):
                await self._changed.wait()
            return value

    def of(self, kind: type, **fields: Any) -> list[Any]:
        hits = [m for m in self.heard if isinstance(m, kind)]
        return [m for m in hits if all(getattr(m, name) == value for name, value in fields.items())]

    def last_seq(self, lease: str) -> int:
        return max((r.receipt.seq for r in self.receipts.get((lease, 1), [])), default=-1)

    def closing(self, lease: str) -> list[SignedReceipt]:
        return [r for r in self.receipts.get((lease, 1), []) if r.receipt.kind == ReceiptKind.CLOSE]

    def tasks(self, lease: str) -> list[tuple[str, int, int, str]]:
        lines = [line for receipt in self.receipts.get((lease, 1), []) for line in receipt.tasks]
        return [(line.run, line.task, line.attempt, line.reason) for line in lines]

    def token(self, lease: str, **changes: Any) -> str:
        fields = {
            "audience": OPERATOR,
            "lease": lease,
            "generation": 1,
            "session": "session_1",
            "expires_ms": SystemClock().now_ms() + 60_000,
        } | changes
        key = fields.pop("key", self.key)
        return sign_token(LeaseToken(**fields), key)

    async def _serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        challenge = link.Challenge(protocol=link.PROTOCOL, fabric_id="fabric-test", value=bytes(32))
        await socket.send(link.encode(challenge))
        with suppress(ConnectionClosed):
            self.hello = link.decode(await socket.recv())
            if self.refusal is not None:
                await socket.send(link.encode(self.refusal))
                async with self._changed:
                    self._changed.notify_all()
                return
            self._socket = socket
            acks = [link.Ack(lease=key[0], generation=key[1], seq=self.last_seq(key[0])) for key in self.receipts]
            welcome = link.Welcome(
                nonce=self.nonce(), leases=acks, token_key=bytes(self.key.verify_key), blob_token="blob"
            )
            await socket.send(link.encode(welcome))
            await self._note(self.hello)
            async for data in socket:
                await self._note(link.decode(data))

    async def _note(self, message: Any) -> None:
        if isinstance(message, link.Receipts) and self.acknowledging:
            for data in message.receipts:
                await self._accept(SignedReceipt.from_bytes(data))
        async with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    async def _accept(self, signed: SignedReceipt) -> None:
        """In order only, as the real one does."""
        receipt = signed.verify(self.hello.session_key)
        kept = self.receipts.setdefault((receipt.lease, receipt.generation), [])
        if receipt.seq == len(kept):
            assert receipt.previous == (kept[-1].receipt.hash if kept else bytes(32))
            kept.append(signed)
        ack = link.Ack(lease=receipt.lease, generation=receipt.generation, seq=len(kept) - 1)
        await self.send(ack)


class OneNode:
    """A cluster of one node, which the test started."""

    def __init__(self, site) -> None:
        self._site = site
        self.alive = True

    def connect(self) -> None:
        pass

    def sites(self) -> list[NodeSite]:
        return [NodeSite("n1", self._site.address)] if self.alive else []

    def stop(self) -> None:
        pass


class Operator:
    """An agent with its state on disk, which can be ended as by kill -9 and started again."""

    def __init__(self, site, control: ControlPlane, state: Path) -> None:
        self.site = site
        self.control = control
        self.state = state
        self.key = SigningKey.generate()
        self.cluster = OneNode(site)

    async def start(self) -> None:
        self.settings = AgentSettings(
            url=f"http://127.0.0.1:{self.control.port}",
            operator=OPERATOR,
            cluster="c1",
            session_key_file=self.state / "key",
            state_dir=self.state,
            ray_address="127.0.0.1:1",
            gateway_tls=False,
            prices={"H100": {"on_demand": 250_000}},
        )
        self.agent = Agent(
            self.settings,
            key=self.key,
            cluster=self.cluster,
            outbox=Outbox(self.state / "receipts.db"),
            node_token=self.site.token,
            clock=SystemClock(),
        )
        before = len(self.control.of(link.Heartbeat))
        self.running = asyncio.ensure_future(self.agent.run())
        await self.control.wait(lambda: len(self.control.of(link.Heartbeat)) > before)
        self.gateway = self.control.hello.gateway

    async def die(self) -> None:
        """As kill -9 would leave it: nothing is closed or sent."""
        self.running.cancel()
        await asyncio.wait([self.running])
        for task in self.agent._tasks:
            task.cancel()
        await asyncio.wait(self.agent._tasks)
        for client in self.agent._nodes.values():
            await client.stop()
        await self.agent._gateway.stop()
        await self.agent._blobs.close()
        self.agent._outbox.close()

    async def stop(self) -> None:
        await self.agent.stop()
        self.running.cancel()
        await asyncio.wait([self.running])

    async def grant(self, lease: str = "lease_1", **changes: Any) -> None:
        fields = {
            "lease": lease,
            "generation": 1,
            "session": "session_1",
            "run": "run_1",
            "node": "n1",
            "gpus": [link.GpuShare(uuid=self.site.gpus[0], share_milli=1000)],
            "cpu_milli": 1000,
            "memory_bytes": 0,
            "startup_timeout_ms": 20_000,
            "notice_ms": 1000,
            "nonce": self.control.nonce(),
        } | changes
        await self.control.send(link.Grant(**fields))

    async def open(self, lease: str = "lease_1") -> None:
        await self.grant(lease)
        await self.control.wait(lambda: self.control.of(link.Opened, lease=lease))

    async def release(self, lease: str = "lease_1", reason: str = "done") -> None:
        await self.control.send(link.Release(lease=lease, generation=1, reason=reason, nonce=self.control.nonce()))

    async def release_when_connected(self) -> None:
        await self.control.wait(lambda: self.control.connections > 1)
        await self.control.wait(lambda: self.control.receipts["lease_1", 1])
        await self.release()

    def dial(self, lease: str = "lease_1", **token: Any) -> connect:
        headers = {"Authorization": f"Bearer {self.control.token(lease, **token)}"}
        return connect(self.gateway, additional_headers=headers, compression=None, max_size=None)


@pytest.fixture
async def operator(site, tmp_path) -> AsyncIterator[Operator]:
    control = ControlPlane()
    await control.start()
    site.agent.stream.close()
    made = Operator(site, control, tmp_path / "agent")
    await made.start()
    yield made
    with suppress(Exception):
        await made.stop()
    await control.stop()


class BlobStore:
    """The control plane's blobs for agents, over HTTP."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer blob"
        digest = request.url.path.rpartition("/")[2]
        if request.method == "PUT":
            assert request.url.params["run"] == "run_1"
            self.stored[digest] = request.content
            return httpx.Response(201)
        return httpx.Response(200, content=self.stored[digest]) if digest in self.stored else httpx.Response(404)

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.stored[digest] = data
        return digest

    def work(self, function, *args: Any) -> link.Work:
        packed, body = cloudpickle.dumps(function), cloudpickle.dumps((args, {}))
        digest = hashlib.sha256(packed).digest()
        call = pack_bytes([channel.CALL, "run_1", digest, [[0, 1, [len(body)]]], 0], body)
        return link.Work(
            lease="lease_1",
            generation=1,
            run="run_1",
            task=0,
            attempt=1,
            code=self.keep(packed),
            args=self.keep(call),
        )


@pytest.fixture
async def blobs(operator) -> BlobStore:
    store = BlobStore()
    client = operator.agent._blobs
    await client._http.aclose()
    client._http = httpx.AsyncClient(base_url="http://blobs", transport=httpx.MockTransport(store.answer))
    return store


async def read(socket: ClientConnection, *kinds: str) -> tuple[list[Any], memoryview]:
    async with asyncio.timeout(20):
        while True:
            header, body = unpack(await socket.recv())
            if header[0] in kinds:
                return header, body


async def send_function(socket: ClientConnection, function) -> bytes:
    packed = cloudpickle.dumps(function)
    digest = hashlib.sha256(packed).digest()
    await socket.send(pack_bytes([channel.FN, digest], packed))
    return digest


async def send_call(socket: ClientConnection, digest: bytes, *args: Any, task: int = 0) -> None:
    body = cloudpickle.dumps((args, {}))
    await socket.send(pack_bytes([channel.CALL, "run_1", digest, [[task, 1, [len(body)]]], 0], body))


async def test_a_lease_is_opened_used_metered_and_closed(operator):
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        await send_call(socket, await send_function(socket, lambda x: x * 2), 21)
        _, body = await read(socket, channel.RESULT)
        assert codec.decode(body, [], types=codec.NoTypes()) == 42
        await operator.release()
        closed, _ = await read(socket, channel.CLOSED)
    assert closed[1] == "done"
    control = operator.control
    await control.wait(lambda: control.of(link.Ended, lease="lease_1"))
    chain = [signed.receipt for signed in control.receipts["lease_1", 1]]
    assert [chain[0].kind, chain[-1].kind] == [ReceiptKind.OPEN, ReceiptKind.CLOSE]
    assert control.tasks("lease_1") == [("run_1", 0, 1, "done")]
    assert chain[-1].gpus[0].gpu_ms >= 1000, "at least one second is billed"
    assert chain[0].nonce_seq > 0
    assert all(receipt.simulated for receipt in chain)


async def test_a_failed_installation_is_a_paid_lease_and_says_why_to_the_control_plane_and_to_late_customers(operator):
    control = operator.control
    await operator.grant(env=link.EnvSpec(python="3.28"), network="none")
    await control.wait(lambda: control.of(link.Ended, lease="lease_1"))
    assert control.of(link.Opened, lease="lease_1")
    (ended,) = control.of(link.Ended, lease="lease_1")
    assert (ended.reason, "this node has no Python 3.28" in ended.detail) == (Reason.DEPS_INSTALL, True)
    last = control.closing("lease_1")[0].receipt
    (run,) = last.runs
    assert run.setup_ms == run.gpu_ms >= 1000
    assert run.idle_ms == 0
    async with operator.dial() as socket:
        closed, _ = await read(socket, channel.CLOSED)
    assert closed[1] == Reason.DEPS_INSTALL
    assert "this node has no Python 3.28" in closed[2]


async def test_a_restarted_node_is_found_again_and_its_leases_are_closed_as_lost(operator, make_site):
    control = operator.control
    await operator.open()
    site = operator.site
    await site.crash()
    await site.restart()
    await control.wait(lambda: control.of(link.Ended, lease="lease_1"))
    assert control.closing("lease_1")[0].receipt.reason == Reason.OPERATOR_LOST
    await operator.open("lease_2")
    async with operator.dial("lease_2") as socket:
        await read(socket, channel.READY)
        await send_call(socket, await send_function(socket, lambda: 1))
        await read(socket, channel.RESULT)


async def test_receipts_that_were_not_acknowledged_are_sent_again_after_a_reconnect(operator):
    control = operator.control
    control.acknowledging = False
    await operator.open()
    await control.wait(lambda: len(control.of(link.Receipts)) >= 2)
    assert control.receipts == {}
    control.acknowledging = True
    control.receipts["lease_1", 1] = []
    await control.drop_agent()
    await operator.release_when_connected()
    await control.wait(lambda: control.closing("lease_1"))
    kinds = [signed.receipt.kind for signed in control.receipts["lease_1", 1]]
    assert kinds[0] == ReceiptKind.OPEN


async def test_an_agent_that_was_killed_goes_on_where_its_receipts_end_and_bills_nothing_twice(operator):
    control = operator.control
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        function = await send_function(socket, lambda x: x)
        for task in range(20):
            await send_call(socket, function, task, task=task)
        await read(socket, channel.RESULT)
        await control.wait(lambda: control.receipts)
        await operator.die()
    await operator.start()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        owed = [[task, 1] for task in range(20)]
        await socket.send(pack_bytes([channel.RESUME, "run_1", owed]))
        seen = set()
        while len(seen) < 20:
            header, _ = await read(socket, channel.RESULT, channel.UNKNOWN)
            assert header[0] == channel.RESULT
            seen |= {entry[0] for entry in header[2]}
    await operator.release()
    await control.wait(lambda: control.of(link.Ended, lease="lease_1"))
    assert sorted(control.tasks("lease_1")) == sorted(("run_1", task, 1, "done") for task in range(20))
    last = control.closing("lease_1")[0].receipt
    worked = sum(line.gpu_ms for signed in control.receipts["lease_1", 1] for line in signed.tasks)
    idle = sum(run.idle_ms for run in last.runs)
    assert worked + idle == sum(gpu.gpu_ms for gpu in last.gpus)


async def test_a_lease_that_the_control_plane_no_longer_knows_is_ended(operator):
    control = operator.control
    control.acknowledging = False
    await operator.open()
    await control.drop_agent()
    async with operator.dial() as socket:
        header, _ = await read(socket, channel.CLOSED)
    assert header[1] == Reason.OPERATOR_LOST
    async with asyncio.timeout(10):  # the customer hears it before the disk does
        while operator.agent._outbox.unacknowledged(("lease_1", 1)):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


async def test_a_rejected_receipt_ends_the_lease(operator):
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        await operator.control.send(link.RejectReceipt(lease="lease_1", generation=1, seq=3, reason="no"))
        await read(socket, channel.CLOSED)


async def test_a_stopping_agent_closes_its_leases_and_keeps_the_receipts(operator):
    control = operator.control
    await operator.open()
    await operator.stop()
    assert control.closing("lease_1")[0].receipt.reason == Reason.OPERATOR_DRAIN
    assert control.of(link.Ended, lease="lease_1")


async def test_a_stopping_agent_without_a_control_plane_keeps_its_close_receipt_on_disk(operator):
    control = operator.control
    await operator.open()
    await control.wait(lambda: control.receipts)
    await control.stop()
    await operator.stop()
    outbox = Outbox(operator.state / "receipts.db")
    kept = [SignedReceipt.from_bytes(data).receipt for _, data in outbox.unacknowledged(("lease_1", 1))]
    outbox.close()
    assert kept[-1].kind == ReceiptKind.CLOSE


async def test_a_final_refusal_ends_the_agent_with_its_reason(operator):
    operator.control.refusal = link.Refuse(reason="unknown session key", final=True)
    await operator.control.drop_agent()
    with pytest.raises(Refused, match="unknown session key"):
        await operator.running


async def test_a_refusal_for_now_is_tried_again(operator):
    control = operator.control
    control.refusal = link.Refuse(reason="busy", final=False)
    await control.drop_agent()
    before = control.connections
    await control.wait(lambda: control.connections >= before + 2)
    beats = len(control.of(link.Heartbeat))
    control.refusal = None
    await control.wait(lambda: len(control.of(link.Heartbeat)) > beats)
    await operator.open()


async def test_a_grant_on_a_node_that_is_not_there_is_ended_at_once(operator):
    await operator.grant(node="n9")
    ended = await operator.control.wait(lambda: operator.control.of(link.Ended, lease="lease_1"))
    assert ended[0].reason == Reason.OPERATOR_LOST


async def test_a_lost_node_is_told_and_its_leases_are_billed_to_the_last_moment_known(operator):
    control = operator.control
    await operator.open()
    await control.wait(lambda: control.receipts)
    operator.cluster.alive = False
    await control.wait(lambda: control.closing("lease_1"))
    assert control.closing("lease_1")[0].receipt.reason == Reason.OPERATOR_LOST
    await control.send(control.nonce())
    await control.wait(lambda: control.of(link.Heartbeat, lost_nodes=["n1"]))
    assert control.of(link.Inventory)[-1].nodes == []


async def test_a_lost_node_that_comes_back_gives_up_the_leases_that_were_closed_without_it(operator):
    control = operator.control
    await operator.open()
    await control.wait(lambda: control.receipts)
    operator.cluster.alive = False
    await control.wait(lambda: control.closing("lease_1") and not control.of(link.Inventory)[-1].nodes)
    operator.cluster.alive = True
    await control.wait(lambda: control.of(link.Inventory)[-1].nodes)
    await operator.open("lease_2")
    assert control.of(link.Ended, lease="lease_2") == []


async def test_log_lines_go_to_the_control_plane_too(operator):
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        await send_call(socket, await send_function(socket, lambda: print("said")))
        await read(socket, channel.RESULT)
    logs = await operator.control.wait(lambda: operator.control.of(link.Logs))
    assert (logs[0].run, logs[0].lines[0].text) == ("run_1", "said")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ({"key": SigningKey.generate()}, "not signed"),
        ({"audience": "op_2"}, "for operator op_2"),
        ({"expires_ms": 1}, "expired"),
        ({"generation": 0}, "older generation"),
    ],
)
async def test_a_token_that_opens_nothing_is_refused_with_the_reason(operator, token, why):
    await operator.open()
    with capture_logs() as logs, pytest.raises(InvalidStatus) as refused:
        async with operator.dial(**token):
            pass
    assert refused.value.response.status_code == 401
    assert why in refused.value.response.body.decode()
    assert any(why in line.get("why", "") for line in logs)
    async with operator.dial():
        pass


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/v1/channel", {}, 401), ("/v1/channel", {"Authorization": "Bearer x"}, 401), ("/elsewhere", {}, 404)],
)
async def test_who_has_no_token_is_not_let_in(operator, path, headers, status):
    with pytest.raises(InvalidStatus) as refused:
        async with connect(operator.gateway.replace("/v1/channel", path), additional_headers=headers):
            pass
    assert refused.value.response.status_code == status


async def test_a_customer_who_comes_before_the_lease_is_open_is_held_until_it_is(operator):
    async with operator.dial() as socket:
        await operator.open()
        await read(socket, channel.READY)


async def test_a_customer_of_a_lease_that_is_over_hears_why(operator):
    await operator.open()
    await operator.release(reason="preempted")
    await operator.control.wait(lambda: operator.control.of(link.Ended, lease="lease_1"))
    async with operator.dial() as socket:
        header, _ = await read(socket, channel.CLOSED)
    assert header[1] == "preempted"


async def test_a_large_frame_comes_in_fragments_and_leaves_in_fragments(operator):
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        digest = await send_function(socket, lambda data: data)
        body = cloudpickle.dumps(((bytes(3 << 20),), {}))
        frame = pack_bytes([channel.CALL, "run_1", digest, [[0, 1, [len(body)]]], 0], body)
        await socket.send(frame[at : at + 100_000] for at in range(0, len(frame), 100_000))
        header, result = await read(socket, channel.RESULT)
        fragments = 0
        await socket.send(pack_bytes([channel.RESUME, "run_1", [[0, 1]]]))
        async for _ in socket.recv_streaming():
            fragments += 1
    sizes = header[2][0][6]
    assert codec.decode(result[: sizes[0]], [result[sizes[0] :]], types=codec.NoTypes()) == bytes(3 << 20)
    assert fragments > 10


@pytest.mark.parametrize("message", [b"\xff" * 40, pack_bytes([channel.CLOSED, "done", ""])])
async def test_what_is_no_frame_of_a_customer_ends_the_connection_and_not_the_lease(operator, message):
    await operator.open()
    async with operator.dial() as socket:
        await read(socket, channel.READY)
        await socket.send(message)
        with pytest.raises(ConnectionClosed):
            await read(socket, channel.PONG)
    async with operator.dial() as socket:
        await read(socket, channel.READY)


async def test_a_detached_task_runs_and_its_result_is_stored(operator, blobs):
    work = blobs.work(lambda x: x + 1, 41)
    await operator.open()
    await operator.control.send(work)
    await operator.control.send(work)
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone))
    assert (len(done), done[0].reason) == (1, "done")
    header, body = unpack(blobs.stored[done[0].result])
    assert header[:2] == [channel.RESULT, "run_1"]
    assert codec.decode(body, [], types=codec.NoTypes()) == 42


async def test_a_detached_task_whose_blob_is_gone_fails_with_the_reason(operator, blobs):
    work = blobs.work(lambda: 1)
    blobs.stored.clear()
    await operator.open()
    await operator.control.send(work)
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone))
    assert done[0].reason == Reason.INTERNAL_ERROR
    assert "404" in done[0].message


@pytest.mark.parametrize(
    "args",
    [b"noise", pack_bytes(["call"]), pack_bytes(["call", "r", b"", [[0, 1, [9]]], 0]), pack_bytes(["call", 1, 2, {}])],
    ids=["no frame", "no tasks", "other sizes", "other types"],
)
async def test_a_detached_task_whose_arguments_are_no_call_fails_at_once(operator, blobs, args):
    work = blobs.work(lambda: 1).model_copy(update={"args": blobs.keep(args)})
    await operator.open()
    await operator.control.send(work)
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone))
    assert done[0].reason == Reason.INTERNAL_ERROR
    await operator.control.send(blobs.work(lambda: 2).model_copy(update={"run": "run_1", "attempt": 2}))
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone, attempt=2))
    assert done[0].reason == "done", "nothing else is disturbed"


async def test_a_released_detached_task_ends_with_the_leases_reason(operator, blobs):
    await operator.open()
    await operator.control.send(blobs.work(lambda: (print("begun"), time.sleep(60))))
    await operator.control.wait(lambda: operator.control.of(link.Logs))
    await operator.release(reason="cancelled_by_user")
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone))
    assert done[0].reason == "cancelled_by_user"


async def test_an_agent_measures_whom_it_is_told_to_and_the_control_plane_if_they_answer(operator):
    gone = link.Target(place="op/gone", gateway="ws://127.0.0.1:1/v1/channel")
    await operator.control.send(link.Measure(targets=[link.Target(place="op/near", gateway=operator.gateway), gone]))
    told = await operator.control.wait(lambda: operator.control.of(link.Rtts))
    assert [one.place for one in told[0].rtts] == ["op/near"]
    assert 0 < told[0].rtts[0].rtt_us < 1_000_000


def _ranked(operator, work, attempt=1):
    gang = Gang(group="run_1", rank=0, nodes=[operator.site.config.node])
    return work.model_copy(update={"gang": gang, "attempt": attempt})


async def test_a_rank_of_a_gang_finds_its_place_in_its_environment_and_each_attempt_a_fresh_process(operator, blobs):
    def place():
        import os

        return [os.environ[name] for name in ("FABRIC_RANK", "FABRIC_WORLD_SIZE", "FABRIC_ATTEMPT")], os.getpid()

    await operator.open()
    seen = []
    for attempt in (1, 2):
        await operator.control.send(_ranked(operator, blobs.work(place), attempt))
        done = await operator.control.wait(lambda n=attempt: operator.control.of(link.WorkDone, attempt=n))
        header, body = unpack(blobs.stored[done[0].result])
        first, *_ = split(body, header[2][0][6])
        seen.append(codec.decode(first, [], types=codec.NoTypes()))
    assert [tuple(values) for values, _ in seen] == [("0", "1", "1"), ("0", "1", "2")]
    assert seen[0][1] != seen[1][1]


async def test_a_rank_that_is_stopped_ends_and_its_lease_goes_on(operator, blobs):
    await operator.open()
    await operator.control.send(_ranked(operator, blobs.work(lambda: (print("begun"), time.sleep(60)))))
    await operator.control.wait(lambda: operator.control.of(link.Logs))
    await operator.control.send(link.StopWork(lease="lease_1", generation=1, run="run_1", task=0, attempt=1))
    done = await operator.control.wait(lambda: operator.control.of(link.WorkDone))
    assert done[0].reason == "cancelled_by_user"
    await operator.control.send(_ranked(operator, blobs.work(lambda: 7), 2))
    again = await operator.control.wait(lambda: operator.control.of(link.WorkDone, attempt=2))
    assert again[0].reason == "done"
