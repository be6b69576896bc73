"""`cluster.yaml` as our commands read it: the launcher's addresses and account, and the `provider.fabric` section.

Ray checks its own keys; this checks what is ours and says which key is wrong and what would be right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from fabric.placement.grammar import GrammarError, parse_size
from fabric.wire.amounts import usd_to_dc_down
from fabric.wire.operator_orders import MAX_NOTICE_S

TIERS = ("spot", "on_demand", "reserved")
ISOLATIONS = ("bubblewrap", "none")
_FABRIC_KEYS = {"url", "operator", "region", "isolation", "gateway", "prices", "allow", "nodes"}
_FABRIC_KEYS |= {"networks", "private_networks", "packages", "notice_s"}
NETWORKS = ("gang", "hosts", "open")
_PACKAGE_KEYS = {"index", "find_links", "hosts", "cache"}
_NODE_KEYS = {"num_gpus", "num_cpus", "object_store_memory", "labels"}


class ClusterFileError(ValueError):
    """`cluster.yaml` is not usable; says which key, what it holds, and what it may hold."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What one host offers. None leaves the choice to Ray: every GPU NVML shows, every core."""

    num_gpus: int | None = None
    num_cpus: int | None = None
    object_store_memory: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packages:
    """Where runs' packages come from; an empty `index` is PyPI. `cache_bytes` is their room on each host."""

    index: str = ""
    find_links: str = ""
    hosts: tuple[str, ...] = ("files.pythonhosted.org",)
    cache_bytes: int = 100 << 30


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """One operator's cluster. `prices` are DC per GPU-hour by model and tier; `gateway` is (host, port, whether
    customers may reach it directly). `notice_s` is what leases get before `ray down` stops the hosts.
    """

    name: str
    head: str
    workers: tuple[str, ...]
    ssh_user: str
    ssh_key: str
    url: str
    operator: str
    region: str
    isolation: str
    gateway: tuple[str, int, bool]
    prices: Mapping[str, Mapping[str, int]]
    allow: tuple[str, ...]
    nodes: Mapping[str, NodeSettings]
    networks: tuple[str, ...] = ("gang",)
    private_networks: tuple[str, ...] = ()
    packages: Packages = Packages()
    notice_s: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """The head's address, then the workers'."""
        return (self.head, *self.workers)

    def settings_of(self, address: str) -> NodeSettings:
        return self.nodes.get(address, NodeSettings())


def read_cluster_file(path: Path) -> ClusterFile:
    """The cluster in the file at `path`.

    Raises:
        ClusterFileError: no such file, not YAML, or a key of ours that is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterFileError(f"{path} does not exist; `fabric operator init` writes it") from None
    except yaml.YAMLError as error:
        raise ClusterFileError(f"{path} is not YAML: {error}") from None
    return parse_cluster(document)


def parse_cluster(document: Any) -> ClusterFile:
    """The cluster in a parsed `cluster.yaml`.

    Raises:
        ClusterFileError: a key that our commands need is missing or wrong.
    """
    name = _text(_mapping(document, "cluster.yaml").get("cluster_name"), "cluster_name")
    provider = _mapping(document.get("provider"), "provider")
    auth = _mapping(document.get("auth"), "auth")
    ours = _mapping(provider.get("fabric"), "provider.fabric")
    _only(ours, _FABRIC_KEYS, "provider.fabric")
    head = _address(provider.get("head_ip"), "provider.head_ip")
    workers = tuple(
        _address(ip, "provider.worker_ips") for ip in _list(provider.get("worker_ips"), "provider.worker_ips")
    )
    if len({head, *workers}) != len(workers) + 1:
        raise ClusterFileError("provider.head_ip and worker_ips name one address twice; each host stands there once")
    return ClusterFile(
        name=name,
        head=head,
        workers=workers,
        ssh_user=_text(auth.get("ssh_user"), "auth.ssh_user"),
        ssh_key=_text(auth.get("ssh_private_key"), "auth.ssh_private_key"),
        url=_text(ours.get("url"), "provider.fabric.url"),
        operator=_text(ours.get("operator"), "provider.fabric.operator"),
        region=_text(ours.get("region"), "provider.fabric.region"),
        isolation=_one_of(ours.get("isolation", "bubblewrap"), ISOLATIONS, "provider.fabric.isolation"),
        gateway=_gateway(ours.get("gateway", {}), head),
        prices=parse_prices(ours.get("prices")),
        allow=tuple(_network(entry) for entry in _list(ours.get("allow", []), "provider.fabric.allow")),
        nodes=_nodes(ours.get("nodes") or {}, {head, *workers}),
        networks=tuple(
            _one_of(one, NETWORKS, "provider.fabric.networks")
            for one in _list(ours.get("networks", ["gang"]), "provider.fabric.networks")
        ),
        private_networks=tuple(
            _network(entry) for entry in _list(ours.get("private_networks", []), "provider.fabric.private_networks")
        ),
        packages=_packages(ours.get("packages") or {}),
        notice_s=_notice(ours.get("notice_s", 0)),
    )


def parse_prices(prices: Any) -> dict[str, dict[str, int]]:
    """DC per GPU-hour from USD per GPU-hour, by model and tier.

    Raises:
        ClusterFileError: no price, an unknown tier, or a price that is not positive in whole DC.
    """
    by_model = _mapping(prices, "provider.fabric.prices")
    if not by_model:
        raise ClusterFileError("provider.fabric.prices is empty; a GPU without a price is not offered")
    return {
        _text(model, "a model in provider.fabric.prices"): {
            _one_of(tier, TIERS, f"prices.{model}"): _price(usd, f"prices.{model}.{tier}")
            for tier, usd in _mapping(tiers, f"provider.fabric.prices.{model}").items()
        }
        for model, tiers in by_model.items()
    }


def _price(usd: Any, where: str) -> int:
    if not isinstance(usd, int | float | str | Decimal):
        raise ClusterFileError(f'{where} is {usd!r}; give USD per GPU-hour, such as "2.49"')
    try:
        dc = usd_to_dc_down(usd)
    except ValueError as error:
        raise ClusterFileError(f"{where}: {error}") from None
    if dc <= 0:
        raise ClusterFileError(f"{where} is {usd}; a price is at least USD 0.00001 per GPU-hour")
    return dc


def _nodes(nodes: Any, known: set[str]) -> dict[str, NodeSettings]:
    found = {}
    for address, settings in _mapping(nodes, "provider.fabric.nodes").items():
        where = f"provider.fabric.nodes.{address}"
        if address not in known:
            raise ClusterFileError(f"{where} is neither head_ip nor in worker_ips")
        members = _mapping(settings, where)
        _only(members, _NODE_KEYS, where)
        numbers = {key: _count(members.get(key), f"{where}.{key}") for key in _NODE_KEYS - {"labels"}}
        labels = _mapping(members.get("labels", {}), f"{where}.labels")
        found[address] = NodeSettings(**numbers, labels={str(k): str(v) for k, v in labels.items()})
    if all(address in found and found[address].num_gpus == 0 for address in known):
        raise ClusterFileError("provider.fabric.nodes gives every host num_gpus: 0; one at least must offer a GPU")
    return found


def _packages(packages: Any) -> Packages:
    where = "provider.fabric.packages"
    members = _mapping(packages, where)
    _only(members, _PACKAGE_KEYS, where)
    index, folder = str(members.get("index", "")), str(members.get("find_links", ""))
    if index and not index.startswith(("https://", "http://", "file://")):
        raise ClusterFileError(f"{where}.index is {index!r}; give an address such as https://pypi.org/simple")
    if folder and not folder.startswith("/"):
        raise ClusterFileError(f"{where}.find_links is {folder!r}; give the absolute path of a folder on every host")
    hosts = tuple(map(str, _list(members.get("hosts", list(Packages().hosts)), f"{where}.hosts")))
    try:
        cache_bytes = parse_size(members.get("cache", "100GB"))
    except GrammarError as error:
        raise ClusterFileError(f"{where}.cache: {error}") from None
    return Packages(index, folder, hosts, cache_bytes)


def _gateway(gateway: Any, head: str) -> tuple[str, int, bool]:
    members = _mapping(gateway, "provider.fabric.gateway")
    _only(members, {"host", "port", "direct"}, "provider.fabric.gateway")
    port = _count(members.get("port", 8970), "provider.fabric.gateway.port")
    if port is None or port > 65535:
        raise ClusterFileError(f"provider.fabric.gateway.port is {port}; a TCP port is 1 to 65535, or 0 for any")
    direct = members.get("direct", True)
    if not isinstance(direct, bool):
        raise ClusterFileError(f"provider.fabric.gateway.direct is {_seen(direct)}; true, or false for the relay alone")
    return str(members.get("host", head)), port, direct


def _notice(value: Any) -> int:
    seconds = _count(value, "provider.fabric.notice_s") or 0
    if seconds > MAX_NOTICE_S:
        raise ClusterFileError(f"provider.fabric.notice_s is {seconds}; at most {MAX_NOTICE_S}, which is a week")
    return seconds


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ClusterFileError(f"{where} is {_seen(value)}; it must be a mapping")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ClusterFileError(f"{where} is {_seen(value)}; it must be a list")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or value.startswith("@"):
        raise ClusterFileError(f"{where} is {_seen(value)}; `fabric operator init` fills it in")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise ClusterFileError(f"{where} is {_seen(value)}; it is one of {', '.join(allowed)}")
    return value


def _count(value: Any, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ClusterFileError(f"{where} is {_seen(value)}; it is a whole number, 0 or more")
    return value


def _address(value: Any, where: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ClusterFileError(f"{where} holds {_seen(value)}; give IP addresses, quoted") from None


def _network(value: Any) -> str:
    try:
        return str(ip_network(value, strict=False))
    except ValueError:
        raise ClusterFileError(f"provider.fabric.allow holds {_seen(value)}; give addresses or networks") from None


def _only(members: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(members) - known)
    if unknown:
        raise ClusterFileError(f"{where} has the unknown key {unknown[0]}; known: {', '.join(sorted(known))}")


def _seen(value: Any) -> str:
    return "missing" if value is None else repr(value)
