"""Stops Ray: on this host, or from the head on every host of the cluster, and looks whether anything is left.

`ray down` runs `ray stop` on the head and nothing else: the workers' raylets linger for a minute and their log monitors
for ever. The `ray` of `host/bin` leads that `ray stop` here.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fabric.operator import keeper
from fabric.operator.cluster_file import ClusterFile
from fabric.operator.processes import Process, is_agent, is_ray, label, own_processes
from fabric.operator.ssh import run_on

_TRIES = 3
_STOP_S = 60
_SSH_S = 90


def stop_local(agent_folder: Path) -> list[str]:
    """End the agent and every Ray process of this user on this host; what is left, empty when nothing is."""
    keeper.stop(agent_folder)
    for _ in range(_TRIES):
        if not _ray_processes():
            return left_here()
        _ray_stop()
    for process in _ray_processes():
        _kill(process.pid)
    time.sleep(0.5)
    return left_here()


def left_here() -> list[str]:
    """Every process of Ray and of the agent that this user still has here."""
    return [
        f"{label(process)} (pid {process.pid})" for process in own_processes() if is_ray(process) or is_agent(process)
    ]


def stop_cluster(
    cluster: ClusterFile, agent_folder: Path, *, key: Path, gcs_folder: Path, state_file: Path
) -> list[str]:
    """From the head: end the agent and Ray here (its autoscaler first of all, or it restarts workers), then on every
    worker; forget the launcher's state and the GCS's. What is left, by host; empty when nothing is.
    """
    left = [f"{cluster.head}: {what}" for what in stop_local(agent_folder)]
    if not left:
        shutil.rmtree(gcs_folder, ignore_errors=True)
    with ThreadPoolExecutor(max_workers=16) as pool:
        for lines in pool.map(lambda worker: _stop_worker(cluster, worker, key), cluster.workers):
            left += lines
    state_file.unlink(missing_ok=True)
    return left


def _stop_worker(cluster: ClusterFile, address: str, key: Path) -> list[str]:
    done = run_on(address, cluster.ssh_user, key, "~/.fabric-operator/host/run stop-local", timeout_s=_SSH_S)
    if done.returncode == 0:
        return []
    said: Sequence[str] = (done.stdout + done.stderr).strip().splitlines() or ["no answer"]
    return [f"{address}: {line}" for line in said]


def _ray_processes() -> list[Process]:
    return [process for process in own_processes() if is_ray(process)]


def _ray_stop() -> None:
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "stop", "--grace-period", "15"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_STOP_S, check=False)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
