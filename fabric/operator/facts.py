"""Reads this machine for the checks: Ray's processes and sockets, GPUs, disk, clock, sandbox. Decides nothing."""

import os
import shutil
import stat
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil

from fabric.agent.nvml import Nvml
from fabric.operator.checks import RayFacts
from fabric.operator.listeners import Address, Listener, parse_listeners
from fabric.operator.processes import is_ray, label, own_processes

_TRIAL_S = 10
PYPI = "https://pypi.org/simple"
_HTTP_S = 5.0


def ray_facts(environ: os._Environ[str] | dict[str, str] = os.environ) -> RayFacts:
    """What `start_refusals` judges, read now; needs no running Ray."""
    return RayFacts(
        version=_ray_version(),
        auth_mode=environ.get("RAY_AUTH_MODE", ""),
        token_set=bool(environ.get("RAY_AUTH_TOKEN")),
        token_mode=file_mode(_token_path(environ)),
        listeners=tuple(ray_listeners()),
        addresses=tuple(host_addresses()),
    )


def ray_listeners() -> list[Listener]:
    """Listening TCP sockets of this user's Ray processes (all users' when root)."""
    owners = _socket_owners()
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            text = Path(table).read_text(encoding="ascii")
        except FileNotFoundError:  # a kernel without IPv6
            continue
        found.extend(listener for listener in parse_listeners(text, owners) if listener.process)
    return found


def host_addresses() -> list[Address]:
    """Every IPv4 and IPv6 address of this host's interfaces."""
    return [
        ip_address(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name in {"AF_INET", "AF_INET6"}
    ]


def file_mode(path: Path) -> int | None:
    """Permission bits of a file, None when it does not exist."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def gpus() -> tuple[list[str], str, str]:
    """Names of the GPUs that NVML shows, the driver's version, and why NVML did not answer (empty when it did)."""
    try:
        session = Nvml()
    except OSError as error:
        return [], "", str(error)
    try:
        found = session.inventory()
    finally:
        session.close()
    problems = [f"{gpu.uuid}: {gpu.problem}" for gpu in found if not gpu.healthy]
    return [gpu.name for gpu in found], found[0].driver if found else "", "; ".join(problems)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path`."""
    return shutil.disk_usage(path).free


def bubblewrap_problem() -> str:
    """What a trial sandbox with its own user, process and network namespaces says; empty when it runs."""
    program = shutil.which("bwrap")
    if program is None:
        return "bwrap is not installed"
    names = ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent")
    command = [
        program,
        *names,
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        sys.executable,
        "-I",
        "-c",
        "",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TRIAL_S} s"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}")


def has_tun() -> bool:
    """Whether this user may open `/dev/net/tun`."""
    return os.access("/dev/net/tun", os.R_OK | os.W_OK)


def packages_problem(index: str, folder: str) -> tuple[str, str]:
    """Where packages come from, and why nothing can be had from there; empty when it answers."""
    if not index and folder:
        return folder, "" if Path(folder).is_dir() else "there is no such folder"
    index = index or PYPI
    if index.startswith("file://"):
        return index, "" if Path(index.removeprefix("file://")).is_dir() else "there is no such folder"
    try:
        answer = httpx.get(index.rstrip("/") + "/pip/", timeout=_HTTP_S, follow_redirects=True)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return _bare(index), (str(error).replace(index, _bare(index)) or type(error).__name__)
    return _bare(index), ""


def _bare(index: str) -> str:
    """An address without the password that may stand in it."""
    scheme, _, rest = index.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def control_plane(url: str) -> tuple[str, int | None]:
    """Why the control plane does not answer (empty when it does), and this clock's skew against it in ms.

    The skew comes from the HTTP date, which has whole seconds: it is right to about a second.
    """
    try:
        answer = httpx.get(url.rstrip("/") + "/healthz", timeout=_HTTP_S, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return (str(error) or type(error).__name__), None
    date = answer.headers.get("date")
    if date is None:
        return "", None
    theirs_ms = int(parsedate_to_datetime(date).timestamp()) * 1000 + 500
    return "", time.time_ns() // 1_000_000 - theirs_ms


def _ray_version() -> str | None:
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return None


def _token_path(environ: os._Environ[str] | dict[str, str]) -> Path:
    return Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()


def _socket_owners() -> dict[int, str]:
    owners = {}
    for process in own_processes():
        if not is_ray(process):
            continue
        for inode in _socket_inodes(process.pid):
            owners[inode] = label(process)
    return owners


def _socket_inodes(pid: int) -> list[int]:
    inodes = []
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended, or is not ours to look into
        return []
    for entry in entries:
        try:
            target = entry.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.append(int(target[len("socket:[") : -1]))
    return inodes
