"""`fabric operator init`: from a join token and a wallet to a folder that `ray up` can use.

Order matters for a run that is cut off: the key is on disk before the token is spent, and what exists is not
overwritten, so that the same command finishes what it began.
"""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fabric.operator.checks import RAY_VERSION
from fabric.operator.cluster_file import parse_cluster
from fabric.operator.enrol import ControlPlane, operator_of
from fabric.operator.folder import OperatorFolder
from fabric.operator.template import fill_in, template_text
from fabric.operator.wallet import Signer
from fabric.wire.clock import Clock
from fabric.wire.delegation import Delegation, SignedDelegation
from fabric.wire.errors import InvalidRequest

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Site:
    """The operator's machines and terms, as `init` is told them. `prices` are USD per GPU-hour by model and tier;
    `nodes` the settings of hosts that do not simply offer every GPU; `venv` a Python environment that is on every host
    already; `index` a package index other than the default, `offline` none at all.
    """

    url: str
    cluster: str
    head: str
    workers: tuple[str, ...]
    region: str
    ssh_user: str
    ssh_key: str
    prices: Mapping[str, Mapping[str, str]]
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    venv: str = ""
    index: str = ""
    offline: bool = False


def enrol(folder: OperatorFolder, token: str, wallet: Signer, url: str, clock: Clock, *, days: int) -> Delegation:
    """Redeem the join token for the folder's session key; what is left to do again is safe to do again.

    Raises:
        fabric.Error: the control plane's refusal with its reason.
    """
    control_plane = ControlPlane(url)
    operator = operator_of(token)
    signed = _sign(control_plane, folder, operator, wallet, clock, days)
    control_plane.redeem(token, signed)
    folder.write_delegation(signed)
    return signed.delegation


def renew(folder: OperatorFolder, wallet: Signer, clock: Clock, *, days: int) -> Delegation:
    """A later expiry for the folder's key; the running agent need not be told.

    Raises:
        fabric.Error: the control plane's refusal with its reason.
    """
    cluster = folder.cluster()
    control_plane = ControlPlane(cluster.url)
    signed = _sign(control_plane, folder, cluster.operator, wallet, clock, days)
    control_plane.renew(signed)
    folder.write_delegation(signed)
    return signed.delegation


def _sign(
    control_plane: ControlPlane, folder: OperatorFolder, operator: str, wallet: Signer, clock: Clock, days: int
) -> SignedDelegation:
    now_ms, key = clock.now_ms(), folder.session_key()
    fabric_id = control_plane.fabric_id()
    delegation = Delegation(fabric_id, operator, bytes(key.verify_key), now_ms, now_ms + days * DAY_MS)
    proof = key.sign(delegation.proof_payload()).signature
    return SignedDelegation(delegation, wallet.sign(delegation.typed_data()), proof)


def write_cluster_file(folder: OperatorFolder, site: Site, operator: str) -> None:
    """Fill in `cluster.yaml`, unless there is one.

    Raises:
        ClusterFileError: a value that our commands would not read back, such as a price that is not positive.
        InvalidRequest: a value that has no place in the file.
    """
    if folder.cluster_file.exists():
        return
    values = {
        "cluster_name": site.cluster,
        "head_ip": site.head,
        "worker_ips": list(site.workers),
        "url": site.url,
        "operator": operator,
        "region": site.region,
        "prices": {model: dict(tiers) for model, tiers in site.prices.items()},
        "nodes": {address: dict(settings) for address, settings in site.nodes.items()},
        "ssh_user": site.ssh_user,
        "ssh_private_key": site.ssh_key,
        "folder": str(folder.path.resolve()),
        "install": install_arguments(site),
    }
    try:
        text = fill_in(template_text(), values)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    parse_cluster(yaml.safe_load(text))
    folder.cluster_file.write_text(text, encoding="utf-8")


def install_arguments(site: Site) -> str:
    """What `install.sh` is told: the versions of this machine, so that operator and hosts agree."""
    arguments = ["--ray", RAY_VERSION, "--fabric", metadata.version("berkeley-compute")]
    if site.venv:
        arguments += ["--venv", site.venv]
    else:
        arguments += ["--python", "python" + ".".join(platform.python_version_tuple()[:2])]
    if site.offline:
        arguments += ["--offline"]
    elif site.index:
        arguments += ["--index", site.index]
    return shlex.join(arguments)


def default_folder(cluster: str) -> Path:
    """Where `init` puts a cluster's files unless told otherwise."""
    return Path.home() / "fabric-operator" / cluster
