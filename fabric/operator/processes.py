"""Which processes of this user belong to Ray or to our agent, told by their command lines in `/proc`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_RAY_PARTS = (
    "/raylet/raylet",
    "gcs_server",
    "ray/dashboard/",
    "ray/_private/log_monitor.py",
    "ray/_private/runtime_env/agent/",
    "ray/_private/workers/",
    "ray/autoscaler/_private/monitor.py",
    "ray/autoscaler/v2/monitor.py",
    "ray.util.client.server",
)
_NAMES = {
    "ray.util.client.server": "Ray client",
    "monitor.py": "autoscaler",
    "main.py": "runtime env agent",
    "agent.py": "dashboard agent",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its id, its parent's, and its arguments."""

    pid: int
    arguments: tuple[str, ...]


def own_processes(user: int | None = None) -> Iterator[Process]:
    """Living processes of this user (of every user when root), without this one."""
    user = os.geteuid() if user is None else user
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if user not in (0, entry.stat().st_uid):
                continue
            raw = (entry / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if raw:
            yield Process(int(entry.name), tuple(raw.rstrip(b"\0").decode(errors="replace").split("\0")))


def is_ray(process: Process) -> bool:
    """Whether it is a part of Ray: GCS, raylet, monitor, agents, or a worker."""
    first = process.arguments[0]
    if first.startswith("ray::"):
        return True
    return any(part in argument for argument in process.arguments[:6] for part in _RAY_PARTS)


def is_agent(process: Process) -> bool:
    """Whether it is our agent or the keeper that restarts it."""
    arguments = process.arguments
    return any(
        flag == "-m" and (module == "fabric.agent" or module.startswith("fabric.operator.keeper"))
        for flag, module in pairwise(arguments)
    )


def label(process: Process) -> str:
    """A short name for people: `raylet`, `gcs_server`, `autoscaler`, `ray::…`."""
    for argument in process.arguments[:6]:
        if any(part in argument for part in _RAY_PARTS):
            name = argument.rsplit("/", 1)[-1]
            return _NAMES.get(name, name.removesuffix(".py"))
    return process.arguments[0].split(" ")[0]
