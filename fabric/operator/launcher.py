"""Runs Ray's launcher for a folder, and waits until what it promised is true.

`ray up` ends with 0 as soon as the head is up, whatever became of the workers, and `ray down` always ends with 0. So
`bring_up` logs in everywhere first, and afterwards waits until every address is alive and the agent runs; `take_down`
asks each host whether anything is left.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fabric.operator.cluster_file import ClusterFile
from fabric.operator.folder import OperatorFolder
from fabric.operator.nodes import NodeState
from fabric.operator.ssh import run_on

_POLL_S = 2.0
_RUN = "~/.fabric-operator/host/run"


class LaunchError(RuntimeError):
    """The cluster is not as it should be; says which host lacks what."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """What the head says: its nodes, the addresses that are not alive, and the agent's process id."""

    nodes: tuple[NodeState, ...]
    missing: tuple[str, ...]
    agent: int | None

    @property
    def complete(self) -> bool:
        return not self.missing and self.agent is not None


def bring_up(folder: OperatorFolder, *, restart: bool, timeout_s: float) -> ClusterStatus:
    """`ray up`, then wait until every host is in the cluster and the agent runs.

    Without `restart` a head that answers is kept: new addresses are picked up, running leases are not disturbed.

    Raises:
        LaunchError: `ray up` failed, or after `timeout_s` hosts or the agent are missing; names them.
    """
    cluster = folder.cluster()
    keep = not restart and bool(read_status(cluster).nodes)
    if _ray(folder, ["up", "-y", "--no-config-cache", *(["--no-restart"] if keep else [])]) != 0:
        raise LaunchError("`ray up` failed; its output above says where")
    status = _wait_complete(cluster, timeout_s)
    if status.missing:
        raise LaunchError(
            f"not in the cluster after {timeout_s:.0f} s: {', '.join(status.missing)}; "
            f"`ray exec {folder.cluster_file} 'tail -n 50 /tmp/ray/session_latest/logs/monitor*'` says why"
        )
    if status.agent is None:
        raise LaunchError(f"the agent does not run; see ~/.fabric-operator/agent/agent.log on {cluster.head}")
    return status


def take_down(folder: OperatorFolder, *, notice_s: int | None = None) -> None:
    """`ray down`, which drains first, then ask every host what is left.

    With `notice_s` leases get that notice, else the one in `cluster.yaml`.

    Raises:
        LaunchError: processes are left somewhere, or a host did not answer; names them.
    """
    cluster = folder.cluster()
    if notice_s:
        _drain(cluster, notice_s)
    _ray(folder, ["down", "-y"])
    left = [line for address in cluster.addresses for line in _left_on(cluster, address)]
    if left:
        raise LaunchError("left behind: " + "; ".join(left))


def read_status(cluster: ClusterFile) -> ClusterStatus:
    """What the head says now; everything missing when it does not answer."""
    nodes = _on_head(cluster, "nodes")
    states = tuple(NodeState(**node) for node in json.loads(nodes.stdout)) if nodes.returncode == 0 else ()
    alive = {state.address for state in states if state.alive}
    agent = _on_head(cluster, "agent status").stdout.strip().removeprefix("agent ")
    return ClusterStatus(
        nodes=states,
        missing=tuple(address for address in cluster.addresses if address not in alive),
        agent=int(agent) if agent.isdecimal() else None,
    )


def _left_on(cluster: ClusterFile, address: str) -> list[str]:
    done = run_on(address, cluster.ssh_user, Path(cluster.ssh_key), f"{_RUN} left", timeout_s=60)
    if done.returncode == 0:
        return []
    return [f"{address}: {line}" for line in (done.stderr.strip().splitlines() or ["no answer"])]


def _drain(cluster: ClusterFile, notice_s: int) -> None:
    """On the head, where what undoes it at the next start is noted."""
    done = _on_head(cluster, f"drain {notice_s}", timeout_s=notice_s + 120)
    sys.stderr.write(done.stderr)


def _on_head(cluster: ClusterFile, command: str, *, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return run_on(cluster.head, cluster.ssh_user, Path(cluster.ssh_key), f"{_RUN} {command}", timeout_s=timeout_s)


def _ray(folder: OperatorFolder, arguments: list[str]) -> int:
    name, *options = arguments
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", name, *options, str(folder.cluster_file)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    quiet = {"RAY_UP_enable_autoscaler_v2": "0", "AUTOSCALER_NODE_START_WAIT_S": "60", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **quiet}


def _wait_complete(cluster: ClusterFile, timeout_s: float) -> ClusterStatus:
    deadline = time.monotonic() + timeout_s
    while True:
        status = read_status(cluster)
        if status.complete or time.monotonic() > deadline:
            return status
        time.sleep(_POLL_S)
