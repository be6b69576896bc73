"""The fleet as placement sees it, rebuilt from the rows, and a run request in placement's words.

Reads rows; decides nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from api.lifecycle import NEAR_SILENT_MS
from api.schemas import RunRequest
from api.tables import ClusterRow, GpuRow, LeaseGpuRow, LeaseRow, NodeRow, OperatorRow, PriceRow
from fabric.placement.fleet import Fleet, FleetError
from fabric.placement.grammar import parse_gpu
from fabric.placement.inventory import Assignment, Gpu, GpuShare, Held, Node
from fabric.placement.request import Request
from fabric.wire.machines import ACTIVE_LEASE_STATES

_SEPARATOR = "/"


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


def load(session: Session, now_ms: int, *, known: bool = False) -> Fleet:
    """Everything that can be leased now; with `known` also what would be if every known agent were connected."""
    clusters = {row.id: row for row in session.scalars(select(ClusterRow)) if known or _is_live(row, now_ms)}
    operators = {row.id: row for row in session.scalars(select(OperatorRow))}
    prices = _prices(session)
    gpus = _gpus(session)
    fleet = Fleet()
    for row in session.scalars(select(NodeRow).order_by(col(NodeRow.cluster), col(NodeRow.name))):
        if row.cluster in clusters and row.present and not row.lost:
            offered = [_gpu(gpu, prices.get((row.cluster, gpu.model), {})) for gpu in gpus[row.cluster, row.name]]
            fleet.upsert_node(_node(row, operators[clusters[row.cluster].operator], offered))
    for held in _held(session, fleet):
        _take(fleet, held)
    return fleet


def request_of(
    run: RunRequest, fleet: Fleet, *, exclude: Collection[str], allow_simulated: bool, rtt_ms: Mapping[str, float]
) -> Request:
    """The placement request of a run.

    Args:
        run: as the customer sent it.
        fleet: the nodes among which `exclude` names some.
        exclude: names of nodes as a lease shows them.
        allow_simulated: whether simulated GPUs may serve.
        rtt_ms: per cluster, from where the run wants to be near.

    Raises:
        GrammarError: a GPU string that is not of the grammar; says which character.
        RequestError: constraints that contradict each other.
    """
    wanted: Any = set(run.gpu) if run.gpu_any else list(run.gpu)
    options: dict[str, Any] = {"gpu": parse_gpu(wanted)} if run.gpu else {}
    excluded = set(exclude)
    return Request(
        **options,
        nodes=run.nodes,
        cpu_milli=run.cpu_milli,
        memory_bytes=run.memory_bytes,
        disk_bytes=run.disk_bytes,
        tier=run.tier,
        max_price_dc_per_gpu_hour=run.max_price_dc,
        region=frozenset(run.region),
        rtt_ms=rtt_ms,
        max_rtt_ms=run.max_rtt_ms,
        operators=frozenset(run.operators_allow),
        operators_denied=frozenset(run.operators_deny),
        min_reputation=run.min_reputation,
        objective=run.objective,
        python=run.python,
        exclude_nodes=frozenset(key for key in fleet.nodes if key in excluded or split_node(key)[1] in excluded),
        allow_simulated=allow_simulated,
    )


def _is_live(row: ClusterRow, now_ms: int) -> bool:
    return row.connected and now_ms - row.last_heard_ms < NEAR_SILENT_MS


def _prices(session: Session) -> dict[tuple[str, str], dict[Any, int]]:
    prices: defaultdict[tuple[str, str], dict[Any, int]] = defaultdict(dict)
    for row in session.scalars(select(PriceRow)):
        prices[row.cluster, row.model][row.tier] = row.price_dc_per_gpu_hour
    return prices


def _gpus(session: Session) -> defaultdict[tuple[str, str], list[GpuRow]]:
    gpus: defaultdict[tuple[str, str], list[GpuRow]] = defaultdict(list)
    for row in session.scalars(select(GpuRow).where(col(GpuRow.present)).order_by(col(GpuRow.uuid))):
        gpus[row.cluster, row.node].append(row)
    return gpus


def _gpu(row: GpuRow, prices: dict[Any, int]) -> Gpu:
    return Gpu(
        uuid=row.uuid,
        model=row.model,
        memory_bytes=row.memory_bytes,
        prices_dc_per_gpu_hour=prices,
        vendor=row.vendor,
        shares_milli=tuple(size for size in row.share_sizes_milli if size < 1000),
        simulated=row.simulated,
        healthy=row.healthy,
    )


def _node(row: NodeRow, operator: OperatorRow, gpus: list[Gpu]) -> Node:
    return Node(
        name=node_key(row.cluster, row.name),
        operator=operator.id,
        cluster=row.cluster,
        gpus=tuple(gpus),
        cpu_milli=row.cpu_milli,
        memory_bytes=row.memory_bytes,
        disk_bytes=row.disk_bytes,
        region=row.region,
        reputation=operator.reputation,
        pythons=frozenset({row.python}),
    )


def _held(session: Session, fleet: Fleet) -> list[Held]:
    """Active leases on nodes of the fleet."""
    shares: defaultdict[str, list[GpuShare]] = defaultdict(list)
    for row in session.scalars(select(LeaseGpuRow).where(col(LeaseGpuRow.active))):
        shares[row.lease].append(GpuShare(row.gpu, row.share_milli))
    active = select(LeaseRow).where(col(LeaseRow.state).in_([state.value for state in ACTIVE_LEASE_STATES]))
    return [
        Held(
            lease.id,
            lease.tier,  # type: ignore[arg-type]
            (Assignment(key, tuple(shares[lease.id]), lease.cpu_milli, lease.memory_bytes, lease.disk_bytes),),
            lease.granted_ms,
        )
        for lease in session.scalars(active)
        if (key := node_key(lease.cluster, lease.node)) in fleet.nodes
    ]


def _take(fleet: Fleet, held: Held) -> None:
    """Book a lease; of one that its node no longer has room for, the GPUs that are still offered."""
    try:
        fleet.take(held)
    except FleetError:
        for part in held.assignments:
            rows = fleet.rows_of(part.node)
            left = tuple(share for share in part.gpus if (seat := fleet.seat(share.uuid)) and seat[0] in rows)
            fleet.take(Held(held.lease, held.tier, (Assignment(part.node, left, 0, 0, 0),), held.safe_ms))
