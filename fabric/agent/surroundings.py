"""What a lease's child gets beside its GPUs: installed packages and a way to the network.

Decides nothing about tasks. Where the node isolates nothing, the network is the node's own and only packages are made.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.agent.envs import Env, Envs
from fabric.agent.pool import Needs
from fabric.agent.sandbox import Bind
from fabric.agent.sandbox.proxy import Allowed, Proxy
from fabric.wire.surroundings import HOSTS, NONE, OPEN, EnvSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the control plane granted of it. `hosts` belong to the network `hosts`."""

    env: EnvSpec | None = None
    network: str = NONE
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a node makes surroundings of.

    Attributes:
        envs: its installed environments.
        sockets: a folder of its own, for sockets.
        private: networks that are not public and that a listed host may lie in.
        boxed: whether children are isolated at all.
    """

    envs: Envs
    sockets: Path
    private: tuple[str, ...] = ()
    boxed: bool = True


class Surroundings:
    """One lease's: `connect`, then `install`, then children as often as needed, then `close`."""

    def __init__(self, wish: Wish, means: Means) -> None:
        self._wish = wish
        self._means = means
        self._env: Env | None = None
        self._proxy: Proxy | None = None

    @property
    def installs(self) -> bool:
        """Whether packages are wanted: that takes long, and is paid."""
        return self._wish.env is not None and bool(self._wish.env.pip)

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
        return replace(found, binds=tuple(map(Bind, seen))) if self._means.boxed else found

    async def close(self) -> None:
        """Let go of all; again changes nothing."""
        proxy, self._proxy = self._proxy, None
        env, self._env = self._env, None
        if proxy is not None:
            await proxy.stop()
        if env is not None:
            self._means.envs.release(env)
