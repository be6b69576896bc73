"""What a lease's child gets beside its GPUs: installed packages and a way to the network.

Decides nothing about tasks. Where the node isolates nothing, the network is the node's own and only packages are made.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.agent.child import python_minor
from fabric.agent.envs import Env, Envs
from fabric.agent.mesh import Mesh, address_of
from fabric.agent.pool import Needs
from fabric.agent.sandbox import Bind
from fabric.agent.sandbox.interpreter import prefix_of
from fabric.agent.sandbox.proxy import Allowed, Proxy
from fabric.wire.surroundings import HOSTS, NONE, OPEN, EnvSpec


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in a gang: its name, the own rank, and where the nodes of all ranks take the gang's connections."""

    group: str
    rank: int
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the control plane granted of it. `hosts` belong to the network `hosts`."""

    env: EnvSpec | None = None
    network: str = NONE
    hosts: tuple[str, ...] = ()
    gang: Seat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a node makes surroundings of.

    Attributes:
        envs: its installed environments.
        sockets: a folder of its own, for sockets.
        private: networks that are not public and that a listed host may lie in.
        token: what nodes of this cluster know.
        boxed: whether children are isolated at all.
    """

    envs: Envs
    sockets: Path
    private: tuple[str, ...] = ()
    token: str = ""
    boxed: bool = True


class Surroundings:
    """One lease's: `connect`, then `install`, then children as often as needed, then `close`."""

    def __init__(self, wish: Wish, means: Means) -> None:
        self._wish = wish
        self._means = means
        self._env: Env | None = None
        self._proxy: Proxy | None = None
        self.mesh: Mesh | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the lease's children."""
        return self.mesh.environment if self.mesh is not None else {}

    @property
    def installs(self) -> bool:
        """Whether packages or another Python are wanted: that may take long, and is paid."""
        env = self._wish.env
        return env is not None and bool(env.pip or env.python not in ("", python_minor()))

    @property
    def site(self) -> str:
        return str(self._env.site) if self._env is not None else ""

    @property
    def way(self) -> str:
        """The socket of the way to the network; empty without one."""
        return str(self._proxy.path) if self._proxy is not None else ""

    async def connect(self) -> None:
        """Open the way to the network, if there is one.

        Raises:
            OSError: it cannot be opened.
        """
        seat = self._wish.gang
        if seat is not None and self._means.boxed:
            self.mesh = Mesh(seat.group, seat.rank, seat.peers, self._means.token)
        if self._wish.network not in (OPEN, HOSTS) or not self._means.boxed:
            return
        allowed = Allowed(self._wish.network, self._wish.hosts, self._means.private)
        proxy = Proxy(self._means.sockets / secrets.token_hex(12), allowed)
        await proxy.start()
        self._proxy = proxy

    async def install(self) -> None:
        """Get the packages, which may take minutes.

        Raises:
            EnvError: they cannot be installed.
        """
        if self._wish.env is not None and self.installs:
            self._env = await self._means.envs.get(self._wish.env)

    def needs(self, devices: Sequence[Path]) -> Needs:
        """What the lease's children must be started with."""
        seen = [Path(path) for path in (self.site, self.way) if path]
        found = Needs(devices=tuple(devices))
        if not self._means.boxed:
            return found
        if self.mesh is not None:
            found = replace(found, names=self.mesh.names, address=address_of(self.mesh.rank))
        interpreter = self._env.interpreter if self._env is not None else None
        more = prefix_of(interpreter) if interpreter is not None else ()
        return replace(found, binds=(*map(Bind, seen), *more))

    def attach(self, wire: int | None) -> None:
        """A child has started with this end of its wire."""
        if self.mesh is not None and wire is not None:
            self.mesh.attach(wire)

    def detach(self) -> None:
        """The child has ended."""
        if self.mesh is not None:
            self.mesh.detach()

    async def close(self) -> None:
        """Let go of all; again changes nothing."""
        proxy, self._proxy = self._proxy, None
        env, self._env = self._env, None
        mesh, self.mesh = self.mesh, None
        if mesh is not None:
            await mesh.close()
        if proxy is not None:
            await proxy.stop()
        if env is not None:
            self._means.envs.release(env)
