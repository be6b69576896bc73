"""Which nodes the cluster's Ray knows, asked on the head; and the launcher's state file, which must know them too."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node as Ray sees it: its address, whether it lives, and how many GPUs it offers to Ray."""

    address: str
    alive: bool
    gpus: int


def ray_nodes(address: str) -> list[NodeState]:
    """The nodes of the Ray cluster at `address` (host:port), dead ones included unless they came back.

    Raises:
        ConnectionError: no Ray answers there.
    """
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - a compiled module

    try:
        client = GcsClient(address=address)
        answer = client.get_all_node_info(timeout=10)
    except Exception as error:  # noqa: BLE001 - the bindings have many classes for what is one cause to us
        raise ConnectionError(f"no Ray answers at {address}: {error}") from None
    return latest_by_address([_node(info) for info in answer.values()])


def latest_by_address(states: list[NodeState]) -> list[NodeState]:
    """One state per address, alive when any is: a host that came back has an old node that is dead."""
    best: dict[str, NodeState] = {}
    for state in states:
        known = best.get(state.address)
        if known is None or (state.alive and not known.alive):
            best[state.address] = state
    return [best[address] for address in sorted(best)]


def register_nodes(bootstrap: Path) -> None:
    """Enter head and workers into the state file that the launcher's autoscaler on this head reads all the time.

    Nothing else enters the head where Ray runs, and a running autoscaler learns of new `worker_ips` no other way.
    """
    from ray.autoscaler._private.local.node_provider import LocalNodeProvider, record_local_head_state_if_needed

    config = json.loads(bootstrap.expanduser().read_text(encoding="utf-8"))
    record_local_head_state_if_needed(LocalNodeProvider(config["provider"], config["cluster_name"]))


def launcher_state_file(cluster_name: str) -> Path:
    """Where Ray's provider `local` keeps its state of this cluster."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / f"cluster-{cluster_name}.state"  # noqa: S108 - Ray's choice


def _node(info: Any) -> NodeState:
    return NodeState(info.node_manager_address, info.state == 0, int(info.resources_total.get("GPU", 0)))
