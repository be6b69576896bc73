"""`fabric operator selftest`: every machine's GPUs against the fabric's own challenge."""

import json
from pathlib import Path
from typing import Any

from fabric.operator.cluster_file import ClusterFile
from fabric.operator.ssh import run_on

_TIMEOUT_S = 900
_RUN = "~/.fabric-operator/host/run"


def examine_here(simulated: str = "") -> list[dict[str, Any]]:
    """This machine's GPUs; with `simulated`, such as `L4:2`, that many imagined ones, computed by the processor."""
    from fabric.agent.probe import SimulatedDevices, find_devices
    from fabric.agent.selftest import examine

    devices = SimulatedDevices(simulated, "selftest") if simulated else find_devices("", "selftest")
    return [one.to_json() for one in examine(devices.inventory(), devices.conditions())]


def examine_hosts(cluster: ClusterFile) -> dict[str, list[dict[str, Any]] | str]:
    """Every host's GPUs by its address; a text where the host did not answer."""
    return {address: _examine(cluster, address) for address in cluster.addresses}


def _examine(cluster: ClusterFile, address: str) -> list[dict[str, Any]] | str:
    key = Path(cluster.ssh_key)
    done = run_on(address, cluster.ssh_user, key, f"{_RUN} selftest", timeout_s=_TIMEOUT_S)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return json.loads(done.stdout)
