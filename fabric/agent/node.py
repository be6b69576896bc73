"""The node's process: opens leases on its GPUs, serves their customers, meters them, tells the agent.

A plain asyncio object; Ray only starts it and keeps it alive. It exchanges bytes with children and customers and
never unpickles. Restarted, it bills the leases it had up to the last thing its journal knows of them, and ends them.
"""

import asyncio
import hmac
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fabric.agent import dialect, events, probe
from fabric.agent.connection import Connection
from fabric.agent.envs import EnvOptions, Envs
from fabric.agent.events import Began, Closed, Held, LeaseEvent, Opened
from fabric.agent.examiner import Examiner
from fabric.agent.feed import Feed
from fabric.agent.hall import Hall
from fabric.agent.journal import Journal, JournalGone
from fabric.agent.lease import Lease
from fabric.agent.lease_spec import LeaseSpec
from fabric.agent.mesh import GangLine
from fabric.agent.meter import LeaseMeter
from fabric.agent.pool import Needs, Pool
from fabric.agent.recovery import recover
from fabric.agent.sandbox import Bubblewrap, ChildSpec, Isolation, Plain, SandboxError
from fabric.agent.sandbox.interpreter import needs, others
from fabric.agent.sandbox.tun import DEVICE
from fabric.agent.stream import FrameStream
from fabric.agent.surroundings import Means, Seat, Surroundings, Wish
from fabric.agent.worker import Worker
from fabric.wire import channel
from fabric.wire.clock import Clock
from fabric.wire.frames import Buffer, FrameError
from fabric.wire.reasons import Reason
from fabric.wire.surroundings import GANG, HOSTS, NONE, OPEN, EnvSpec

_log = structlog.get_logger(__name__)

TICK_S = 1.0
ORPHAN_S = 300.0
"""A node that hears no agent for so long ends its leases (DESIGN §7)."""
REMEMBERED = 1000
"""So many leases that are over are remembered, to tell customers why."""
PROBE_TICKS = 10
"""GPUs are looked at again every so many ticks."""

_LOG_UNSENT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What the agent tells a node when it starts it.

    Attributes:
        node: its name in the fabric; the same after a restart.
        address: where other machines reach it.
        state_dir: for its journal; on the node's own disk.
        listen: `unix:<path>`, or `tcp:<address>` for a free port there.
        token: what a connection must know.
        isolation: `none` or `bubblewrap`.
        simulated_gpus: offered where there are no real ones, for example `H100:2,L4:2`.
        warm_children: kept ready beside those in use.
        warm_modules: imported by a child before it is needed, for example `numpy`.
        networks: what runs may ask for beside `none`; without isolation they have the node's own network anyway.
        private_networks: not public, and listed hosts may lie in them all the same.
        envs: where packages come from and how much room they have.
    """

    node: str
    address: str
    region: str
    state_dir: Path
    listen: str
    token: str
    isolation: str = "none"
    simulated_gpus: str = ""
    warm_children: int = 1
    warm_modules: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    private_networks: tuple[str, ...] = ()
    envs: EnvOptions = EnvOptions()  # noqa: RUF009 - frozen


class Node:
    """`start`, then it serves until `stop`."""

    def __init__(self, config: NodeConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._control: FrameStream | None = None
        self._feed: Feed | None = None
        self._gang_address = ""
        self._gang_server: asyncio.Server | None = None
        self._over: dict[tuple[str, int], tuple[str, str]] = {}
        self._heard = asyncio.get_running_loop().time()
        self._background: set[asyncio.Task[Any]] = set()
        self._launching: set[asyncio.Task[Worker]] = set()
        self._workers: set[Worker] = set()
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._devices = probe.find_devices(config.simulated_gpus, config.node)
        self._isolation = _isolation(config.isolation)
        self._means = self._make_means()
        self._info = self._describe()
        self._pool = Pool(self._start_child, config.warm_children)
        self._examiner = Examiner(lambda answer: self._tell([dialect.PROVED, answer]))
        self._journal = Journal(config.state_dir / "journal")

    async def start(self) -> str:
        """Settle what an earlier process left open, then listen; returns the address to connect to."""
        recover(self._journal)
        self._journal.append(events.encode(Began(_boot_id())))
        self._server, address = await self._listen()
        await self._listen_for_gangs(address)
        self._hall = Hall(self._config.listen, self._config.token, self.serve)
        self._pool.fill()
        self._ticker = self._spawn(self._tick_forever())
        _log.info("node is up", node=self._config.node, address=address, gpus=len(self._info.gpus))
        return address

    async def stop(self, reason: Reason = Reason.OPERATOR_DRAIN) -> None:
        """End every lease, bill it, and stop."""
        self._ticker.cancel()
        self._server.close()
        if self._gang_server is not None:
            self._gang_server.close()
        self._hall.close()
        await asyncio.gather(*(lease.close(reason, "the operator stopped the node") for lease in self._all_leases()))
        await self._means.envs.stop()
        await self._examiner.stop()
        await self._pool.stop()
        await asyncio.gather(*self._launching, return_exceptions=True)
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*(worker.gone() for worker in self._workers))
        await asyncio.to_thread(self._journal.sync)
        if self._control is not None:
            self._control.close()
        if self._config.listen.startswith("unix:"):
            _socket_path(self._config).unlink(missing_ok=True)
        await asyncio.to_thread(self._isolation.close)
        self._journal.close()

    def record(self, event: LeaseEvent) -> None:
        self._journal.append(events.encode(event))
        if self._feed is not None:
            self._feed.notify(urgent=isinstance(event, (Opened, Closed)))

    def forward(self, header: list[Any], body: Buffer = b"") -> bool:
        if self._control is not None:
            self._control.send(header, body)
        return self._control is not None

    def forward_logs(self, run: str, lines: list[list[Any]]) -> None:
        if self._control is not None and self._control.unsent_bytes < _LOG_UNSENT_BYTES:
            self._control.send([dialect.LOGS, run, lines])

    def lease_over(self, lease: Lease) -> None:
        if self._leases.get(lease.spec.lease) is lease:
            del self._leases[lease.spec.lease]
        if lease.ended is not None:
            self._over[lease.spec.lease, lease.spec.generation] = lease.ended
            if lease.meter is not None and lease.ended[1]:
                self._tell([dialect.ENDED, lease.spec.lease, lease.spec.generation, *lease.ended])
        while len(self._over) > REMEMBERED:
            del self._over[next(iter(self._over))]

    def serve(self) -> FrameStream:
        """The protocol of a new connection; its first frame says what it is for."""
        return Connection(self).stream

    def take_control(self, stream: FrameStream, token: str) -> None:
        """A connection of the agent; an older one is closed.

        Raises:
            FrameError: it does not know the token.
        """
        self._check(token)
        if self._control is not None:
            self._control.close()
        self._control = stream
        self._heard = asyncio.get_running_loop().time()
        leases = [
            [lease.spec.lease, lease.spec.generation, lease.spec.session, lease.spec.run]
            for lease in self._leases.values()
            if lease.is_open
        ]
        stream.send(
            [
                dialect.NODE,
                {
                    "info": self._info.model_dump(),
                    "journal": self._journal.id,
                    "start": self._journal.start,
                    "end": self._journal.end,
                    "leases": leases,
                    "gang": self._gang_address,
                },
            ]
        )
        for lease in self._leases.values():
            lease.on_new_agent()

    def take_channel(self, stream: FrameStream, token: str, lease: str, generation: int) -> Lease | None:
        """A customer's connection, vouched for by the agent; None (and a CLOSED frame) when the lease is not open.

        Raises:
            FrameError: it does not know the token.
        """
        self._check(token)
        found = self._leases.get(lease)
        if found is None or found.spec.generation != generation or not found.is_open:
            why = self._over.get((lease, generation), (Reason.OPERATOR_LOST, "the lease is not open on this node"))
            stream.send([channel.CLOSED, *why])
            stream.close()
            return None
        found.attach(stream)
        return found

    def take_gang(self, stream: FrameStream, token: str, group: str, other: int, rank: int) -> GangLine | None:
        """A connection of another node's rank of a gang; None when no lease here is its peer, yet or any more.

        Raises:
            FrameError: it does not know the token.
        """
        self._check(token)
        for lease in self._leases.values():
            mesh = lease.mesh
            if mesh is not None and (mesh.group, mesh.rank) == (group, rank) and mesh.accept(other, stream):
                return GangLine(mesh, other)
        stream.close()
        return None

    def on_control(self, header: list[Any], body: Buffer = b"") -> None:
        """One frame of the agent."""
        self._heard = asyncio.get_running_loop().time()
        match header:
            case [dialect.OPEN, dict() as wish]:
                self._begin_open(wish)
            case [dialect.CLOSE, str() as lease, int() as generation, str() as reason]:
                self._begin_close(lease, generation, reason)
            case [dialect.NOTICE, str() as lease, int() as generation, str() as reason, int() as notice_ms]:
                self._give_notice(lease, generation, reason, notice_ms)
            case [dialect.STORED | dialect.PIECE | dialect.CHECKPOINT, str() as lease, int() as generation, *fields]:
                self._on_checkpoint(header[0], lease, generation, fields, body)
            case [dialect.METER, int() as offset]:
                self._begin_feed(offset)
            case [dialect.COVERED, int() as offset]:
                self._journal.drop_before(offset)
            case [dialect.PROVE, dict() as wish]:
                self._prove(wish)
            case _:
                raise FrameError(f"an agent does not send {header[0]!r}")

    def control_lost(self, stream: FrameStream) -> None:
        if self._control is stream:
            self._control = None
            if self._feed is not None:
                self._feed.stop()
            self._feed = None

    def _check(self, token: str) -> None:
        if not hmac.compare_digest(str(token), self._config.token):
            raise FrameError("a connection without this node's token")

    def _begin_feed(self, offset: int) -> None:
        if self._control is None:
            return
        if self._feed is not None:
            self._feed.stop()
        try:
            self._feed = Feed(self._journal, self._control, offset)
        except JournalGone:
            self._feed = Feed(self._journal, self._control, self._journal.start)

    def _prove(self, wish: dict[str, Any]) -> None:
        gpu = next((gpu for gpu in self._info.gpus if gpu.uuid == wish["gpu"]), None)
        busy = any(uuid == wish["gpu"] for lease in self._leases.values() for uuid, _ in lease.spec.gpus)
        self._examiner.ask(wish, gpu, busy=busy)

    def _begin_open(self, wish: dict[str, Any]) -> None:
        spec = self._spec(wish)
        present = self._leases.get(spec.lease)
        if present is not None and present.spec.generation == spec.generation:
            if present.is_open:
                self._tell([dialect.OPENED, spec.lease, spec.generation])
            return
        self._opening[spec.lease] = self._spawn(self._open(spec))

    async def _open(self, spec: LeaseSpec) -> None:
        refusal = self._refusal(spec)
        if refusal is not None:
            self._tell([dialect.ENDED, spec.lease, spec.generation, *refusal])
            return
        around = Surroundings(spec.wish, self._means)
        lease = Lease(spec, host=self, pool=self._pool, sensor=self._devices, clock=self._clock, around=around)
        lease.node_info = {
            "node": self._config.node,
            "python": self._info.python,
            "cloudpickle": self._info.cloudpickle,
        }
        self._leases[spec.lease] = lease
        try:
            if self._closing:
                await asyncio.wait(self._closing.values())  # the GPUs may still be those of a lease that ends
            await self._examiner.leave([uuid for uuid, _ in spec.gpus])
            await lease.open(self._environment(spec))
        except TimeoutError:
            await self._give_up(lease, Reason.STARTUP_TIMEOUT, "no child was ready within the startup timeout")
        except (OSError, SandboxError) as error:
            await self._give_up(lease, Reason.INTERNAL_ERROR, f"no child could be started: {error}")
        else:
            self._tell([dialect.OPENED, spec.lease, spec.generation])
        finally:
            self._opening.pop(spec.lease, None)

    async def _give_up(self, lease: Lease, reason: Reason, detail: str) -> None:
        await lease.close(reason, detail)
        self._tell([dialect.ENDED, lease.spec.lease, lease.spec.generation, str(reason), detail])

    def _refusal(self, spec: LeaseSpec) -> tuple[str, str] | None:
        """Why these GPUs cannot be given now: (reason, words); None when they can."""
        known = {gpu.uuid: gpu for gpu in self._info.gpus}
        for uuid, share in spec.gpus:
            gpu = known.get(uuid)
            if gpu is None:
                return str(Reason.GPU_UNHEALTHY), f"this node has no GPU {uuid}"
            if not gpu.healthy:
                return str(Reason.GPU_UNHEALTHY), gpu.problem
            if share not in gpu.share_sizes_milli:
                return str(
                    Reason.NO_CAPACITY
                ), f"GPU {uuid} is offered in shares of {gpu.share_sizes_milli}, not {share}"
            staying = (
                one.spec for one in self._leases.values() if (one.spec.lease, one.spec.generation) not in self._closing
            )
            taken = sum(milli for other in staying for held, milli in other.gpus if held == uuid)
            if taken + share > 1000:
                return str(Reason.NO_CAPACITY), f"GPU {uuid} is in use: {taken} of 1000 are taken"
        return None

    def _begin_close(self, lease: str, generation: int, reason: str) -> None:
        key = (lease, generation)
        if key not in self._closing:
            self._closing[key] = self._spawn(self._close(lease, generation, reason))
            self._closing[key].add_done_callback(lambda _: self._closing.pop(key))

    async def _close(self, lease: str, generation: int, reason: str) -> None:
        opening = self._opening.get(lease)
        found = self._leases.get(lease)
        if found is None or found.spec.generation != generation:
            self._tell([dialect.ENDED, lease, generation, reason, "it is not open on this node"])
            return
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        never_opened = found.meter is None
        await found.close(reason)
        if never_opened:
            self._tell([dialect.ENDED, lease, generation, reason, ""])

    def _on_checkpoint(self, kind: str, lease: str, generation: int, fields: list[Any], body: Buffer) -> None:
        found = self._leases.get(lease)
        if found is None or found.spec.generation != generation or not found.is_open:
            return
        if kind == dialect.STORED:
            found.on_stored(*fields)
        elif kind == dialect.PIECE:
            found.on_piece(fields[0], body)
        else:
            run, task, is_there, problem = fields
            found.on_checkpoint(run, task, is_there, problem, body)

    def _give_notice(self, lease: str, generation: int, reason: str, notice_ms: int) -> None:
        found = self._leases.get(lease)
        if found is not None and found.spec.generation == generation:
            found.give_notice(reason, notice_ms)

    def _spec(self, wish: dict[str, Any]) -> LeaseSpec:
        gpus = tuple((str(uuid), int(share)) for uuid, share in wish.pop("gpus"))
        wish["wish"] = _wish(wish)
        simulated = any(gpu.simulated for gpu in self._info.gpus if gpu.uuid in {uuid for uuid, _ in gpus})
        spec = LeaseSpec(**wish, gpus=gpus, simulated=simulated)
        if self._isolation.name == "none" or simulated:
            return spec
        known = {gpu.uuid for gpu in self._info.gpus}
        devices = self._devices.devices(tuple(uuid for uuid, _ in gpus if uuid in known))
        return LeaseSpec(**wish, gpus=gpus, simulated=simulated, devices=devices)

    @staticmethod
    def _environment(spec: LeaseSpec) -> dict[str, str]:
        visible = "" if spec.simulated else ",".join(uuid for uuid, _ in spec.gpus)
        threads = {"OMP_NUM_THREADS": str(max(1, spec.cpu_milli // 1000))} if spec.cpu_milli else {}
        return {"CUDA_VISIBLE_DEVICES": visible, **threads}

    async def _start_child(self, wanted: Needs) -> Worker:
        """A child that has begun to start; it is not left behind when nobody waits for it any more."""
        launching = asyncio.ensure_future(self._launch(wanted))
        self._launching.add(launching)
        launching.add_done_callback(self._launching.discard)
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            launching.add_done_callback(_kill_unwanted)
            raise

    async def _launch(self, wanted: Needs) -> Worker:
        binds, env = needs()
        argv = (sys.executable, "-P", "-m", "fabric.agent.child", *self._config.warm_modules)
        spec = ChildSpec(
            argv=argv,
            binds=(*binds, *wanted.binds),
            env=env,
            devices=wanted.devices,
            names=wanted.names,
            address=wanted.address,
        )
        worker = Worker(await asyncio.to_thread(self._isolation.launch, spec))
        self._workers.add(worker)
        await worker.start()
        return worker

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            await asyncio.sleep(TICK_S)
            number += 1
            for lease in self._all_leases():
                lease.tick()
            self._workers = {worker for worker in self._workers if worker.alive}
            await asyncio.to_thread(self._journal.sync)
            if self._journal.full:
                self._journal.rotate([events.encode(_held(lease.meter)) for lease in self._metered()])
            if number % PROBE_TICKS == 0:
                self._look_again()
                await self._tell_conditions()
            if self._control is not None:
                self._heard = loop.time()
            elif loop.time() - self._heard > ORPHAN_S:
                for lease in self._all_leases():
                    await lease.close(Reason.OPERATOR_LOST, "the operator's agent was lost")

    def _look_again(self) -> None:
        info = self._describe()
        if info != self._info:
            self._info = info
            self._tell([dialect.INVENTORY, info.model_dump()])

    async def _tell_conditions(self) -> None:
        conditions = await asyncio.to_thread(self._devices.conditions)
        if conditions:
            self._tell([dialect.CONDITION, [one.model_dump() for one in conditions]])

    def _describe(self) -> Any:
        config = self._config
        found = probe.describe(config.node, config.address, config.region, self._devices, config.state_dir)
        return found.model_copy(update={"isolation": self._isolation.name, "capabilities": self._capabilities()})

    def _capabilities(self) -> list[str]:
        """What runs may ask for here beside GPUs."""
        networks = (GANG, OPEN, HOSTS) if self._isolation.name == NONE else self._config.networks
        if self._isolation.name != NONE and not os.access(DEVICE, os.R_OK | os.W_OK):
            networks = tuple(network for network in networks if network != GANG)
        envs = ["env"] if self._means.envs.possible else []
        return [*(f"network:{network}" for network in networks), *envs, *(f"python:{minor}" for minor in others())]

    def _make_means(self) -> Means:
        config = self._config
        sockets = Path(tempfile.gettempdir()) / f"fabric-{os.getuid()}"
        _make_private(sockets)
        return Means(
            envs=Envs(config.state_dir / "envs", self._isolation, config.envs, sockets),
            sockets=sockets,
            private=config.private_networks,
            token=config.token,
            boxed=self._isolation.name != NONE,
        )

    def _metered(self) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.meter is not None and not lease.meter.closed]

    def _all_leases(self) -> list[Lease]:
        return list(self._leases.values())

    def _tell(self, header: list[Any]) -> None:
        if self._control is not None:
            self._control.send(header)

    async def _listen(self) -> tuple[asyncio.Server, str]:
        loop = asyncio.get_running_loop()
        kind, _, where = self._config.listen.partition(":")
        if kind == "unix":
            _make_room(_socket_path(self._config))
            return await loop.create_unix_server(self.serve, where), self._config.listen
        server = await loop.create_server(self.serve, where, 0, family=socket.AF_INET)
        return server, f"tcp:{where}:{server.sockets[0].getsockname()[1]}"

    async def _listen_for_gangs(self, address: str) -> None:
        """Where other nodes reach this one: where the agent does, unless that is a socket of this machine only."""
        if "network:gang" not in self._info.capabilities or self._isolation.name == NONE:
            return
        self._gang_address = address
        if address.startswith("unix:"):
            loop = asyncio.get_running_loop()
            self._gang_server = await loop.create_server(self.serve, self._config.address, 0, family=socket.AF_INET)
            port = self._gang_server.sockets[0].getsockname()[1]
            self._gang_address = f"tcp:{self._config.address}:{port}"

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the node failed", exc_info=task.exception())


def _kill_unwanted(launching: "asyncio.Task[Worker]") -> None:
    if not launching.cancelled() and launching.exception() is None:
        launching.result().kill()


def _held(meter: LeaseMeter | None) -> Held:
    assert meter is not None
    return Held(meter.lease, meter.generation, meter.last_ns, meter.to_state())


def _socket_path(config: NodeConfig) -> Path:
    return Path(config.listen.removeprefix("unix:"))


def _make_room(path: Path) -> None:
    """The folder of a socket, ours alone, without the socket of an earlier process.

    Raises:
        PermissionError: the folder is somebody else's, or open to others.
    """
    _make_private(path.parent)
    path.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Raises PermissionError when it is somebody else's, or open to others."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must belong to this user alone, with mode 0700")


def _wish(wish: dict[str, Any]) -> Wish:
    """Environment and network, out of what the agent wishes."""
    env, network, hosts = wish.pop("env", None), wish.pop("network", NONE), wish.pop("hosts", ())
    gang = wish.pop("gang", None)
    seat = Seat(str(gang["group"]), int(gang["rank"]), tuple(map(str, gang["peers"]))) if gang else None
    return Wish(env=EnvSpec(**env) if env else None, network=network, hosts=tuple(hosts), gang=seat)


def _isolation(name: str) -> Isolation:
    return Bubblewrap() if name == "bubblewrap" else Plain()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
