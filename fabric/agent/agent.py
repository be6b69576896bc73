"""The agent: puts link, gateway, nodes, receipts and detached work together. Each decides for itself.

Order matters in one place: a receipt is stored before it is sent, and a lease's end is told after its CLOSE receipt.
"""

import asyncio
import time
from importlib.metadata import version
from typing import Any

import structlog
from nacl.signing import SigningKey

from fabric.agent import dialect
from fabric.agent.certificate import load_or_make
from fabric.agent.checkpoint_store import CheckpointStore
from fabric.agent.cluster import Cluster, ClusterError
from fabric.agent.directory import Directory, Stage
from fabric.agent.gang import rank_environment
from fabric.agent.gateway import PATH, Gateway, Refusal
from fabric.agent.link import Link, hello
from fabric.agent.loglines import LogLines
from fabric.agent.meter import LeaseMeter
from fabric.agent.nodes import NodeClient
from fabric.agent.outbox import Outbox
from fabric.agent.relay import Relays
from fabric.agent.sealer import Account, Key, Sealed, Sealer
from fabric.agent.settings import AgentSettings
from fabric.agent.work import BlobError, Blobs, Works
from fabric.ping import round_trips_us
from fabric.wire import link
from fabric.wire.checkpoints import ManifestError
from fabric.wire.clock import Clock
from fabric.wire.reasons import Reason
from fabric.wire.tokens import LeaseToken

_log = structlog.get_logger(__name__)

CLUSTER_S = 2.0
"""How often the cluster is asked for its nodes."""
FIRST_NODES_S = 30.0
"""How long the first hello waits for the nodes to answer."""
LOST_S = 60.0
"""A node that the cluster calls alive and that does not answer for so long is given up."""
SEAL_S = 0.02
"""How often the accounts are looked at while something happens in them."""
STOP_S = 4.0

_MESSAGE_BYTES = 4 << 20


class Agent:
    """One operator's agent. `run` until cancelled, then `stop`."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        key: SigningKey,
        cluster: Cluster,
        outbox: Outbox,
        node_token: str,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._key = key
        self._cluster = cluster
        self._outbox = outbox
        self._node_token = node_token
        self._sealer = Sealer(settings.operator, key)
        self._directory = Directory()
        self._nodes: dict[str, NodeClient] = {}
        self._journals = outbox.nodes()
        self._applied: dict[str, int] = {node: offset for node, (_, offset) in self._journals.items()}
        self._acked: dict[Key, int] = {}
        self._lost: set[str] = set()
        self._details: dict[Key, str] = {}
        self._fabric_id = ""
        self._nonce: tuple[int, bytes] | None = None
        self._stirred = asyncio.Event()
        self._stopping = False
        self._storing = asyncio.Lock()
        self._measuring: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.token_key: bytes | None = None
        self._link = Link(settings.url, self)
        self._blobs = Blobs(settings.url)
        self._checkpoints = CheckpointStore(self._blobs)
        self._fetching: set[asyncio.Task[None]] = set()
        self._logs = LogLines(self._link.send)
        self._works = Works(self._blobs, self.node_of, self._link.send, self._gang_environment)
        certificate = load_or_make(settings.state_dir) if settings.gateway_tls else None
        self._gateway = Gateway(self, operator=settings.operator, clock=clock, certificate=certificate)
        self._gateway_url = settings.gateway_url
        self._gateway_port = 0
        self._relays = Relays(settings.url, self._own_gateway)
        self._restore()

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            Refused: the control plane refuses this agent for good.
            ClusterError: there is no cluster, or it is not safe.
            OSError: the gateway's port is taken.
        """
        host = self._settings.gateway_host
        port = self._gateway_port = await self._gateway.start(host, self._settings.gateway_port)
        scheme = "wss" if self._settings.gateway_tls else "ws"
        self._gateway_url = self._gateway_url or f"{scheme}://{host}:{port}{PATH}"
        await asyncio.to_thread(self._cluster.connect)
        await self._look_at_cluster()
        await self._first_answers()
        self._tasks = [asyncio.ensure_future(part) for part in (self._watch_cluster(), self._seal_forever())]
        running = [asyncio.ensure_future(self._link.run()), *self._tasks]
        self._tasks = running
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Close every lease, keep its CLOSE receipt, send what can be sent, and stop."""
        self._stopping = True
        self._stirred.set()
        await self._works.stop()
        if self._measuring is not None:
            self._measuring.cancel()
        open_leases = self._directory.active()
        for lease, entry in open_leases:
            client = self._nodes.get(entry.node)
            if client is not None:
                client.close_lease(lease, entry.generation, Reason.OPERATOR_DRAIN)
        await self._wait_closed()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._relays.stop()
        await self._gateway.stop()
        for client in self._nodes.values():
            await client.stop()
        await asyncio.to_thread(self._cluster.stop)
        await self._checkpoints.stop()
        await self._blobs.close()
        self._outbox.close()

    def superseded(self, token: LeaseToken) -> bool:
        return self._directory.superseded(token)

    async def node_of(self, token: LeaseToken) -> tuple[str, str]:
        """Address and token of the lease's node, once the lease is open; for the gateway and for detached work."""
        entry = await self._directory.wait_open(token.lease, token.generation)
        client = self._nodes.get(entry.node)
        if client is None:
            raise Refusal(Reason.OPERATOR_LOST, f"node {entry.node} is lost")
        await client.wait_connected()
        if not client.connected:
            raise Refusal(Reason.OPERATOR_LOST, f"node {entry.node} is lost")
        return client.address, client.token

    def hello(self, challenge: link.Challenge) -> link.Hello:
        settings = self._settings
        return hello(
            challenge,
            self._key,
            version=version("berkeley-compute"),
            operator=settings.operator,
            cluster=settings.cluster,
            gateway=self._gateway_url if settings.gateway_direct else "",
            fingerprint=self._gateway.fingerprint,
            nodes=self._infos(),
            prices=settings.prices,
            location=settings.location,
            leases=[link.LeaseRef(lease=lease, generation=generation) for lease, generation in self._held()],
        )

    async def on_welcome(self, fabric_id: str, welcome: link.Welcome) -> None:
        """Send on from what is durable there; what is over there is over here."""
        self._fabric_id = fabric_id
        self._nonce = (welcome.nonce.seq, welcome.nonce.value)
        self.token_key = welcome.token_key
        self._blobs.token = welcome.blob_token
        standing = {(ack.lease, ack.generation): ack.seq for ack in welcome.leases}
        for key in self._held():
            if key not in standing:
                await self._drop(key, Reason.OPERATOR_LOST)
        for key, seq in standing.items():
            await self._resume(key, seq)
        self._heartbeat(welcome.nonce.seq)
        self._stirred.set()

    async def on_message(self, message: Any) -> None:
        match message:
            case link.Nonce():
                self._nonce = (message.seq, message.value)
                self._heartbeat(message.seq)
            case link.Grant():
                self._take_nonce(message.nonce)
                self._grant(message)
            case link.Release():
                self._take_nonce(message.nonce)
                self._release(message)
            case link.Notice():
                self._give_notice(message)
            case link.Ack():
                await self._on_ack((message.lease, message.generation), message.seq)
            case link.RejectReceipt():
                _log.error("receipt rejected", lease=message.lease, seq=message.seq, reason=message.reason)
                await self._drop((message.lease, message.generation), Reason.INTERNAL_ERROR)
            case link.Work():
                self._works.begin(message)
            case link.Relay():
                self._relays.begin(message)
            case link.StopWork():
                self._works.stop_work(message.run, message.task, message.attempt)
            case link.Measure():
                self._begin_measuring(message.targets)
            case _:
                self._on_rest(message)

    def _on_rest(self, message: Any) -> None:
        match message:
            case link.Prove():
                self._prove(message)
            case link.Refuse():
                _log.warning("the control plane ends the connection", reason=message.reason)
            case _:
                _log.warning("a control plane does not send this", kind=message.kind)

    def on_lost(self) -> None:
        _log.warning("the control plane is gone; leases go on")

    def on_node(self, client: NodeClient, journal: str, start: int, leases: list[list[Any]]) -> int:
        """A node answered: tells which of its leases are open, and from where on its journal is wanted."""
        known = self._journals.get(client.name)
        if known is None or known[0] != journal:
            self._forget_journal(client.name)
            self._journals[client.name] = (journal, start)
            self._applied[client.name] = start
        self._lost.discard(client.name)
        there = set()
        for lease, generation, _, _ in leases:
            self._directory.opened(lease, generation, client.name)
            there.add((lease, generation))
            if reason := self._closed_meanwhile(lease, generation):
                client.close_lease(lease, generation, reason)
        for lease, entry in self._directory.on_node(client.name):
            if (lease, entry.generation) not in there and (lease, entry.generation) not in self._sealer.accounts:
                self._tell_ended(
                    lease, entry.generation, Reason.OPERATOR_LOST, "its node was restarted before it opened"
                )
        self._applied[client.name] = max(start, self._read_from(client.name))
        return self._applied[client.name]

    def _closed_meanwhile(self, lease: str, generation: int) -> str:
        """Why a lease that a node still has open is over here: the node was given up, or could not be told; or ""."""
        entry = self._directory.find(lease, generation)
        if entry is not None and entry.stage is Stage.OVER:
            return entry.reason
        account = self._sealer.accounts.get((lease, generation))
        return (account.meter.reason or "") if account is not None else ""

    def on_opened(self, lease: str, generation: int, node: str) -> None:
        self._directory.opened(lease, generation, node)
        self._link.send(link.Opened(lease=lease, generation=generation))

    def on_ended(self, lease: str, generation: int, reason: str, detail: str) -> None:
        """It never opened, or is not there; one that was open ends with its CLOSE receipt."""
        account = self._sealer.accounts.get((lease, generation))
        if account is None or account.finished:
            self._tell_ended(lease, generation, reason, detail)
        else:
            self._details[lease, generation] = detail

    def on_meter(self, node: str, offset: int, records: list[bytes]) -> None:
        self._applied[node] = self._sealer.apply(node, offset, records)
        self._stirred.set()

    def on_logs(self, run: str, lines: list[list[Any]]) -> None:
        self._logs.add(run, lines)

    def on_checkpoint(self, client: NodeClient, header: list[Any], body: bytes) -> None:
        """A node brings a piece or a manifest, or wants the newest checkpoint of a task."""
        kind, lease, generation, run, task, *number = header
        if kind == dialect.WANTED:
            fetching = asyncio.ensure_future(self._put_back(client, lease, generation, run, task))
            self._fetching.add(fetching)
            fetching.add_done_callback(self._fetching.discard)
            return

        def told(problem: str) -> None:
            client.answer([dialect.STORED, lease, generation, 0 if problem else number[0], problem])

        self._checkpoints.keep(lease, run, task, body, manifest=kind == dialect.CHECKPOINT, told=told)

    async def _put_back(self, client: NodeClient, lease: str, generation: int, run: str, task: int) -> None:
        """Piece after piece, one checkpoint of a lease at a time: no more is held here than the node has to take."""
        manifest, problem = None, ""
        async with self._checkpoints.alone(lease):
            try:
                manifest = await self._checkpoints.manifest(run, task)
                for digest in self._checkpoints.digests(manifest or b"\x90"):
                    piece = await self._checkpoints.piece(run, task, digest)
                    client.answer([dialect.PIECE, lease, generation, digest], piece)
                    await client.read()
            except (BlobError, ManifestError) as error:
                manifest, problem = None, str(error)
            header = [dialect.CHECKPOINT, lease, generation, run, task, manifest is not None, problem]
            client.answer(header, manifest or b"")

    def on_inventory(self) -> None:
        self._link.send(link.Inventory(nodes=self._infos()))

    def _own_gateway(self) -> tuple[str, int]:
        """Where this process reaches its own gateway."""
        host = self._settings.gateway_host
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), self._gateway_port  # noqa: S104 - looked up, not bound

    def on_proved(self, answer: dict[str, Any]) -> None:
        self._link.send(link.Proved.model_validate(answer, strict=False))

    def _restore(self) -> None:
        """Take up the accounts that an earlier process left."""
        for stored in self._outbox.leases():
            self._acked[stored.key] = stored.acked
            meter = LeaseMeter.from_state(stored.state)
            account = Account(stored.node, meter, stored.covered, seq=stored.seq, previous=stored.previous)
            account.finished = stored.closed is not None
            self._sealer.restore(account)
            if not account.finished:
                self._directory.add(*stored.key, stored.node)

    def _held(self) -> list[Key]:
        """Leases that are open, and those whose receipts are not all acknowledged."""
        unsent = [key for key, account in self._sealer.accounts.items() if self._acked.get(key, -1) < account.seq]
        return list({*unsent, *((lease, entry.generation) for lease, entry in self._directory.active())})

    def _infos(self) -> list[link.NodeInfo]:
        return [client.info for client in self._nodes.values() if client.info is not None]

    def _take_nonce(self, nonce: link.Nonce) -> None:
        if self._nonce is None or nonce.seq > self._nonce[0]:
            self._nonce = (nonce.seq, nonce.value)

    def _heartbeat(self, seq: int) -> None:
        said = [condition for client in self._nodes.values() if (condition := client.take_condition()) is not None]
        self._link.send(link.Heartbeat(nonce_seq=seq, lost_nodes=sorted(self._lost), conditions=said))

    def _grant(self, grant: link.Grant) -> None:
        client = self._nodes.get(grant.node)
        if client is None or not client.connected:
            detail = f"node {grant.node} is not connected"
            self._link.send(
                link.Ended(lease=grant.lease, generation=grant.generation, reason=Reason.OPERATOR_LOST, detail=detail)
            )
            return
        self._directory.add(grant.lease, grant.generation, grant.node)
        client.open_lease(grant, self._gang_addresses(grant))

    def _gang_addresses(self, grant: link.Grant) -> list[str]:
        """Where the node of each rank takes the gang's connections; empty for one that is lost."""
        nodes = grant.gang.nodes if grant.gang is not None else []
        return [client.gang_address if (client := self._nodes.get(name)) is not None else "" for name in nodes]

    def _release(self, release: link.Release) -> None:
        entry = self._directory.find(release.lease, release.generation)
        client = self._nodes.get(entry.node) if entry is not None else None
        if client is None:
            self._tell_ended(release.lease, release.generation, release.reason, "it is not open here")
            return
        client.close_lease(release.lease, release.generation, release.reason)

    def _give_notice(self, notice: link.Notice) -> None:
        """The node keeps the deadline from here on; a lease that is not here needs none."""
        entry = self._directory.find(notice.lease, notice.generation)
        client = self._nodes.get(entry.node) if entry is not None else None
        if client is not None:
            client.give_notice(notice.lease, notice.generation, notice.reason, notice.notice_ms)

    def _gang_environment(self, work: link.Work) -> dict[str, str]:
        """What a gang's rank finds in its environment; on nodes that isolate nothing, its peers are the nodes."""
        if work.gang is None:
            return {}
        infos = [client.info if (client := self._nodes.get(name)) else None for name in work.gang.nodes]
        addresses = [info.address if info is not None else "" for info in infos]
        return rank_environment(work, addresses, shared=self._settings.isolation == "none")

    def _prove(self, wish: link.Prove) -> None:
        client = self._nodes.get(wish.node)
        if client is None or not client.connected:
            detail = f"node {wish.node} is not connected"
            self._link.send(link.Proved(challenge=wish.challenge, step=wish.step, error=detail))
            return
        client.prove(wish)

    def _begin_measuring(self, targets: list[link.Target]) -> None:
        """Beside everything else; what an older wish has not measured by now is not measured."""
        if self._measuring is not None:
            self._measuring.cancel()
        self._measuring = asyncio.ensure_future(self._measure(targets))

    async def _measure(self, targets: list[link.Target]) -> None:
        urls = {target.place: target.gateway for target in targets}
        found = await round_trips_us({**urls, link.CONTROL: self._settings.url})
        self._link.send(link.Rtts(rtts=[link.Rtt(place=place, rtt_us=rtt_us) for place, rtt_us in found.items()]))

    def _tell_ended(self, lease: str, generation: int, reason: str, detail: str = "") -> None:
        self._directory.over(lease, generation, reason, detail)
        self._link.send(link.Ended(lease=lease, generation=generation, reason=str(reason), detail=detail))

    async def _resume(self, key: Key, seq: int) -> None:
        account = self._sealer.accounts.get(key)
        if account is None:
            if seq >= 0:
                self._tell_ended(*key, Reason.OPERATOR_LOST, "this agent has no receipts of it")
            elif (entry := self._directory.find(*key)) is not None and entry.stage == "open":
                self._link.send(link.Opened(lease=key[0], generation=key[1]))
            return
        if seq > account.seq:
            await self._drop(key, Reason.INTERNAL_ERROR)
            self._tell_ended(*key, Reason.INTERNAL_ERROR, "this agent has fewer receipts of it than were accepted")
            return
        await self._store_ack(key, seq)
        await self._send_unacknowledged(key)
        if account.finished:
            self._tell_ended(*key, account.meter.reason or Reason.INTERNAL_ERROR)

    async def _on_ack(self, key: Key, seq: int) -> None:
        """Progress, or, when it repeats itself, a request to send again from there."""
        account = self._sealer.accounts.get(key)
        if account is None:
            return
        if seq > self._acked.get(key, -1):
            await self._store_ack(key, seq)
        elif seq < account.seq:
            await self._send_unacknowledged(key)

    async def _store_ack(self, key: Key, seq: int) -> None:
        self._acked[key] = seq
        async with self._storing:
            await asyncio.to_thread(self._outbox.ack, key, seq)

    async def _send_unacknowledged(self, key: Key) -> None:
        async with self._storing:
            pending = await asyncio.to_thread(self._outbox.unacknowledged, key)
        self._send_receipts([data for _, data in pending])

    async def _drop(self, key: Key, reason: Reason) -> None:
        """The control plane is done with the lease: so are we."""
        entry = self._directory.find(*key)
        if entry is not None and (client := self._nodes.get(entry.node)) is not None:
            client.close_lease(*key, reason)
        self._directory.over(*key, reason, "the control plane ended the lease")
        account = self._sealer.accounts.get(key)
        if account is not None:
            account.finished = True
            self._acked[key] = account.seq
            async with self._storing:
                await asyncio.to_thread(self._outbox.give_up, key, str(reason))

    def _forget_journal(self, node: str) -> None:
        """The node has another journal than before: what it had open is lost."""
        self._sealer.abandon(node, Reason.OPERATOR_LOST)
        self._stirred.set()

    def _read_from(self, node: str) -> int:
        """Where to read a node's journal on: behind what is sealed, or behind what this process has applied."""
        accounts = [a for a in self._sealer.accounts.values() if a.node == node and not a.finished]
        return min([self._applied[node], *(account.applied for account in accounts)])

    async def _seal_forever(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            if self._nonce is not None and (self._link.connected or self._stopping):
                await self._seal(self._nonce)
            await asyncio.sleep(SEAL_S)
            if any(
                a.pending or a.seq < 0 or (a.meter.closed and not a.finished) for a in self._sealer.accounts.values()
            ):
                self._stirred.set()

    async def _seal(self, nonce: tuple[int, bytes]) -> None:
        now_ms = time.monotonic_ns() // 1_000_000
        sealed = [self._sealer.seal(account, self._fabric_id, nonce, now_ms) for account in self._sealer.due(now_ms)]
        if not sealed:
            return
        offsets = [
            (node, self._journals[node][0], self._sealer.low_water(node, self._applied[node]))
            for node in {each.node for each in sealed}
            if node in self._applied
        ]
        async with self._storing:
            await asyncio.to_thread(self._outbox.store, sealed, offsets)
        self._send_receipts([data for each in sealed for _, data in each.receipts])
        for each in sealed:
            self._after_store(each)
        for node, _, offset in offsets:
            if (client := self._nodes.get(node)) is not None:
                client.covered(offset)
        self._forget_finished()

    def _after_store(self, sealed: Sealed) -> None:
        if sealed.closed is not None:
            self._tell_ended(*sealed.key, sealed.closed, self._details.pop(sealed.key, ""))

    def _forget_finished(self) -> None:
        accounts = self._sealer.accounts
        over = [key for key, a in accounts.items() if a.finished and self._acked.get(key, -1) >= a.seq]
        for key in over:
            if accounts[key].covered <= self._applied.get(accounts[key].node, 0):
                del accounts[key]
                self._acked.pop(key, None)

    def _send_receipts(self, receipts: list[bytes]) -> None:
        part: list[bytes] = []
        size = 0
        for data in receipts:
            if part and size + len(data) > _MESSAGE_BYTES:
                self._link.send(link.Receipts(receipts=part))
                part, size = [], 0
            part.append(data)
            size += len(data)
        if part:
            self._link.send(link.Receipts(receipts=part))

    async def _watch_cluster(self) -> None:
        while True:
            await asyncio.sleep(CLUSTER_S)
            try:
                await self._look_at_cluster()
            except ClusterError as error:
                _log.warning("the cluster does not answer", error=str(error))

    async def _look_at_cluster(self) -> None:
        """Connect to new nodes, give up those that are gone."""
        sites = {site.node: site for site in await asyncio.to_thread(self._cluster.sites)}
        for name, site in sites.items():
            client = self._nodes.get(name)
            if client is None:
                self._nodes[name] = NodeClient(name, site.address, self._node_token, self)
            else:
                client.address = site.address
        now = asyncio.get_running_loop().time()
        for name, client in list(self._nodes.items()):
            silent = client.lost_at is not None and now - client.lost_at > LOST_S
            if name not in sites or silent:
                await self._give_up(name, client)

    async def _give_up(self, name: str, client: NodeClient) -> None:
        _log.error("node is lost", node=name)
        del self._nodes[name]
        await client.stop()
        self._lost.add(name)
        for lease, entry in self._directory.on_node(name):
            if (lease, entry.generation) not in self._sealer.accounts:
                self._tell_ended(lease, entry.generation, Reason.OPERATOR_LOST, f"node {name} is lost")
        self._sealer.abandon(name, Reason.OPERATOR_LOST)
        self._stirred.set()
        self.on_inventory()

    async def _first_answers(self) -> None:
        waits = [asyncio.ensure_future(client.wait_connected()) for client in self._nodes.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=FIRST_NODES_S)
            for wait in late:
                wait.cancel()

    async def _wait_closed(self) -> None:
        """Until every lease is over and what says so is sent, or the time for that is up."""
        deadline = asyncio.get_running_loop().time() + STOP_S
        while asyncio.get_running_loop().time() < deadline:
            if not self._directory.active() and self._link.idle:
                return
            await asyncio.sleep(SEAL_S)
