"""The agent's connection to one node: opens and closes leases there, reads its journal, dials again when it breaks."""

import asyncio
from typing import Any, Protocol

import structlog

from fabric.agent import dialect
from fabric.agent.stream import FrameStream, connect
from fabric.wire.frames import Buffer
from fabric.wire.link import GpuCondition, Grant, NodeCondition, NodeInfo, Prove
from fabric.wire.surroundings import GANG

_log = structlog.get_logger(__name__)

RETRY_S = 0.25


class NodeListener(Protocol):
    """Hears a node. Calls come from the event loop and must not block."""

    def on_node(self, client: "NodeClient", journal: str, start: int, leases: list[list[Any]]) -> int:
        """The node answered; returns the offset from which its journal is wanted."""
        ...

    def on_opened(self, lease: str, generation: int, node: str) -> None: ...
    def on_ended(self, lease: str, generation: int, reason: str, detail: str) -> None: ...
    def on_meter(self, node: str, offset: int, records: list[bytes]) -> None: ...
    def on_logs(self, run: str, lines: list[list[Any]]) -> None: ...
    def on_inventory(self) -> None: ...
    def on_checkpoint(self, client: "NodeClient", header: list[Any], body: bytes) -> None: ...
    def on_proved(self, answer: dict[str, Any]) -> None: ...


class NodeClient:
    """One node, by its name in the fabric. `address` may change when it is restarted."""

    def __init__(self, name: str, address: str, token: str, listener: NodeListener) -> None:
        self.name = name
        self.address = address
        self.token = token
        self.info: NodeInfo | None = None
        self.gang_address = ""
        self._condition: NodeCondition | None = None
        self.lost_at: float | None = asyncio.get_running_loop().time()
        self._listener = listener
        self._stream: FrameStream | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._task = asyncio.ensure_future(self._stay_connected())

    @property
    def connected(self) -> bool:
        return self._stream is not None and self._stream.open and self.info is not None

    def take_condition(self) -> NodeCondition | None:
        """How its GPUs are, once for each time that it said so."""
        condition, self._condition = self._condition, None
        return condition

    async def wait_connected(self) -> None:
        """Until it is connected, or given up: then `connected` is false."""
        await self._up.wait()

    def open_lease(self, grant: Grant, peers: list[str]) -> None:
        """`peers` are where the nodes of a gang's ranks take its connections; none without a gang."""
        wish = grant.model_dump(
            include={"lease", "generation", "session", "run", "cpu_milli", "memory_bytes", "startup_timeout_ms"}
        )
        wish |= grant.model_dump(include={"env", "network", "hosts", "notice_ms"})
        if grant.gang is not None and grant.network == GANG:
            wish["gang"] = {"group": grant.gang.group, "rank": grant.gang.rank, "peers": peers}
        wish["gpus"] = [[share.uuid, share.share_milli] for share in grant.gpus]
        self._send([dialect.OPEN, wish])

    def close_lease(self, lease: str, generation: int, reason: str) -> None:
        self._send([dialect.CLOSE, lease, generation, reason])

    def give_notice(self, lease: str, generation: int, reason: str, notice_ms: int) -> None:
        self._send([dialect.NOTICE, lease, generation, reason, notice_ms])

    async def read(self) -> None:
        """Wait until the node has taken most of what it was sent."""
        if self._stream is not None:
            await self._stream.drain()

    def answer(self, header: list[Any], body: bytes = b"") -> None:
        """Something about a checkpoint."""
        if self._stream is not None:
            self._stream.send(header, body)

    def prove(self, wish: Prove) -> None:
        self._send([dialect.PROVE, wish.model_dump(exclude={"kind", "node"})])

    def covered(self, offset: int) -> None:
        self._send([dialect.COVERED, offset])

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._stream is not None:
            self._stream.abort()
        self._up.set()

    def _send(self, header: list[Any]) -> None:
        if self._stream is not None:
            self._stream.send(header)

    async def _stay_connected(self) -> None:
        while True:
            self._down.clear()
            try:
                self._stream = await connect(self.address, self._on_frame, self._on_closed)
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            self._stream.send([dialect.CONTROL, self.token])
            await self._down.wait()
            await asyncio.sleep(RETRY_S)

    def _on_closed(self, error: Exception | None) -> None:
        if self.lost_at is None:
            _log.warning("node is gone", node=self.name, error=str(error or "the connection was closed"))
            self.lost_at = asyncio.get_running_loop().time()
        self._up.clear()
        self._down.set()

    def _on_frame(self, header: list[Any], body: Buffer) -> None:
        match header:
            case [dialect.METER, int() as offset, list() as records]:
                self._listener.on_meter(self.name, offset, records)
            case [dialect.LOGS, str() as run, list() as lines]:
                self._listener.on_logs(run, lines)
            case [dialect.OPENED, str() as lease, int() as generation]:
                self._listener.on_opened(lease, generation, self.name)
            case [dialect.ENDED, str() as lease, int() as generation, str() as reason, str() as detail]:
                self._listener.on_ended(lease, generation, reason, detail)
            case [dialect.PIECE | dialect.CHECKPOINT | dialect.WANTED, str(), int(), str(), int(), *_]:
                self._listener.on_checkpoint(self, header, bytes(body))
            case [dialect.INVENTORY, dict() as info]:
                self.info = NodeInfo.model_validate(info)
                self._listener.on_inventory()
            case [dialect.CONDITION, list() as gpus]:
                found = [GpuCondition.model_validate(one) for one in gpus]
                self._condition = NodeCondition(node=self.name, gpus=found)
            case [dialect.PROVED, dict() as answer]:
                self._listener.on_proved(answer)
            case [dialect.NODE, dict() as hello]:
                self._on_hello(hello)
            case _:
                _log.warning("a node sent what it should not", node=self.name, kind=header[0])

    def _on_hello(self, hello: dict[str, Any]) -> None:
        known, self.info = self.info, NodeInfo.model_validate(hello["info"])
        self.lost_at = None
        self.gang_address = str(hello.get("gang", ""))
        offset = self._listener.on_node(self, hello["journal"], hello["start"], hello["leases"])
        self._send([dialect.METER, offset])
        self._up.set()
        if known != self.info:
            self._listener.on_inventory()
