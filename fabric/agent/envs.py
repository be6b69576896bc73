"""The node's installed environments: each built once in a sandbox, kept by what it is made of, shared read-only.

An environment is never part of the node's own Python. What nobody uses is removed, the longest unused first, when all
together are larger than the operator gives them.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import sysconfig
import threading
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from fabric.agent.install import has_pip
from fabric.agent.sandbox import Bind, Child, ChildSpec, Isolation, Limits, SandboxError
from fabric.agent.sandbox.interpreter import needs, others
from fabric.agent.sandbox.proxy import Allowed, Proxy
from fabric.agent.sandbox.uids import fresh_uids
from fabric.wire.surroundings import HOSTS, NONE, EnvSpec, check_env

_log = structlog.get_logger(__name__)

PYPI = "https://pypi.org/simple"
LAST_LINES = 15
"""So many of the installer's last lines are the message of an installation that failed."""

_FILE_HOSTS = ("files.pythonhosted.org",)
_WATCH_S = 1.0
_LINE_BYTES = 500


class EnvError(Exception):
    """The environment cannot be installed; the message is the installer's last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvOptions:
    """The operator's settings.

    Attributes:
        index: where packages come from; "" for the node's own configuration of pip, and in a sandbox, which does not
            see that, for PyPI.
        find_links: a folder of wheels on the node; without `index` nothing else is looked at.
        hosts: beside the index's own, where its files lie.
        cache_bytes: all environments together; one alone may have half of it.
    """

    index: str = ""
    find_links: str = ""
    hosts: tuple[str, ...] = _FILE_HOSTS
    cache_bytes: int = 100 << 30


@dataclass(frozen=True, slots=True)
class Env:
    """One that is installed and held until `Envs.release`. `site` goes in front of `sys.path`."""

    digest: str
    site: Path
    interpreter: Path | None = None
    """Another one than the node's own, if that was asked for; `python` in the environment's `bin` is this one."""


class Envs:
    """Those of one node, below `root`."""

    def __init__(self, root: Path, isolation: Isolation, options: EnvOptions, sockets: Path) -> None:
        self._root = root
        self._isolation = isolation
        self._options = options
        self._sockets = sockets
        self._users: Counter[str] = Counter()
        self._building: dict[str, asyncio.Task[None]] = {}
        self._uids = fresh_uids()
        root.mkdir(parents=True, exist_ok=True, mode=0o755)
        for left_over in root.glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)

    @property
    def possible(self) -> bool:
        return has_pip()

    def digest(self, spec: EnvSpec) -> str:
        """What the environment is made of: requirements, Python, platform, and where packages come from."""
        python = spec.python or sysconfig.get_python_version()
        made_of = [spec.pip, python, sysconfig.get_platform(), self._options.index, self._options.find_links]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]

    async def get(self, spec: EnvSpec) -> Env:
        """The environment, installed now if it is not; two that ask at the same time wait for one installation.

        Raises:
            EnvError: it cannot be installed.
        """
        digest = self.digest(spec)
        self._users[digest] += 1
        try:
            if not (self._root / digest).is_dir():
                await self._built(digest, check_env(spec.python, spec.pip))
        except BaseException:
            self._drop(digest)
            raise
        os.utime(self._root / digest)
        return Env(digest, self._root / digest / "site", self._interpreter(spec))

    def _interpreter(self, spec: EnvSpec) -> Path | None:
        """Raises EnvError when this node does not have the Python that was asked for."""
        if spec.python in ("", sysconfig.get_python_version()):
            return None
        found = others().get(spec.python)
        if found is None:
            raise EnvError(f"this node has no Python {spec.python}")
        return found

    def release(self, env: Env) -> None:
        """It is not used any more by who got it."""
        self._drop(env.digest)

    async def stop(self) -> None:
        building = list(self._building.values())
        for task in building:
            task.cancel()
        await asyncio.gather(*building, return_exceptions=True)

    def _drop(self, digest: str) -> None:
        self._users[digest] -= 1
        if self._users[digest] <= 0:
            del self._users[digest]

    async def _built(self, digest: str, spec: EnvSpec) -> None:
        """Wait for its installation; who waits last takes it along when he goes."""
        task = self._building.get(digest)
        if task is None:
            task = asyncio.ensure_future(self._build(digest, spec))
            self._building[digest] = task
            task.add_done_callback(lambda _: self._building.pop(digest, None))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._users[digest] == 1:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            raise

    async def _build(self, digest: str, spec: EnvSpec) -> None:
        work = self._root / f".{digest}-{secrets.token_hex(4)}"
        try:
            interpreter = self._interpreter(spec)
            if spec.pip:
                await self._install(work, spec)
            else:
                _make(work, None)
            if interpreter is not None:
                _put_first(work / "site" / "bin", interpreter)
            size = await asyncio.to_thread(_settle, work)
            (work / "size").write_text(str(size))
            work.rename(self._root / digest)
            _log.info("environment installed", digest=digest, bytes=size, packages=len(spec.pip))
            await asyncio.to_thread(self._evict)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def _install(self, work: Path, spec: EnvSpec) -> None:
        boxed = self._isolation.name != NONE
        index = self._options.index or (PYPI if boxed and not self._options.find_links else "")
        proxy = self._proxy(index) if boxed and index.startswith("http") else None
        uid = next(self._uids) if boxed and os.geteuid() == 0 else None
        _make(work, uid)
        if proxy is not None:
            await proxy.start()
        try:
            child = await self._launch(self._spec(work, spec, index, proxy, uid))
            await self._watch(child, work)
        except SandboxError as error:
            raise EnvError(str(error)) from None
        finally:
            if proxy is not None:
                await proxy.stop()

    async def _launch(self, spec: ChildSpec) -> Child:
        """The installer; one that has begun to start when nobody waits any more is ended, not left behind."""
        launching = asyncio.ensure_future(asyncio.to_thread(self._isolation.launch, spec))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            await asyncio.wait([launching])
            if launching.exception() is None:
                await asyncio.to_thread(_end, launching.result())
            raise

    def _proxy(self, index: str) -> Proxy:
        """The way to the index, and to nothing else."""
        parts = urlsplit(index)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        hosts = (f"{parts.hostname}:{port}", *self._options.hosts)
        private = ("0.0.0.0/0", "::/0")  # an index in the operator's own network is the operator's choice
        allowed = Allowed(HOSTS, hosts, private)
        return Proxy(self._sockets / f"env-{secrets.token_hex(8)}", allowed)

    def _spec(self, work: Path, spec: EnvSpec, index: str, proxy: Proxy | None, uid: int | None) -> ChildSpec:
        binds, env = needs()
        binds = (*binds, Bind(work, writable=True))
        if proxy is not None:
            binds = (*binds, Bind(proxy.path))
        if self._options.find_links:
            binds = (*binds, Bind(Path(self._options.find_links)))
        own = sysconfig.get_python_version()
        job = {
            "target": str(work / "site"),
            "tmp": str(work / "tmp"),
            "requirements": spec.pip,
            "index": index,
            "find_links": self._options.find_links,
            "python": spec.python if spec.python != own else "",
            "proxy": str(proxy.path) if proxy is not None else "",
        }
        argv = (sys.executable, "-P", "-m", "fabric.agent.install", json.dumps(job))
        return ChildSpec(argv=argv, binds=binds, env=env, uid=uid, limits=Limits(processes=256))

    async def _watch(self, child: Child, work: Path) -> None:
        """Until the installer has ended; it is ended when it fills more than its part of the disk.

        Raises:
            EnvError: it failed.
        """
        lines: deque[str] = deque(maxlen=LAST_LINES)
        readers = [_collect(fd, lines) for fd in (child.stdout_fd, child.stderr_fd)]
        ended = asyncio.ensure_future(asyncio.to_thread(child.exit_code))
        try:
            while not (await asyncio.wait([ended], timeout=_WATCH_S))[0]:
                if await asyncio.to_thread(_size, work) > self._options.cache_bytes // 2:
                    lines.append(f"it needs more than {self._options.cache_bytes // 2} bytes of this node's disk")
                    child.kill()
            code = ended.result()
        finally:
            child.kill()
            await asyncio.wait([ended])
            for reader in readers:
                await asyncio.to_thread(reader.join)
            await asyncio.to_thread(child.close)
        if code != 0:
            raise EnvError(_without_credentials("\n".join(lines), self._options.index) or f"pip ended with {code}")

    def _evict(self) -> None:
        """Remove what was not used for longest until the rest fits."""
        kept = sorted((path for path in self._root.iterdir() if (path / "size").is_file()), key=_used)
        total = sum(_recorded(path) for path in kept)
        for path in kept:
            if total <= self._options.cache_bytes:
                return
            if not self._users[path.name]:
                total -= _recorded(path)
                doomed = path.rename(self._root / f".gone-{path.name}-{secrets.token_hex(4)}")
                shutil.rmtree(doomed, ignore_errors=True)
                _log.info("environment removed", digest=path.name)


def _end(child: Child) -> None:
    child.kill()
    child.exit_code()
    child.close()


def _put_first(folder: Path, interpreter: Path) -> None:
    """Programs of the environment that ask for `python` get this one."""
    folder.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(interpreter)


def _make(work: Path, uid: int | None) -> None:
    for folder in (work, work / "site", work / "tmp"):
        folder.mkdir(mode=0o755)
        if uid is not None:
            os.chown(folder, uid, uid)


def _settle(work: Path) -> int:
    """Make what was installed ours, readable by all and changeable by nobody; its size in bytes."""
    shutil.rmtree(work / "tmp", ignore_errors=True)
    size = 0
    for folder, folders, files in os.walk(work):
        for name in (".", *folders, *files):
            path = Path(folder) / name
            status = path.lstat()
            size += status.st_blocks * 512
            if os.geteuid() == 0:
                os.chown(path, 0, 0, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod((status.st_mode & 0o755) | (0o555 if path.is_dir() else 0o444))
    return size


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_blocks * 512
    return size


def _used(path: Path) -> float:
    return path.stat().st_mtime


def _recorded(path: Path) -> int:
    return int((path / "size").read_text())


def _collect(fd: int, lines: deque[str]) -> threading.Thread:
    """Read a pipe to its end in a thread, keeping the last lines."""

    def read() -> None:
        with open(fd, errors="replace", closefd=False) as pipe:
            for line in pipe:
                if line.strip():
                    lines.append(line.rstrip()[:_LINE_BYTES])

    thread = threading.Thread(target=read, name="env-output", daemon=True)
    thread.start()
    return thread


def _without_credentials(text: str, index: str) -> str:
    """The operator's password for its index is not the customer's to read."""
    parts: Any = urlsplit(index)
    for secret in filter(None, (parts.password, parts.username)):
        text = text.replace(secret, "****")
    return text
