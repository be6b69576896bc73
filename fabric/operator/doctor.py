"""The doctor: examines one host, or from the operator's own machine the folder, every host and the control plane."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fabric.operator import checks, facts
from fabric.operator.cluster_file import ClusterFile
from fabric.operator.findings import Finding, bad, warning
from fabric.operator.folder import OperatorFolder
from fabric.operator.ssh import login_problem, run_on

_HOST_S = 60


def examine_host(cluster: ClusterFile, folder: Path) -> list[Finding]:
    """This host's findings. `folder` is where the disk is measured."""
    mine = {str(address) for address in facts.host_addresses()} & set(cluster.addresses)
    expected = next((cluster.settings_of(address).num_gpus for address in mine), None)
    ray = facts.ray_facts()
    problem, skew_ms = facts.control_plane(cluster.url)
    return [
        checks.check_gpus(*facts.gpus(), expected=expected),
        checks.check_ray_version(ray.version),
        checks.check_token(ray),
        checks.check_ray_ports(ray, cluster.allow),
        checks.check_disk(str(folder), facts.free_bytes(folder)),
        checks.check_clock(skew_ms),
        checks.check_sandbox(facts.bubblewrap_problem(), tun=facts.has_tun()),
        checks.check_packages(*facts.packages_problem(cluster.packages.index, cluster.packages.find_links)),
        checks.check_control_plane(cluster.url, problem),
    ]


def examine_folder(folder: OperatorFolder) -> list[Finding]:
    """The operator's own machine: keys, delegation and the control plane."""
    cluster = folder.cluster()
    problem, skew_ms = facts.control_plane(cluster.url)
    return [
        checks.check_secret_modes({path.name: facts.file_mode(path) for path in folder.secrets()}),
        checks.check_delegation(folder.delegation().expires_ms, time.time_ns() // 1_000_000),
        checks.check_control_plane(cluster.url, problem),
        checks.check_clock(skew_ms),
    ]


def examine_hosts(cluster: ClusterFile) -> list[Finding]:
    """Every host, by ssh: can one log in, and what does it say about itself."""
    return _each(cluster, lambda address: _examine_by_ssh(cluster, address))


def examine_logins(cluster: ClusterFile) -> list[Finding]:
    """Only whether one can log in at every host: what must be good before `ray up`."""
    key = Path(cluster.ssh_key)
    return _each(cluster, lambda address: [checks.check_ssh(address, login_problem(address, cluster.ssh_user, key))])


def _each(cluster: ClusterFile, examine: Callable[[str], list[Finding]]) -> list[Finding]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        return [finding for findings in pool.map(examine, cluster.addresses) for finding in findings]


def _examine_by_ssh(cluster: ClusterFile, address: str) -> list[Finding]:
    key = Path(cluster.ssh_key)
    login = checks.check_ssh(address, login_problem(address, cluster.ssh_user, key))
    if login.mend:
        return [login]
    done = run_on(
        address,
        cluster.ssh_user,
        key,
        "test -x ~/.fabric-operator/host/run || exit 127; ~/.fabric-operator/host/run doctor",
        timeout_s=_HOST_S,
    )
    if done.returncode == 127:
        said = "nothing of ours is installed there yet"
        return [login, warning("host", said, "run `fabric operator up`, then the doctor again").at(address)]
    try:
        return [login, *(Finding.from_json(members).at(address) for members in json.loads(done.stdout))]
    except (ValueError, TypeError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [
            login,
            bad("host", f"the doctor did not run there: {said}", "run `fabric operator up` again").at(address),
        ]
