"""The fleet as placement sees it, rebuilt from the rows, and a run request in placement's words.

Reads rows; decides nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row, select, tuple_
from sqlmodel import Session, col

from api.commitments import draining, keep_seats, last_stored, noticed
from api.lifecycle import NEAR_SILENT_MS
from api.schemas import RunRequest
from api.sold import Sold, sold_now
from api.standing import BOUND
from api.tables import ClusterRow, GpuRow, LeaseGpuRow, LeaseRow, NodeRow, OperatorRow, PriceRow, RunRow
from api.terms import NOBODY, accounts, read_terms
from api.terms_tables import NodeTermsRow
from api.verification_tables import StandingRow
from fabric.placement.fleet import Fleet, FleetError
from fabric.placement.grammar import parse_gpu
from fabric.placement.inventory import Assignment, Gpu, GpuShare, Held, Node
from fabric.placement.request import Request
from fabric.wire.machines import ACTIVE_LEASE_STATES
from fabric.wire.surroundings import NONE, network_of

_SEPARATOR = "/"
_PORTION = 400
_LEASE_COLUMNS = (
    col(LeaseRow.id),
    col(LeaseRow.cluster),
    col(LeaseRow.node),
    col(LeaseRow.run),
    col(LeaseRow.tier),
    col(LeaseRow.cpu_milli),
    col(LeaseRow.memory_bytes),
    col(LeaseRow.disk_bytes),
    col(LeaseRow.granted_ms),
    col(LeaseRow.startup_timeout_ms),
    col(LeaseRow.price_dc_per_gpu_hour),
    col(RunRow.budget_dc),
    col(RunRow.detached),
    col(RunRow.request),
)
_SHARE_COLUMNS = (col(LeaseGpuRow.lease), col(LeaseGpuRow.gpu), col(LeaseGpuRow.share_milli))
_GPU_COLUMNS = (
    col(GpuRow.uuid),
    col(GpuRow.cluster),
    col(GpuRow.node),
    col(GpuRow.vendor),
    col(GpuRow.model),
    col(GpuRow.memory_bytes),
    col(GpuRow.simulated),
    col(GpuRow.healthy),
    col(GpuRow.share_sizes_milli),
    col(StandingRow.level),
    col(StandingRow.strikes),
)


def node_key(cluster: str, node: str) -> str:
    """The name of a node in the fleet: unique across clusters."""
    return f"{cluster}{_SEPARATOR}{node}"


def split_node(key: str) -> tuple[str, str]:
    """(cluster id, node) of a fleet's node name."""
    operator, cluster, node = key.split(_SEPARATOR, 2)
    return f"{operator}{_SEPARATOR}{cluster}", node


def cluster_id(operator: str, cluster: str) -> str:
    """Operator and cluster names have no slash in them."""
    return f"{operator}{_SEPARATOR}{cluster}"


@dataclass(frozen=True, slots=True)
class Suppliers:
    """Who can be leased from: clusters by id with their operator, operators' reputations, and GPUs with sold slots."""

    clusters: dict[str, str]
    reputations: dict[str, int]
    sold: dict[str, Sold] = field(default_factory=dict)

    def changed(self, before: "Suppliers") -> set[str]:
        """Clusters that came or went, and those of operators whose reputation is another."""
        moved = {name for name, value in self.reputations.items() if before.reputations.get(name) != value}
        differ = set(self.clusters.items()) ^ set(before.clusters.items())
        resold = set(self.sold.items()) ^ set(before.sold.items())
        return (
            {cluster for cluster, _ in differ}
            | {sold.cluster for _, sold in resold}
            | {one for one, operator in self.clusters.items() if operator in moved}
        )


def suppliers(session: Session, now_ms: int, *, known: bool = False) -> Suppliers:
    """Whose agents are heard now; with `known` every known one's."""
    clusters = {row.id: row.operator for row in session.scalars(select(ClusterRow)) if known or _is_live(row, now_ms)}
    reputations = {row.id: row.reputation for row in session.scalars(select(OperatorRow))}
    return Suppliers(clusters, reputations, sold_now(session, now_ms))


def load(session: Session, now_ms: int, *, known: bool = False) -> Fleet:
    """Everything that can be leased now; with `known` also what would be if every known agent were connected."""
    fleet = Fleet()
    reload(session, fleet, suppliers(session, now_ms, known=known), None)
    return fleet


def reload(session: Session, fleet: Fleet, supply: Suppliers, keys: Collection[tuple[str, str]] | None) -> None:
    """Bring these nodes, (cluster, node) each, to what the rows say, with the leases on them; None for all.

    Raises:
        FleetError: a GPU has moved between nodes of which only one is named; load everything then.
    """
    names = None if keys is None else [node_key(*key) for key in sorted(keys) if node_key(*key) in fleet.nodes]
    for name in names or ():
        for held in fleet.leases_on(name):
            fleet.release(held.lease)
    prices, gpus, there = _prices(session, keys), _gpus(session, keys), set[str]()
    terms = read_terms(session, None if keys is None else {cluster for cluster, _ in keys})
    drained = draining(session)
    owners = accounts(session) if any(one.isolation == NONE for one in terms.values()) else {}
    for row in _nodes(session, keys):
        if (
            row.cluster in supply.clusters
            and row.present
            and not row.lost
            and not drained & {(row.cluster, row.name), (row.cluster, "")}
        ):
            operator = supply.clusters[row.cluster]
            offered = [
                _gpu(gpu, prices.get((row.cluster, gpu.model), {}), supply.sold.get(gpu.uuid))
                for gpu in gpus[row.cluster, row.name]
            ]
            level = _level(gpus[row.cluster, row.name])
            node = _node(row, operator, supply.reputations[operator], level, offered)
            fleet.upsert_node(_under(node, terms.get((row.cluster, row.name)), owners.get(operator, frozenset())))
            there.add(node_key(row.cluster, row.name))
    for name in names or ():
        if name not in there:
            fleet.remove_node(name)
    for held in _held(session, keys, there):
        _take(fleet, held)
    keep_seats(session, fleet, there)


def request_of(
    run: RunRequest,
    fleet: Fleet,
    *,
    exclude: Collection[str],
    allow_simulated: bool,
    rtt_ms: Mapping[str, float],
    account: str | None = None,
) -> Request:
    """The placement request of a run.

    Args:
        run: as the customer sent it.
        fleet: the nodes among which `exclude` names some.
        exclude: names of nodes as a lease shows them.
        allow_simulated: whether simulated GPUs may serve.
        rtt_ms: per cluster, from where the run wants to be near.
        account: whose run it is, for nodes that take their operator's own work only; None for anybody's.

    Raises:
        GrammarError: a GPU string that is not of the grammar; says which character.
        RequestError: constraints that contradict each other.
    """
    wanted: Any = set(run.gpu) if run.gpu_any else list(run.gpu)
    options: dict[str, Any] = {"gpu": parse_gpu(wanted)} if run.gpu else {}
    excluded = set(exclude)
    avoided = [key for key in fleet.nodes if key in excluded or split_node(key)[1] in excluded] if excluded else []
    return Request(
        **options,
        nodes=run.nodes,
        cpu_milli=run.cpu_milli,
        memory_bytes=run.memory_bytes,
        disk_bytes=run.disk_bytes,
        tier=run.tier,
        slot=run.slot,
        max_price_dc_per_gpu_hour=run.max_price_dc,
        region=frozenset(run.region),
        rtt_ms=rtt_ms,
        max_rtt_ms=run.max_rtt_ms,
        operators=frozenset(run.operators_allow),
        operators_denied=frozenset(run.operators_deny),
        min_reputation=run.min_reputation,
        min_verification=run.min_verification,
        interconnect=run.interconnect,
        objective=run.objective,
        python=run.python,
        needs=_needs(run),
        account=account if account is None or any(account in one.accounts for one in fleet.profiles) else "",
        exclude_nodes=frozenset(avoided),
        allow_simulated=allow_simulated,
    )


def _is_live(row: ClusterRow, now_ms: int) -> bool:
    return row.connected and now_ms - row.last_heard_ms < NEAR_SILENT_MS


def _parts(keys: Collection[tuple[str, str]] | None) -> list[list[tuple[str, str]] | None]:
    """Keys in portions that one statement takes."""
    if keys is None:
        return [None]
    ordered = sorted(keys)
    return [ordered[at : at + _PORTION] for at in range(0, len(ordered), _PORTION)]


def _nodes(session: Session, keys: Collection[tuple[str, str]] | None) -> Iterator[NodeRow]:
    for part in _parts(keys):
        query = select(NodeRow).order_by(col(NodeRow.cluster), col(NodeRow.name))
        if part is not None:
            query = query.where(tuple_(col(NodeRow.cluster), col(NodeRow.name)).in_(part))
        yield from session.scalars(query)


def _prices(session: Session, keys: Collection[tuple[str, str]] | None) -> dict[tuple[str, str], dict[Any, int]]:
    prices: defaultdict[tuple[str, str], dict[Any, int]] = defaultdict(dict)
    query = select(PriceRow)
    if keys is not None:
        query = query.where(col(PriceRow.cluster).in_({cluster for cluster, _ in keys}))
    for row in session.scalars(query):
        prices[row.cluster, row.model][row.tier] = row.price_dc_per_gpu_hour
    return prices


def _gpus(session: Session, keys: Collection[tuple[str, str]] | None) -> defaultdict[tuple[str, str], list[Row[Any]]]:
    """As plain rows: there may be a hundred thousand."""
    gpus: defaultdict[tuple[str, str], list[Row[Any]]] = defaultdict(list)
    for part in _parts(keys):
        query = select(*_GPU_COLUMNS).outerjoin(StandingRow, col(StandingRow.gpu) == col(GpuRow.uuid))
        query = query.where(col(GpuRow.present)).order_by(col(GpuRow.uuid))
        if part is not None:
            query = query.where(tuple_(col(GpuRow.cluster), col(GpuRow.node)).in_(part))
        for row in session.execute(query):
            gpus[row.cluster, row.node].append(row)
    return gpus


def _gpu(row: Row[Any], prices: dict[Any, int], sold: Sold | None) -> Gpu:
    """A GPU whose slot runs serves its holder alone, for nothing more: the slot is paid."""
    if sold is not None and sold.slot:
        prices = {"reserved": 0}
    return Gpu(
        uuid=row.uuid,
        model=row.model,
        memory_bytes=row.memory_bytes,
        prices_dc_per_gpu_hour=prices,
        vendor=row.vendor,
        shares_milli=tuple(size for size in row.share_sizes_milli if size < 1000),
        simulated=row.simulated,
        healthy=_leasable(row),
        slot="" if sold is None else sold.slot,
        ends_at_ms=None if sold is None else sold.ends_at_ms,
    )


def _leasable(row: Row[Any]) -> bool:
    """A GPU that failed its verification gets no new lease."""
    return row.healthy and (row.strikes or 0) < BOUND


def _level(gpus: list[Row[Any]]) -> int:
    """A node is verified as well as the least of the GPUs that it may be leased with."""
    return min((row.level or 0 for row in gpus if _leasable(row)), default=0)


def _node(row: NodeRow, operator: str, reputation: int, verification: int, gpus: list[Gpu]) -> Node:
    return Node(
        name=node_key(row.cluster, row.name),
        operator=operator,
        cluster=row.cluster,
        gpus=tuple(gpus),
        cpu_milli=row.cpu_milli,
        memory_bytes=row.memory_bytes,
        disk_bytes=row.disk_bytes,
        region=row.region,
        reputation=reputation,
        verification=verification,
        interconnects=frozenset(row.interconnects),
        pythons=frozenset({row.python}),
    )


def _under(node: Node, terms: NodeTermsRow | None, owners: frozenset[str]) -> Node:
    """The node under what its agent said of it: without isolation it takes its operator's own work only."""
    if terms is None:
        return node
    only = (owners or frozenset({NOBODY})) if terms.isolation == NONE else frozenset[str]()
    return replace(node, capabilities=frozenset(terms.capabilities), accounts=only)


def _needs(run: RunRequest) -> frozenset[str]:
    """What a node must be able to do beside having GPUs."""
    network, _ = network_of({"network": run.network})
    needs = {f"network:{network}"} if network != NONE else set[str]()
    if run.env is not None:
        needs |= {"env"} if run.env.pip else set()
        needs |= {f"python:{run.env.python}"} if run.env.python and run.env.python != run.python else set()
    return frozenset(needs)


def _held(session: Session, keys: Collection[tuple[str, str]] | None, there: set[str]) -> list[Held]:
    """Active leases on nodes that are there. As plain rows, as GPUs are."""
    shares: defaultdict[str, list[GpuShare]] = defaultdict(list)
    leases: list[Row[Any]] = []
    terms: dict[str, tuple[int | None, int]] = {}
    gangs: dict[str, str] = {}
    for part in _parts(keys):
        active = select(*_LEASE_COLUMNS).join(RunRow, col(RunRow.id) == col(LeaseRow.run))
        active = active.where(col(LeaseRow.state).in_([state.value for state in ACTIVE_LEASE_STATES]))
        if part is not None:
            active = active.where(tuple_(col(LeaseRow.cluster), col(LeaseRow.node)).in_(part))
        found = session.execute(active).all()
        leases += found
        for lease in found:
            terms[lease.id] = (lease.budget_dc, lease.request.get("timeout_ms", 0) if lease.detached else 0)
            if lease.request.get("nodes", 1) > 1:
                gangs[lease.id] = lease.run
        taken = select(*_SHARE_COLUMNS).where(col(LeaseGpuRow.active))
        if part is not None:
            taken = taken.where(col(LeaseGpuRow.lease).in_([lease.id for lease in found]))
        for name, gpu, share_milli in session.execute(taken) if found else ():
            shares[name].append(GpuShare(gpu, share_milli))
    leaving = noticed(session, [lease.id for lease in leases])
    stored = last_stored(session, [lease.run for lease in leases if lease.tier == "spot"])
    return [
        Held(
            lease.id,
            "on_demand" if lease.id in leaving else lease.tier,  # type: ignore[arg-type]
            (Assignment(key, tuple(shares[lease.id]), lease.cpu_milli, lease.memory_bytes, lease.disk_bytes),),
            max(lease.granted_ms, stored.get(lease.run, 0)),
            _until_ms(lease, sum(share.milli for share in shares[lease.id]), *terms[lease.id]),
            gangs.get(lease.id, ""),
        )
        for lease in leases
        if (key := node_key(lease.cluster, lease.node)) in there
    ]


def _until_ms(lease: Row[Any], milli: int, budget_dc: int | None, timeout_ms: int) -> int | None:
    """When the lease is over at the latest, by its run's budget or time limit; None when neither says."""
    ends: list[int] = []
    if budget_dc is not None:
        ends.append(lease.granted_ms + budget_dc * 3_600_000_000 // max(1, lease.price_dc_per_gpu_hour * milli))
    if timeout_ms:
        ends.append(lease.granted_ms + lease.startup_timeout_ms + timeout_ms)
    return min(ends, default=None)


def _take(fleet: Fleet, held: Held) -> None:
    """Book a lease; of one that its node no longer has room for, the GPUs that are still offered."""
    try:
        fleet.take(held)
    except FleetError:
        for part in held.assignments:
            rows = fleet.rows_of(part.node)
            left = tuple(share for share in part.gpus if (seat := fleet.seat(share.uuid)) and seat[0] in rows)
            if rows:
                fleet.take(replace(held, assignments=(Assignment(part.node, left, 0, 0, 0),), until_ms=None))
