"""The control plane's side of the agents' WebSocket (`fabric.wire.link`): who may connect, what is sent, what is heard.

A connection keeps no truth: grants, releases and tasks to send are rows, read when the cluster's topic is notified and
again after a reconnect; what an agent says is written to rows before it is acted upon.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from anyio import CancelScope, to_thread
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api import enrolment, gangs, inventory, keys, nonces, notices, orders, rounds, transitions
from api.agent_events import AgentEvents
from api.database_faults import holds_nul
from api.distances import FRESH_MS, neighbours, write_location
from api.fleet import cluster_id
from api.ingest import Ingest
from api.lifecycle import MISSING_MS
from api.plane import Plane
from api.pulse import Pulse
from api.signals import cluster_topic
from api.tables import AttemptRow, ClusterRow, LeaseRow, NonceRow, OperatorRow, RunRow, SessionKeyRow
from api.ways import write_gateway
from fabric.wire import link
from fabric.wire.ids import new_id
from fabric.wire.machines import ACTIVE_LEASE_STATES, LeaseState, TaskState
from fabric.wire.surroundings import EnvSpec, network_of

_log = structlog.get_logger(__name__)
_HELLO_S = 20.0
_IDLE_S = 30.0
_NUL = "a text in it holds the character NUL (U+0000)"
_OUTBOX = 4096
_MEASURE_AGAIN_MS = 10_000
"""How soon an agent measures again when clusters came or went."""


class _Refused(Exception):
    """The agent is told why; `final` when it must not try again as it is."""

    def __init__(self, reason: str, *, final: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.final = reason, final


class Agents:
    """The connections of this process, one per cluster: a newer one ends the older."""

    def __init__(self, plane: Plane, ingest: Ingest) -> None:
        self._plane = plane
        self._ingest = ingest
        self._connected: dict[str, _Connection] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """One agent's connection from challenge to end."""
        await websocket.accept()
        try:
            hello = await self._greet(websocket)
            connection = await self._admit(websocket, hello)
        except _Refused as refused:
            _log.warning("agent refused", reason=refused.reason)
            await _say_last(websocket, link.Refuse(reason=refused.reason, final=refused.final))
            return
        except (WebSocketDisconnect, TimeoutError, KeyError):
            return
        await self._run(connection)
        await _close(websocket)

    async def beat(self) -> None:
        """A nonce to every connected agent, and what was heard since the last beat to the rows; once a second."""
        now = self._plane.now_ms()
        connected = dict(self._connected)
        rows = await to_thread.run_sync(self._write_beat, list(connected.values()), now)
        for row in rows:
            if row.cluster in connected:
                connected[row.cluster].beat(link.Nonce(seq=row.seq or 0, value=row.value))
        for connection, targets in await to_thread.run_sync(self._to_measure, list(connected.values()), now):
            connection.send(link.Measure(targets=targets))
        for cluster in await to_thread.run_sync(self._without_key, connected, now):
            _log.warning("agent cut off: its key was revoked, or the delegation ended", cluster=cluster)
            await connected[cluster].close()

    def find(self, cluster: str) -> "_Connection | None":
        """The cluster's agent, if it is connected to this process."""
        return self._connected.get(cluster)

    async def close(self) -> None:
        """End every connection."""
        for connection in list(self._connected.values()):
            await connection.close()

    async def _greet(self, websocket: WebSocket) -> link.Hello:
        challenge = secrets.token_bytes(32)
        first = link.Challenge(protocol=link.PROTOCOL, fabric_id=self._plane.fabric_id, value=challenge)
        await websocket.send_bytes(link.encode(first))
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = link.decode(await websocket.receive_bytes())
        except link.LinkError as error:
            raise _Refused(f"{error}; this control plane speaks protocol {link.PROTOCOL}") from None
        if not isinstance(hello, link.Hello):
            raise _Refused(f"a {hello.kind} came instead of a hello")
        if hello.protocol != link.PROTOCOL:
            raise _Refused(f"protocol {hello.protocol} is not spoken here, only {link.PROTOCOL}; update the older side")
        payload = link.hello_payload(challenge, hello.operator, hello.cluster)
        try:
            VerifyKey(hello.session_key).verify(payload, hello.proof)
        except (BadSignatureError, ValueError):
            raise _Refused("the hello is not signed by the session key that it names") from None
        return hello

    async def _admit(self, websocket: WebSocket, hello: link.Hello) -> "_Connection":
        name = new_id("conn")
        try:
            admitted = await to_thread.run_sync(self._write_hello, hello, name)
        except DBAPIError as error:
            if holds_nul(error):
                raise _Refused(_NUL) from None
            raise
        older = self._connected.get(admitted.cluster)
        if older is not None:
            await older.close()
        connection = _Connection(self._plane, self._ingest, websocket, admitted)
        self._connected[admitted.cluster] = connection
        self._plane.metrics.agents.set(len(self._connected))
        connection.send(admitted.welcome)
        return connection

    async def _run(self, connection: "_Connection") -> None:
        cluster = connection.admitted.cluster
        _log.info("agent connected", cluster=cluster)
        try:
            await connection.run()
        finally:
            if self._connected.get(cluster) is connection:
                del self._connected[cluster]
                self._plane.metrics.agents.set(len(self._connected))
                with CancelScope(shield=True):
                    await to_thread.run_sync(self._write_gone, connection.admitted)
            _log.info("agent disconnected", cluster=cluster)

    def _write_hello(self, hello: link.Hello, name: str) -> "_Admitted":
        with self._plane.database.write() as session:
            self._check(session, hello)
            cluster = self._cluster(session, hello, name)
            write_location(session, cluster.id, hello.location)
            write_gateway(session, cluster.id, hello.fingerprint, self._plane.settings.public_url)
            prices = orders.with_orders(session, cluster.id, hello.prices)
            inventory.write_prices(session, cluster.id, prices, self._plane.now_ms())
            refused = inventory.write_nodes(self._plane, session, cluster, hello.nodes)
            if refused:
                _log.warning("GPUs refused: another operator's", cluster=cluster.id, gpus=len(refused))
            nonce = nonces.issue(session, cluster.id, self._plane.now_ms())
            return _Admitted(
                operator=hello.operator,
                cluster=cluster.id,
                name=name,
                session_key=hello.session_key,
                session_keys=self._ingest.metering.keys_of(session, hello.operator, hello.session_key),
                held=frozenset((ref.lease, ref.generation) for ref in hello.leases),
                welcome=link.Welcome(
                    nonce=_message(nonce),
                    leases=_standing(session, cluster.id, hello.leases, self._plane.now_ms()),
                    token_key=bytes(self._plane.token_key.verify_key),
                    blob_token=keys.blob_token(self._plane.token_key, hello.operator, self._plane.now_ms()),
                ),
            )

    def _check(self, session: Session, hello: link.Hello) -> None:
        if session.get(OperatorRow, hello.operator) is None:
            raise _Refused(f"operator {hello.operator!r} is not known here; enrol it first")
        key = session.get(SessionKeyRow, hello.session_key.hex())
        if key is None or key.operator != hello.operator or key.revoked_ms is not None:
            raise _Refused(f"this session key is not one of operator {hello.operator!r}, or was revoked; enrol again")
        problem = enrolment.problem_of_key(session, hello.session_key, self._plane.now_ms())
        problem = problem or inventory.problem_of_hello(hello, allow_simulated=self._plane.settings.allow_simulated)
        if problem:
            raise _Refused(problem)
        if not hello.leases and not any(node.gpus for node in hello.nodes):
            raise _Refused(
                f"cluster {hello.cluster!r} has no GPU to offer; `fabric operator doctor` says what its machines see",
                final=False,
            )

    def _cluster(self, session: Session, hello: link.Hello, name: str) -> ClusterRow:
        cluster = cluster_id(hello.operator, hello.cluster)
        row = session.get(ClusterRow, cluster)
        if row is None:
            row = ClusterRow(
                id=cluster,
                operator=hello.operator,
                name=hello.cluster,
                gateway="",
                version="",
                connection="",
                connected=True,
                last_heard_ms=0,
            )
        row.gateway, row.version, row.connection = hello.gateway, hello.version, name
        row.connected, row.last_heard_ms = True, self._plane.now_ms()
        session.add(row)
        session.flush()
        return row

    def _write_gone(self, admitted: "_Admitted") -> None:
        with self._plane.database.write() as session:
            row = session.get(ClusterRow, admitted.cluster)
            if row is not None and row.connection == admitted.name:
                row.connected = False
                session.add(row)

    def _write_beat(self, connections: list["_Connection"], now_ms: int) -> list[NonceRow]:
        with self._plane.database.write() as session:
            clusters: list[str] = []
            for connection in connections:
                row = session.get(ClusterRow, connection.admitted.cluster)
                if row is not None and row.connection == connection.admitted.name:
                    row.last_heard_ms = max(row.last_heard_ms, connection.heard_ms)
                    session.add(row)
                    clusters.append(row.id)
            return nonces.issue_many(session, clusters, now_ms)

    def _to_measure(
        self, connections: list["_Connection"], now_ms: int
    ) -> list[tuple["_Connection", list[link.Target]]]:
        """Whom each agent should measure: the same few again and again, at once when they are others than before."""
        with self._plane.database.read() as session:
            live = select(ClusterRow).where(col(ClusterRow.connected)).order_by(col(ClusterRow.id))
            gateways = {row.id: row.gateway for row in session.scalars(live) if row.gateway}
        due = [one for one in connections if one.measures_due(tuple(gateways), now_ms)]
        return [
            (
                one,
                [
                    link.Target(place=name, gateway=gateways[name])
                    for name in neighbours(one.admitted.cluster, [*gateways])
                ],
            )
            for one in due
        ]

    def _without_key(self, connected: dict[str, "_Connection"], now_ms: int) -> list[str]:
        with self._plane.database.read() as session:
            ended = enrolment.ended_keys(session, {one.admitted.session_key for one in connected.values()}, now_ms)
        return [cluster for cluster, one in connected.items() if one.admitted.session_key in ended]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """Who is at the other end."""

    operator: str
    cluster: str
    name: str
    session_key: bytes
    session_keys: tuple[bytes, ...]
    held: frozenset[tuple[str, int]]
    welcome: link.Welcome


class _Connection:
    """One admitted agent: reads, writes, and sends what the rows say is to be sent."""

    def __init__(self, plane: Plane, ingest: Ingest, websocket: WebSocket, admitted: _Admitted) -> None:
        self._plane = plane
        self._ingest = ingest
        self._websocket = websocket
        self.admitted = admitted
        self.heard_ms = plane.now_ms()
        self.pulse = Pulse()
        self._events = AgentEvents(plane, admitted.operator, admitted.cluster)
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue(_OUTBOX)
        self._sent: set[tuple[Any, ...]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._measured: tuple[tuple[str, ...], int] = ((), 0)

    def measures_due(self, clusters: tuple[str, ...], now_ms: int) -> bool:
        """Whether it is time to measure among these; if so they count as measured now."""
        known, at_ms = self._measured
        due = now_ms - at_ms >= FRESH_MS or (known != clusters and now_ms - at_ms >= _MEASURE_AGAIN_MS)
        if due:
            self._measured = (clusters, now_ms)
        return due

    def beat(self, nonce: link.Nonce) -> None:
        """Send the second's nonce; the heartbeat that answers it shows how far the agent is."""
        self.pulse.sent(nonce.seq, self._plane.clock.monotonic_ns())
        self.send(nonce)

    def send(self, message: Any) -> None:
        """Queue a message; an agent that does not read for thousands of messages is cut off."""
        try:
            self._outbox.put_nowait(link.encode(message))
        except asyncio.QueueFull:
            for task in self._tasks:
                task.cancel()

    async def run(self) -> None:
        """Until the connection ends, from either side."""
        work = (self._read, self._write, self._dispatch)
        self._tasks = [asyncio.create_task(one()) for one in work]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            done = await asyncio.gather(*self._tasks, return_exceptions=True)
            for error in done:
                if isinstance(error, Exception) and not isinstance(error, (WebSocketDisconnect, RuntimeError)):
                    _log.error("agent connection failed", cluster=self.admitted.cluster, error=repr(error))

    async def close(self) -> None:
        """End it, and wait until its tasks are over."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_HELLO_S)

    async def _read(self) -> None:
        while True:
            data = await self._websocket.receive_bytes()
            self.heard_ms = self._plane.now_ms()
            try:
                message = link.decode(data)
            except link.LinkError as error:
                return await _say_last(self._websocket, link.Refuse(reason=str(error), final=False))
            refusal = await self._hear(message)
            if refusal:
                return await _say_last(self._websocket, link.Refuse(reason=refusal, final=False))

    async def _hear(self, message: Any) -> str:
        """Receipts go to the group commit; what follows them in the stream waits until they are durable."""
        if isinstance(message, link.Heartbeat):
            self.pulse.heard(message.nonce_seq, self._plane.clock.monotonic_ns())
        if isinstance(message, link.Receipts):
            self._ingest.put(self, self.admitted.operator, self.admitted.session_keys, message.receipts)
        elif not isinstance(message, link.Heartbeat) or self._events.news(message):
            await self._ingest.settled(self)
            try:
                return await to_thread.run_sync(self._events.handle, message)
            except DBAPIError as error:
                if holds_nul(error):
                    return _NUL
                raise
        return ""

    async def _write(self) -> None:
        while (data := await self._outbox.get()) is not None:
            await self._websocket.send_bytes(data)

    async def _dispatch(self) -> None:
        """Send grants, releases and tasks from the rows, each once per connection."""
        topic = cluster_topic(self.admitted.cluster)
        while True:
            seen = self._plane.signals.seen(topic)
            self._send_new(await to_thread.run_sync(self._to_send, asyncio.get_running_loop()))
            await self._plane.signals.wait(topic, seen, _IDLE_S)

    def _send_new(self, found: Iterable[tuple[tuple[Any, ...], Any]]) -> None:
        for key, message in found:
            if key not in self._sent:
                self._sent.add(key)
                self.send(message)

    def _to_send(self, loop: asyncio.AbstractEventLoop) -> list[tuple[tuple[Any, ...], Any]]:
        """Notices are sent as soon as they are read, whatever else there is: somebody's time runs out."""
        held = self.admitted.held
        with self._plane.database.read() as session:
            if urgent := notices.to_send(session, self.admitted.cluster, self._plane.now_ms()):
                loop.call_soon_threadsafe(self._send_new, urgent)
            found: list[tuple[tuple[Any, ...], Any]] = []
            active = [state.value for state in ACTIVE_LEASE_STATES]
            query = select(LeaseRow).where(
                col(LeaseRow.cluster) == self.admitted.cluster, col(LeaseRow.state).in_(active)
            )
            for lease in session.scalars(query.order_by(col(LeaseRow.granted_ms), col(LeaseRow.id))):
                if lease.state == LeaseState.GRANTED.value and (lease.id, lease.generation) not in held:
                    found.append((("grant", lease.id, lease.generation), _grant(session, lease)))
                if lease.state == LeaseState.CLOSING.value:
                    found.append((("release", lease.id, lease.generation), _release(session, lease)))
            found += gangs.stops(session, self.admitted.cluster)
            return found + _work(session, self.admitted.cluster) + [*rounds.to_send(session, self.admitted.cluster)]


def _standing(session: Session, cluster: str, held: list[link.LeaseRef], now_ms: int) -> list[link.Ack]:
    """The cluster's active leases; those that the agent came back without are lost unless it sends receipts of them."""
    names = {(ref.lease, ref.generation) for ref in held}
    active = [state.value for state in ACTIVE_LEASE_STATES]
    acks: list[link.Ack] = []
    for lease in session.scalars(
        select(LeaseRow).where(col(LeaseRow.cluster) == cluster, col(LeaseRow.state).in_(active))
    ):
        acks.append(link.Ack(lease=lease.id, generation=lease.generation, seq=lease.last_seq))
        if lease.opened_ms is not None and (lease.id, lease.generation) not in names:
            lease.lost_at_ms = now_ms + MISSING_MS
            session.add(lease)
    return acks


def _message(nonce: NonceRow | None) -> link.Nonce:
    assert nonce is not None
    return link.Nonce(seq=nonce.seq or 0, value=nonce.value)


def _grant(session: Session, lease: LeaseRow) -> link.Grant:
    shares = transitions.gpus_of(session, lease.id)
    request = session.get_one(RunRow, lease.run).request
    network, hosts = network_of(request)
    env = request.get("env")
    return link.Grant(
        lease=lease.id,
        generation=lease.generation,
        session=lease.session,
        run=lease.run,
        node=lease.node,
        gpus=[link.GpuShare(uuid=share.gpu, share_milli=share.share_milli) for share in shares],
        cpu_milli=lease.cpu_milli,
        memory_bytes=lease.memory_bytes,
        startup_timeout_ms=lease.startup_timeout_ms,
        notice_ms=lease.notice_ms,
        nonce=_message(session.get(NonceRow, lease.grant_nonce)),
        env=EnvSpec(**env) if env else None,
        network=network,
        hosts=hosts,
        gang=gangs.gang_of(session, lease),
    )


def _release(session: Session, lease: LeaseRow) -> link.Release:
    nonce = _message(session.get(NonceRow, lease.release_nonce))
    return link.Release(lease=lease.id, generation=lease.generation, reason=lease.reason, nonce=nonce)


def _work(session: Session, cluster: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Attempts of detached runs that an open lease of the cluster waits for."""
    query = (
        select(AttemptRow, RunRow, LeaseRow)
        .join(LeaseRow, col(LeaseRow.id) == col(AttemptRow.lease))
        .join(RunRow, col(RunRow.id) == col(AttemptRow.run))
        .where(
            col(LeaseRow.cluster) == cluster,
            col(LeaseRow.state) == LeaseState.OPEN.value,
            col(AttemptRow.state) == TaskState.SENT.value,
        )
    )
    return [
        (
            ("work", attempt.run, attempt.task, attempt.attempt),
            link.Work(
                lease=attempt.lease,
                generation=attempt.generation,
                run=attempt.run,
                task=attempt.task,
                attempt=attempt.attempt,
                code=run.code,
                args=run.args,
                timeout_ms=int(run.request.get("timeout_ms", 0)),
                gang=gangs.gang_of(session, lease),
            ),
        )
        for attempt, run, lease in session.execute(query)
    ]


async def _say_last(websocket: WebSocket, message: Any) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_bytes(link.encode(message))
    await _close(websocket)


async def _close(websocket: WebSocket) -> None:
    if websocket.application_state is not WebSocketState.DISCONNECTED:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.close()
