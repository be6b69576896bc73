"""Isolation by bubblewrap: own namespaces, a read-only file system of listed parts, seccomp, limits, no privileges.

As an ordinary user the sandbox is a user namespace. As root it is not: bubblewrap sets up as root, so that it may read
a Python below /root, and ``setpriv`` then becomes the lease's user for good, before the program starts. Either way the
program holds no capability, can gain none, and cannot make a user namespace.
"""

import json
import os
import platform
import resource
import select
import shutil
from pathlib import Path
from socket import socketpair
from typing import Self

from fabric.agent.sandbox import seccomp
from fabric.agent.sandbox.child import Child
from fabric.agent.sandbox.launcher import Ends, Launcher, ends
from fabric.agent.sandbox.spec import ChildSpec, SandboxError, environment
from fabric.agent.sandbox.tun import open_wire
from fabric.agent.sandbox.uids import fresh_uids

_UID_INSIDE = 65534
_SETUP_S = 20
_TO_BECOME_USER = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
_SYSTEM = ("/lib", "/lib64", "/bin", "/sbin")
_READABLE = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_FILES = {
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class Bubblewrap:
    """``isolation: bubblewrap``."""

    name = "bubblewrap"

    def __init__(self) -> None:
        self._launcher = Launcher()
        self._bwrap = _program("bwrap", "bubblewrap")
        self._setpriv = _program("setpriv", "util-linux")
        self._filter = seccomp.program(platform.machine())
        self._uids = fresh_uids()

    def launch(self, spec: ChildSpec) -> Child:
        return self._launcher.call(lambda: self._start(spec))

    def close(self) -> None:
        self._launcher.close()

    def _start(self, spec: ChildSpec) -> Child:
        uid = (spec.uid or next(self._uids)) if os.geteuid() == 0 else None
        with ends(uid) as made, _Setup() as setup:
            process = made.start(self._command(spec, made, setup, uid), env={}, inherit=setup.fds)
            setup.close_childs_ends()
            try:
                pid, pidfd, wire_fd = _let_in(spec, setup)
            except (SandboxError, OSError) as error:
                process.kill()
                process.wait()
                raise SandboxError(f"the sandbox did not start: {_said(made) or error}") from None
            return Child(
                pid=pid,
                pidfd=pidfd,
                socket=made.ours,
                stdout_fd=made.stdout_fd,
                stderr_fd=made.stderr_fd,
                wire_fd=wire_fd,
                process=process,
                launcher=self._launcher,
            )

    def _command(self, spec: ChildSpec, made: Ends, setup: "_Setup", uid: int | None) -> list[str]:
        system = [*_namespaces(as_root=uid is not None), *_files(spec), *_environment(spec)]
        system += setup.arguments(self._filter, _UID_INSIDE if uid is None else uid, spec.names)
        become = [] if uid is None else self._become(uid)
        return [self._bwrap, *system, "--", *become, *spec.argv, str(made.theirs.fileno())]

    def _become(self, uid: int) -> list[str]:
        dropped = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        return [self._setpriv, f"--reuid={uid}", f"--regid={uid}", *dropped, "--"]


class _Setup:
    """The descriptors through which bubblewrap is told what to do and tells how far it is."""

    def __init__(self) -> None:
        self._info_fd, self._info_write_fd = os.pipe()
        self._gate, self._gate_inside = socketpair()
        self._memory_fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_childs_ends()
        self._gate.close()
        os.close(self._info_fd)

    def arguments(self, filter_program: bytes, uid: int, names: tuple[tuple[str, str], ...]) -> list[str]:
        """The arguments that name the descriptors; makes those that carry contents."""
        account = f"root:x:0:0::/:/bin/false\nfabric:x:{uid}:{uid}::/tmp:/bin/sh\n"
        hosts = _FILES["/etc/hosts"] + "".join(f"{address} {name}\n" for address, name in names)
        files = {**_FILES, "/etc/hosts": hosts, "/etc/passwd": account, "/etc/group": f"root:x:0:\nfabric:x:{uid}:\n"}
        arguments = ["--info-fd", str(self._info_write_fd), "--block-fd", str(self._gate_inside.fileno())]
        for path, text in files.items():
            arguments += ["--perms", "0644", "--ro-bind-data", self._memory(text.encode()), path]
        return [*arguments, "--remount-ro", "/", "--seccomp", self._memory(filter_program)]

    @property
    def fds(self) -> tuple[int, ...]:
        """What bubblewrap must inherit."""
        return (self._info_write_fd, self._gate_inside.fileno(), *self._memory_fds)

    def close_childs_ends(self) -> None:
        if self._gate_inside.fileno() >= 0:
            self._gate_inside.close()
            for fd in (self._info_write_fd, *self._memory_fds):
                os.close(fd)

    def first_pid(self) -> int:
        """The pid of the sandbox's first process; bubblewrap writes it before it sets up the file system."""
        text = b""
        while not text.rstrip().endswith(b"}"):
            piece = os.read(self._info_fd, 4096) if _readable(self._info_fd) else b""
            if not piece:
                raise SandboxError("bubblewrap ended before it made the sandbox")
            text += piece
        return int(json.loads(text)["child-pid"])

    def open_gate(self) -> None:
        """Let the program start, and wait until everything before it has worked.

        Bubblewrap closes its end after it has read the byte; if it ends with the byte unread, the connection is reset.
        """
        self._gate.settimeout(_SETUP_S)
        self._gate.send(b"1")
        self._gate.recv(1)

    def _memory(self, contents: bytes) -> str:
        fd = os.memfd_create("sandbox", 0)
        self._memory_fds.append(fd)
        os.write(fd, contents)
        os.lseek(fd, 0, os.SEEK_SET)
        return str(fd)


def _let_in(spec: ChildSpec, setup: _Setup) -> tuple[int, int, int | None]:
    """Limit the sandbox's first process and let it go on to the program: (pid, pidfd, wire)."""
    pid = setup.first_pid()
    pidfd, wire_fd = os.pidfd_open(pid), None
    try:
        _limit(pid, spec)
        if spec.address:
            wire_fd = open_wire(pid, spec.address)
        setup.open_gate()
    except BaseException:
        os.close(pidfd)
        if wire_fd is not None:
            os.close(wire_fd)
        raise
    return pid, pidfd, wire_fd


def _namespaces(*, as_root: bool) -> list[str]:
    shared_by_both = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--unshare-net"]
    ours = [*shared_by_both, "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if as_root:
        return [*ours, *(part for name in _TO_BECOME_USER for part in ("--cap-add", name))]
    return ["--unshare-user", "--disable-userns", "--uid", str(_UID_INSIDE), "--gid", str(_UID_INSIDE), *ours]


def _files(spec: ChildSpec) -> list[str]:
    """The whole file system. Private folders come first, so that a bind below /tmp lies on top."""
    limits = spec.limits
    arguments = [*_private("/tmp", limits.tmp_bytes), "--ro-bind", "/usr", "/usr"]  # noqa: S108 - a fresh one
    for path in map(Path, _SYSTEM):
        arguments += ["--symlink", str(path.readlink()), str(path)] if path.is_symlink() else _try_bind(path)
    arguments += _folders([Path("/etc/_"), *(bind.path for bind in spec.binds)])
    for path in _READABLE:
        arguments += _try_bind(Path(path))
    for bind in spec.binds:
        arguments += ["--bind" if bind.writable else "--ro-bind", str(bind.path), str(bind.path)]
    arguments += ["--proc", "/proc", "--dev", "/dev", *_private("/dev/shm", limits.shm_bytes)]  # noqa: S108 - a fresh one
    for device in spec.devices:
        arguments += ["--dev-bind", str(device), str(device)]
    return [*arguments, "--remount-ro", "/dev", "--chdir", "/tmp"]  # noqa: S108


def _folders(paths: list[Path]) -> list[str]:
    """The folders above these paths, which anybody may pass: bubblewrap itself would make them for their owner only."""
    above = dict.fromkeys(str(parent) for path in paths for parent in reversed(path.parents) if str(parent) != "/")
    return [part for folder in above for part in ("--dir", folder)]


def _private(path: str, size_bytes: int) -> list[str]:
    return ["--perms", "1777", "--size", str(size_bytes), "--tmpfs", path]


def _try_bind(path: Path) -> list[str]:
    return ["--ro-bind-try", str(path), str(path)]


def _environment(spec: ChildSpec) -> list[str]:
    return [part for name, value in environment(spec).items() for part in ("--setenv", name, value)]


def _limit(pid: int, spec: ChildSpec) -> None:
    """Bound the first process before the program starts: all others inherit. Processes are counted inside only."""
    for which, bound in (
        (resource.RLIMIT_NPROC, spec.limits.processes),
        (resource.RLIMIT_NOFILE, spec.limits.open_files),
        (resource.RLIMIT_DATA, spec.limits.memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.prlimit(pid, which)
        limit = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.prlimit(pid, which, (limit, limit))
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")  # when the node runs out of memory, this goes first


def _said(made: Ends) -> str:
    """What bubblewrap wrote to its standard error before it ended."""
    os.set_blocking(made.stderr_fd, False)
    try:
        return os.read(made.stderr_fd, 4096).decode(errors="replace").strip()
    except BlockingIOError:
        return ""


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], _SETUP_S)[0])


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SandboxError(f"the program `{name}` is missing; install the package {package}")
    return found
