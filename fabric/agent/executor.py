"""Ray as the cluster: one long-lived actor per node that hosts our `Node`. The only module that imports ray.

Ray forms the cluster, starts and restarts the actors and tells of dead nodes. No task of a customer goes through it.
"""

import asyncio
import hashlib
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
import structlog
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fabric.agent.cluster import ClusterError, Site
from fabric.agent.envs import EnvOptions
from fabric.agent.node import Node, NodeConfig
from fabric.agent.settings import AgentSettings
from fabric.operator.checks import check_ray_ports
from fabric.operator.facts import ray_facts
from fabric.operator.findings import Verdict
from fabric.wire.clock import SystemClock

_log = structlog.get_logger(__name__)

OLDEST_RAY = (2, 52)
"""The first one with token authentication."""
NAMESPACE = "fabric"
START_S = 60.0
ANSWER_S = 5.0


class NodeActor:
    """Hosts a `Node` on a thread that lives as long as the process, so that children die with it and only with it."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._started = threading.Event()
        self._address = ""
        self._problem: BaseException | None = None
        threading.Thread(target=self._host, name="fabric-node", daemon=True).start()
        if not self._started.wait(START_S) or self._problem is not None:
            raise RuntimeError(f"the node did not start: {self._problem or 'it took too long'}")

    def address(self) -> str:
        return self._address

    def stop(self) -> None:
        """End its leases and children; the process stays until Ray ends it."""
        asyncio.run_coroutine_threadsafe(self._node.stop(), self._loop).result(START_S)

    def _host(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the thread's outermost frame; Ray restarts the process
            self._problem = error
            if self._started.is_set():
                os._exit(1)
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = Node(self._config, SystemClock())
        self._address = await self._node.start()
        self._started.set()
        await asyncio.Event().wait()


class RayCluster:
    """The cluster at `settings.ray_address`. `token` is what connections to its nodes must know."""

    def __init__(self, settings: AgentSettings, token: str) -> None:
        self._settings = settings
        self._token = token
        self._actors: dict[str, Any] = {}
        self._addresses: dict[str, str] = {}

    def connect(self) -> None:
        """Join as a driver.

        Raises:
            ClusterError: Ray is too old, token authentication is off, strangers reach its ports, or nothing answers.
        """
        check_ray(ray.__version__, os.environ.get("RAY_AUTH_MODE", ""))
        if self._settings.ray_allow is not None:
            _check_ports(self._settings.ray_allow)
        host = self._settings.ray_address.rpartition(":")[0]
        here: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
        try:
            ray.init(
                address=self._settings.ray_address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                **here,
            )
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray cluster at {self._settings.ray_address}: {error}") from None
        self._here = ray.util.get_node_ip_address()

    def sites(self) -> list[Site]:
        """Raises ClusterError when Ray does not answer."""
        try:
            alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
        except (RayError, RuntimeError, ConnectionError) as error:
            raise ClusterError(f"Ray does not answer: {error}") from None
        found = [self._site(node) for node in alive]
        return [site for site in found if site is not None]

    def stop(self) -> None:
        """End all node actors."""
        for actor in self._actors.values():
            try:
                ray.get(actor.stop.remote(), timeout=ANSWER_S)
            except RayError as error:
                _log.info("node actor did not stop by itself", error=str(error).splitlines()[0])
            ray.kill(actor, no_restart=True)
        ray.shutdown()

    def _site(self, node: dict[str, Any]) -> Site | None:
        """The node's process, started if it is not there; None while it does not answer."""
        name = f"{self._settings.cluster}-{node['NodeManagerAddress']}"
        identity = node["NodeID"]
        try:
            if identity not in self._actors:
                self._actors[identity] = self._start(name, node)
                self._addresses.pop(identity, None)
            patience_s = ANSWER_S if identity in self._addresses else START_S
            address = str(ray.get(self._actors[identity].address.remote(), timeout=patience_s))
        except RayError as error:
            _log.warning("node actor does not answer", node=name, error=str(error).splitlines()[0])
            if isinstance(error, ActorDiedError):
                del self._actors[identity]
            known = self._addresses.get(identity)
            return Site(name, known) if known is not None else None
        self._addresses[identity] = address
        return Site(name, address)

    def _start(self, name: str, node: dict[str, Any]) -> Any:
        actor = ray.remote(NodeActor)
        return actor.options(
            name=f"node-{node['NodeID'][:16]}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            num_gpus=int(node["Resources"]["GPU"]),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(self._config(name, node["NodeManagerAddress"]))

    def _config(self, name: str, address: str) -> NodeConfig:
        settings = self._settings
        state_dir = settings.state_dir.absolute() / "nodes" / name
        listen = f"unix:{_socket_path(state_dir)}" if address == self._here else f"tcp:{address}"
        return NodeConfig(
            node=name,
            address=address,
            region=settings.region,
            state_dir=state_dir,
            listen=listen,
            token=self._token,
            isolation=settings.isolation,
            simulated_gpus=settings.simulated_gpus,
            warm_children=settings.warm_children,
            warm_modules=settings.warm_modules,
            networks=settings.networks,
            private_networks=settings.private_networks,
            envs=EnvOptions(
                index=settings.pip_index,
                find_links=settings.pip_find_links,
                hosts=settings.pip_hosts,
                cache_bytes=settings.env_cache_bytes,
            ),
        )


def check_ray(ray_version: str, auth_mode: str) -> None:
    """Refuse a Ray that strangers could command.

    Raises:
        ClusterError: too old, or token authentication is off; says how to mend it.
    """
    parts = tuple(int(part) for part in ray_version.split(".")[:2])
    if parts < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise ClusterError(f"Ray {ray_version} has no token authentication; install Ray {oldest} or newer")
    if auth_mode != "token":
        raise ClusterError(
            "Ray's token authentication is off: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH for the cluster and for"
            " the agent, then restart both"
        )


def _check_ports(allow: tuple[str, ...]) -> None:
    finding = check_ray_ports(ray_facts(), allow)
    if finding.verdict is Verdict.BAD:
        raise ClusterError(f"{finding.detail}; {finding.mend}")


def _socket_path(state_dir: Path) -> Path:
    """A path that is short enough for a unix socket, in a folder that is only ours."""
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fabric-{os.getuid()}" / f"{name}.sock"
