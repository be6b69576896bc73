"""A real node with real children, and a customer who speaks the data channel to it; no Ray, no control plane."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fabric.agent import dialect, events
from fabric.agent.meter import LeaseMeter
from fabric.agent.node import Node, NodeConfig
from fabric.agent.stream import FrameStream, connect
from fabric.wire import channel, codec
from fabric.wire.clock import SystemClock
from fabric.wire.frames import Buffer, split


class Peer:
    """Our end of a connection to a node: frames in the order in which they came."""

    def __init__(self) -> None:
        self.frames: list[tuple[list[Any], Buffer]] = []
        self.closed = False
        self._changed = asyncio.Event()
        self._read = 0

    async def connect(self, address: str) -> None:
        self.stream: FrameStream = await connect(address, self._on_frame, self._on_closed)

    def send(self, header: list[Any], *body: Buffer) -> None:
        self.stream.send(header, *body)

    async def next(self, *kinds: str, within_s: float = 20) -> tuple[list[Any], Buffer]:
        """The next frame of one of these kinds; others before it are passed over."""
        async with asyncio.timeout(within_s):
            while True:
                while self._read < len(self.frames):
                    self._read += 1
                    if not kinds or self.frames[self._read - 1][0][0] in kinds:
                        return self.frames[self._read - 1]
                if self.closed:
                    raise ConnectionError("the connection ended")
                self._changed.clear()
                await self._changed.wait()

    async def end(self, within_s: float = 20) -> None:
        async with asyncio.timeout(within_s):
            while not self.closed:
                self._changed.clear()
                await self._changed.wait()

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        self.frames.append((header, body))
        self._changed.set()

    def _on_closed(self, error: Exception | None) -> None:
        del error
        self.closed = True
        self._changed.set()


class Operator(Peer):
    """A node's agent as far as checkpoints go: it keeps them in memory. `refuses` is what it says to a manifest."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[str, bytes] = {}
        self.checkpoints: dict[tuple[str, int], bytes] = {}
        self.refuses = ""
        self.uploads = 0

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        match header:
            case [dialect.PIECE, lease, generation, _, _, number]:
                self.uploads += 1
                self.pieces[hashlib.sha256(body).hexdigest()] = bytes(body)
                self.send([dialect.STORED, lease, generation, number, ""])
            case [dialect.CHECKPOINT, lease, generation, run, task, number]:
                if not self.refuses:
                    self.checkpoints[run, task] = bytes(body)
                self.send([dialect.STORED, lease, generation, number if not self.refuses else 0, self.refuses])
            case [dialect.WANTED, lease, generation, run, task]:
                manifest = self.checkpoints.get((run, task))
                for digest, piece in self.pieces.items() if manifest is not None else ():
                    self.send([dialect.PIECE, lease, generation, digest], piece)
                self.send([dialect.CHECKPOINT, lease, generation, run, task, manifest is not None, ""], manifest or b"")
        super()._on_frame(header, body)


class Customer(Peer):
    """Functions and tasks on one lease."""

    async def attach(self, address: str, token: str, lease: str, generation: int = 1) -> None:
        await self.connect(address)
        self.send([dialect.CHANNEL, token, lease, generation])

    def function(self, function: Callable[..., Any]) -> bytes:
        packed = cloudpickle.dumps(function)
        digest = hashlib.sha256(packed).digest()
        self.send([channel.FN, digest], packed)
        return digest

    def call(self, digest: bytes, *args: Any, task: int = 0, run: str = "run_1", attempt: int = 1, timeout_ms: int = 0):
        self.calls(digest, [(task, args)], run=run, attempt=attempt, timeout_ms=timeout_ms)

    def calls(self, digest, tasks, run="run_1", attempt=1, timeout_ms=0) -> None:
        """One frame with several tasks: [(task, args)]."""
        bodies = [cloudpickle.dumps((args, {})) for _, args in tasks]
        entries = [[task, attempt, [len(body)]] for (task, _), body in zip(tasks, bodies, strict=True)]
        self.send([channel.CALL, run, digest, entries, timeout_ms], *bodies)

    async def outcomes(self, count: int) -> dict[int, Any]:
        """{task: value, exception, or FAILED entry} of the next `count` outcomes."""
        found: dict[int, Any] = {}
        while len(found) < count:
            header, body = await self.next(channel.RESULT, channel.FAILED)
            found |= outcomes_of(header, body)
        return found


def outcomes_of(header: list[Any], body: Buffer) -> dict[int, Any]:
    if header[0] == channel.FAILED:
        return {entry[0]: entry for entry in header[2]}
    found: dict[int, Any] = {}
    at, view = 0, memoryview(body)
    for task, _, status, *_, sizes in header[2]:
        first, *buffers = split(view[at : at + sum(sizes)], sizes)
        at += sum(sizes)
        if status == channel.STATUS_NOT_TRANSPORTABLE:
            found[task] = bytes(first).decode()
        else:
            found[task] = codec.decode(first, buffers, types=codec.NoTypes())
    return found


class Site:
    """One node of ours, and an agent's connection to it."""

    token = "t" * 32

    def __init__(self, state: Path, **settings: Any) -> None:
        self.sockets = tempfile.TemporaryDirectory(prefix="fab")
        settings = {"simulated_gpus": "H100:2", "warm_children": 1, "listen": f"unix:{self.sockets.name}/n"} | settings
        self.config = NodeConfig(
            node="n1", address="127.0.0.1", region="lab", state_dir=state, token=self.token, **settings
        )

    async def start(self) -> None:
        self.node = Node(self.config, SystemClock())
        self.address = await self.node.start()
        self.agent = Operator()
        await self.agent.connect(self.address)
        self.agent.send([dialect.CONTROL, self.token])
        header, _ = await self.agent.next(dialect.NODE)
        self.hello = header[1]
        self.gpus = [gpu["uuid"] for gpu in self.hello["info"]["gpus"]]

    async def stop(self) -> None:
        await self.node.stop()
        self.agent.stream.close()

    async def crash(self) -> None:
        """Leave things as a kill -9 would."""
        self.node.record = lambda event: None
        await self.node.stop()

    async def restart(self) -> None:
        """As Ray does it: a new process of the same node."""
        self.node = Node(self.config, SystemClock())
        self.address = await self.node.start()

    async def open(self, lease: str = "lease_1", **wish: Any) -> None:
        wish = {
            "lease": lease,
            "generation": 1,
            "session": "session_1",
            "run": "run_1",
            "gpus": [[self.gpus[0], 1000]],
            "cpu_milli": 1000,
            "memory_bytes": 0,
            "startup_timeout_ms": 20_000,
        } | wish
        self.agent.send([dialect.OPEN, wish])

    async def customer(self, lease: str = "lease_1") -> Customer:
        customer = Customer()
        await customer.attach(self.address, self.token, lease)
        await customer.next(channel.READY)
        return customer

    async def leased(self, lease: str = "lease_1", **wish: Any) -> Customer:
        """Open a lease and attach to it."""
        await self.open(lease, **wish)
        await self.agent.next(dialect.OPENED)
        return await self.customer(lease)

    def meter(self, lease: str = "lease_1") -> LeaseMeter:
        """The fold of all that the journal says of a lease."""
        mine = [event for event in self.events() if getattr(event, "lease", "") == lease]
        meter = LeaseMeter(mine[0])
        for event in mine[1:]:
            meter.apply(event)
        return meter

    def events(self) -> list[events.Event]:
        records, _ = self.node._journal.read(0, 1 << 30)
        return [events.decode(record) for record in records]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path / "node")
    await made.start()
    yield made
    with suppress(Exception):
        await made.stop()
    made.sockets.cleanup()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**settings: Any) -> Site:
        made.append(Site(tmp_path / "node", **settings))
        return made[-1]

    yield make
    for site in made:
        site.sockets.cleanup()
