"""What each host passes to `ray start`, chosen by the host's own address, and what the head's agent is told. Pure."""

from collections.abc import Collection
from typing import Any

from fabric.operator.cluster_file import ClusterFile, ClusterFileError

PORTS = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "dashboard-agent-grpc-port": 6383,
    "dashboard-agent-listen-port": 6384,
    "metrics-export-port": 6385,
    "min-worker-port": 20000,
    "max-worker-port": 20999,
}
"""Fixed, so that a firewall can name them; with 6379 (GCS) and 10001 (Ray client) on the head they are all of Ray's."""

_OBJECT_STORE_BYTES = 200_000_000  # customers' bytes do not pass through Ray's object store


def own_address(cluster: ClusterFile, addresses: Collection[str]) -> str:
    """Which of the cluster's addresses is this host's.

    Raises:
        ClusterFileError: none is, or more than one.
    """
    mine = [address for address in cluster.addresses if address in addresses]
    if len(mine) != 1:
        raise ClusterFileError(
            f"this host has the addresses {', '.join(sorted(addresses))}; exactly one of them must be head_ip or in "
            f"worker_ips ({', '.join(cluster.addresses)}), {len(mine)} are"
        )
    return mine[0]


def node_arguments(cluster: ClusterFile, address: str) -> list[str]:
    """The arguments of `ray start` for the host at `address`, besides those of head or worker."""
    settings = cluster.settings_of(address)
    labels = {"fabric.dev/cluster": cluster.name, "fabric.dev/region": cluster.region, **settings.labels}
    optional = {"num-gpus": settings.num_gpus, "num-cpus": settings.num_cpus}
    return [
        f"--node-ip-address={address}",
        *(f"--{name}={port}" for name, port in PORTS.items()),
        *(f"--{name}={value}" for name, value in optional.items() if value is not None),
        f"--object-store-memory={settings.object_store_memory or _OBJECT_STORE_BYTES}",
        "--labels=" + ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]


def agent_config(cluster: ClusterFile, folder: str) -> dict[str, Any]:
    """The agent's configuration, as docs/protocol.md lists it; `folder` is the agent's own on the head."""
    host, port, direct = cluster.gateway
    return {
        "url": cluster.url,
        "operator": cluster.operator,
        "cluster": cluster.name,
        "region": cluster.region,
        "session_key_file": f"{folder}/session.key",
        "state_dir": f"{folder}/state",
        "ray_address": f"{cluster.head}:6379",
        "ray_allow": list(cluster.allow),
        "gateway_host": host,
        "gateway_port": port,
        "gateway_direct": direct,
        "isolation": cluster.isolation,
        "networks": list(cluster.networks),
        "private_networks": list(cluster.private_networks),
        "pip_index": cluster.packages.index,
        "pip_find_links": cluster.packages.find_links,
        "pip_hosts": list(cluster.packages.hosts),
        "env_cache_bytes": cluster.packages.cache_bytes,
        "prices": {model: dict(tiers) for model, tiers in cluster.prices.items()},
        "simulated_gpus": "",
    }
