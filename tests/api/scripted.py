"""One control plane on a temporary SQLite file, a clock that tests move, and an agent that speaks the real link."""

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from nacl.signing import SigningKey

from api import app as application
from api.app import create_app
from api.plane import Plane
from api.settings import Settings
from fabric.wire import link, receipts
from fabric.wire.clock import ManualClock
from fabric.wire.ids import new_id

with warnings.catch_warnings():  # it asks for a successor of httpx that is not out under that name
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient, WebSocketDisconnect

GIB = 1 << 30
PAYOUT = "0x" + "ab" * 20
KEY = SigningKey(b"k" * 32)
OTHER_KEY = SigningKey(b"o" * 32)
H100_PRICE, L4_PRICE = 360_000, 36_000
BALANCE = 100_000_000


class Fabric:
    """A control plane under test: HTTP by customer, the clock, and agents."""

    def __init__(self, app: FastAPI, client: TestClient, clock: ManualClock) -> None:
        self.app, self.client, self.clock = app, client, clock
        self.sockets: list[Any] = []

    def __enter__(self) -> "Fabric":
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    @property
    def plane(self) -> Plane:
        return self.app.state.plane

    def hang_up(self) -> None:
        """End every agent's connection, so that a test that failed leaves none."""
        while self.sockets:
            hang_up(self.sockets.pop())

    def tick(self, ms: int = 0) -> None:
        """Move the clock and let time do its work."""
        self.clock.advance(ms)
        assert self.client.portal is not None
        self.client.portal.call(application.tick, self.app)

    def call(
        self, method: str, path: str, body: Any = None, *, who: str = "alice", expect: int = 200, **options: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer key-{who}"} | options.pop("headers", {})
        answer = self.client.request(method, path, json=body, headers=headers, **options)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def submit(
        self, *, who: str = "alice", expect: int = 201, headers: dict[str, str] | None = None, **members: Any
    ) -> Any:
        body = {"id": new_id("run"), "session": f"ses-{who}", "python": "3.11", **members}
        return self.call("POST", "/v1/runs", body, who=who, expect=expect, headers=headers or {})

    def run(self, run: str, *, who: str = "alice") -> Any:
        return self.call("GET", f"/v1/runs/{run}", who=who)

    def audit(self) -> list[Any]:
        answer = self.call("GET", "/v1/audit", who="admin")
        return [check for check in answer["checks"] if not check["ok"]]


def starts(folder: Path, clock: ManualClock, migrated: Path) -> Iterator[Callable[..., Fabric]]:
    """Yields what starts a control plane on this folder, from a copy of that database; each start ends the last one."""
    shutil.copy(migrated, folder / "fabric.db")
    running: list[Fabric] = []

    def stop() -> None:
        while running:
            fabric = running.pop()
            fabric.hang_up()
            fabric.client.__exit__(None, None, None)

    def begin(**settings: Any) -> Fabric:
        stop()
        options = {
            "state_dir": folder,
            "bootstrap": bootstrap_file(folder),
            "allow_simulated": True,
            "challenges": False,
        } | settings
        app = create_app(Settings(**options), clock, tick_s=None)
        client = TestClient(app)
        running.append(Fabric(app, client.__enter__(), clock))
        return running[-1]

    yield begin
    stop()


class Agent:
    """An operator's agent by script: connects, answers grants as told, signs receipts of any content."""

    def __init__(
        self, fabric: Fabric, operator: str = "op-1", key: SigningKey = KEY, cluster: str = "main", **options: Any
    ) -> None:
        self.fabric, self.operator, self.key, self.cluster = fabric, operator, key, cluster
        self.options = options
        self.nonce: link.Nonce | None = None
        self.chains: dict[str, tuple[int, bytes]] = {}
        self.unread: list[Any] = []

    def connect(self, *, held: list[link.LeaseRef] | None = None) -> Any:
        """Until welcome or refusal; returns that message."""
        self._context = self.fabric.client.websocket_connect("/v1/agent")
        self.socket = self._context.__enter__()
        self.fabric.sockets.append(self._context)
        challenge = link.decode(self.socket.receive_bytes())
        self.fabric_id = challenge.fabric_id
        self.socket.send_bytes(link.encode(self.hello(challenge.value, held or [])))
        answer = link.decode(self.socket.receive_bytes())
        if isinstance(answer, link.Welcome):
            self.nonce = answer.nonce
        else:
            self.close()
        return answer

    def hello(self, challenge: bytes, held: list[link.LeaseRef]) -> link.Hello:
        payload = link.hello_payload(challenge, self.operator, self.cluster)
        values: dict[str, Any] = {
            "protocol": link.PROTOCOL,
            "version": "0.1.0",
            "operator": self.operator,
            "cluster": self.cluster,
            "session_key": bytes(self.key.verify_key),
            "proof": self.key.sign(payload).signature,
            "gateway": "ws://127.0.0.1:9/v1/channel",
            "nodes": nodes(),
            "prices": {"H100": {"on_demand": H100_PRICE, "spot": H100_PRICE // 2}, "L4": {"on_demand": L4_PRICE}},
            "leases": held,
        }
        return link.Hello(**values | self.options)

    def close(self) -> None:
        """Hang up, and wait until the control plane has noted it."""
        self.fabric.sockets.remove(self._context)
        hang_up(self._context)

    def send(self, message: Any) -> None:
        self.socket.send_bytes(link.encode(message))

    def expect(self, kind: Any) -> Any:
        """The oldest message of a kind that was not looked at yet; others wait for their turn."""
        for at, message in enumerate(self.unread):
            if isinstance(message, kind):
                return self.unread.pop(at)
        while not isinstance(message := self._receive(), kind):
            self.unread.append(message)
        return message

    def _receive(self) -> Any:
        message = link.decode(self.socket.receive_bytes())
        nonce = message if isinstance(message, link.Nonce) else getattr(message, "nonce", None)
        if nonce is not None and (self.nonce is None or nonce.seq > self.nonce.seq):
            self.nonce = nonce
        return message

    def beat(self, ms: int = 0) -> None:
        """One second of the control plane: it sends a nonce, we answer."""
        self.fabric.tick(ms)
        nonce = self.expect(link.Nonce)
        self.send(link.Heartbeat(nonce_seq=nonce.seq))

    def open(self, grant: link.Grant) -> None:
        """Say that the node is ready, with the OPEN receipt; returns when it is durable."""
        self.send(link.Opened(lease=grant.lease, generation=grant.generation))
        self.receipt(grant, receipts.ReceiptKind.OPEN, 0)

    def receipt(self, grant: link.Grant, kind: Any, gpu_ms: int, **options: Any) -> Any:
        """Sign and send the next receipt of a lease; returns the answer: an ack or a refusal."""
        self.send(link.Receipts(receipts=[self.signed(grant, kind, gpu_ms, **options).to_bytes()]))
        while True:
            answer = self.expect((link.Ack, link.RejectReceipt))
            if answer.lease == grant.lease:
                return answer

    def signed(
        self,
        grant: link.Grant,
        kind: Any,
        gpu_ms: int,
        *,
        tasks: tuple[receipts.TaskLine, ...] = (),
        runs: tuple[receipts.RunLine, ...] | None = None,
        key: SigningKey | None = None,
        advance: bool = True,
        **override: Any,
    ) -> receipts.SignedReceipt:
        assert self.nonce is not None
        seq, previous = self.chains.get(grant.lease, (0, receipts.GENESIS_HASH))
        lines = tuple(receipts.GpuLine(share.uuid, share.share_milli, gpu_ms) for share in grant.gpus)
        total = gpu_ms * len(lines)
        values: dict[str, Any] = {
            "fabric_id": self.fabric_id,
            "operator": self.operator,
            "lease": grant.lease,
            "generation": grant.generation,
            "seq": seq,
            "kind": kind,
            "nonce_seq": self.nonce.seq,
            "nonce": self.nonce.value,
            "previous": previous,
            "gpus": lines,
            "runs": runs if runs is not None else (receipts.RunLine(grant.run, total),),
            "task_count": len(tasks),
            "task_root": receipts.task_root(tasks),
            "simulated": True,
        }
        receipt = receipts.Receipt(**values | override)
        if advance:
            self.chains[grant.lease] = (receipt.seq + 1, receipt.hash)
        return receipts.sign(receipt, tasks, key or self.key)


def hang_up(socket: Any) -> None:
    socket.close(1000)
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            socket.receive_bytes()
    socket.__exit__(None, None, None)


def gpu(number: int, model: str = "H100", **options: Any) -> link.GpuInfo:
    memory = 80 * 10**9 if model == "H100" else 24 * 10**9
    values = {
        "uuid": f"GPU-{number}",
        "vendor": "nvidia",
        "model": model,
        "name": model,
        "memory_bytes": memory,
        "simulated": True,
    }
    return link.GpuInfo(**values | options)


def nodes(*gpus: link.GpuInfo, name: str = "node-1", **options: Any) -> list[link.NodeInfo]:
    values = {
        "node": name,
        "address": "127.0.0.1",
        "cpu_milli": 16_000,
        "memory_bytes": 64 * GIB,
        "disk_bytes": 100 * GIB,
        "python": "3.11",
        "cloudpickle": "3.1.1",
        "region": "eu",
        "gpus": list(gpus) or [gpu(1), gpu(2), gpu(3, "L4")],
    }
    return [link.NodeInfo(**values | options)]


def done(run: str, task: int = 0, *, attempt: int = 1, reason: str = "done", end_ms: int = 100) -> receipts.TaskLine:
    return receipts.TaskLine(run, task, attempt, ("GPU-1",), 0, end_ms, end_ms, 7, reason, bytes(32))


def bootstrap_file(folder: Path, balance: int = BALANCE) -> Path:
    customers = [
        {
            "id": who,
            "name": who.title(),
            "api_key_sha256": hashlib.sha256(f"key-{who}".encode()).hexdigest(),
            "test_balance_dc": balance if who != "poor" else 50,
            "admin": who == "admin",
        }
        for who in ("alice", "bob", "carol", "poor", "admin")
    ]
    operators = [
        {"id": name, "name": name.title(), "session_key": bytes(key.verify_key).hex(), "payout": PAYOUT}
        for name, key in (("op-1", KEY), ("op-2", OTHER_KEY))
    ]
    path = folder / "bootstrap.json"
    path.write_text(json.dumps({"customers": customers, "operators": operators}))
    return path
