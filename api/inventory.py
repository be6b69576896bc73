"""What an agent says it has, written to the rows: its cluster, nodes, GPUs and prices. Says what is refused and why."""

import re
from random import SystemRandom

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from api.database import say
from api.distances import coordinates_of
from api.fleets import note_change
from api.plane import Plane
from api.rounds import challenge_soon
from api.signals import CAPACITY
from api.tables import ClusterRow, GpuRow, NodeRow, PriceRow
from api.terms import write_terms
from fabric.placement.request import TIERS
from fabric.wire.link import GpuInfo, Hello, NodeInfo
from fabric.wire.operator_orders import MAX_PRICE_DC
from ledger.leaves import gpu_id_hex

_log = structlog.get_logger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_PYTHON = re.compile(r"3\.(\d{1,2})")
_OLDEST_MINOR = 11


def problem_of(nodes: list[NodeInfo], *, allow_simulated: bool) -> str:
    """Why an inventory is refused as a whole; empty when it is fine."""
    for node in nodes:
        python = _PYTHON.fullmatch(node.python)
        if python is None or int(python[1]) < _OLDEST_MINOR:
            return f"node {node.node} runs Python {node.python}; 3.{_OLDEST_MINOR} or newer is needed"
        if not _NAME.fullmatch(node.node):
            return f"node name {node.node!r} has characters other than letters, digits, '_', '.' and '-'"
        if not allow_simulated and any(gpu.simulated for gpu in node.gpus):
            return "simulated GPUs are refused here; a control plane for tests sets FABRIC_ALLOW_SIMULATED"
        if any(not gpu.uuid or not 0 < gpu.memory_bytes < 2**60 for gpu in node.gpus):
            return f"node {node.node} has a GPU without UUID or with an impossible memory size"
    uuids = [gpu.uuid for node in nodes for gpu in node.gpus]
    if len(set(uuids)) != len(uuids):
        return "a GPU UUID stands twice in the inventory"
    names = [node.node for node in nodes]
    return "a node stands twice in the inventory" if len(set(names)) != len(names) else ""


def problem_of_hello(hello: Hello, *, allow_simulated: bool) -> str:
    """Why a hello's contents are refused; empty when they are fine."""
    if not _NAME.fullmatch(hello.cluster):
        return f"cluster name {hello.cluster!r} has characters other than letters, digits, '_', '.' and '-'"
    for model, tiers in hello.prices.items():
        for tier, price in tiers.items():
            if tier not in TIERS:
                return f"price of {model}: tier {tier!r} does not exist; there are {', '.join(TIERS)}"
            if not 1 <= price <= MAX_PRICE_DC:
                return f"price of {model} ({tier}) is {price} DC per GPU-hour; 1 to {MAX_PRICE_DC} is possible"
    try:
        if hello.location:
            coordinates_of(hello.location)
    except ValueError as error:
        return f"location: {error}"
    return problem_of(hello.nodes, allow_simulated=allow_simulated)


def write_prices(session: Session, cluster: str, prices: dict[str, dict[str, int]], now_ms: int) -> None:
    """The cluster's prices are these and no others; running leases keep theirs."""
    known = {
        (row.model, row.tier): row for row in session.scalars(select(PriceRow).where(col(PriceRow.cluster) == cluster))
    }
    wanted = {(model, tier): dc for model, tiers in prices.items() for tier, dc in tiers.items()}
    for (model, tier), dc in wanted.items():
        row = known.get((model, tier))
        if row is None or row.price_dc_per_gpu_hour != dc:
            row = row or PriceRow(cluster=cluster, model=model, tier=tier, price_dc_per_gpu_hour=dc, since_ms=now_ms)
            row.price_dc_per_gpu_hour, row.since_ms = dc, now_ms
            session.add(row)
    for key in known.keys() - wanted.keys():
        session.delete(known[key])
    session.flush()


def write_nodes(plane: Plane, session: Session, cluster: ClusterRow, nodes: list[NodeInfo]) -> list[str]:
    """The cluster's nodes and GPUs are these; returns what was refused: GPUs that are another operator's."""
    known = {row.name: row for row in session.scalars(select(NodeRow).where(col(NodeRow.cluster) == cluster.id))}
    for node in nodes:
        session.add(_node_row(known.pop(node.node, None), cluster.id, node))
    for gone in known.values():
        gone.present = False
        session.add(gone)
    session.flush()
    write_terms(session, cluster.id, nodes)
    refused = _write_gpus(plane, session, cluster, nodes)
    note_change(session, plane.now_ms(), cluster.id)
    say(session, CAPACITY)
    return refused


def write_lost(session: Session, now_ms: int, cluster: str, lost: list[str]) -> list[str]:
    """Nodes whose node actor is gone, all others are back; returns those that are newly lost."""
    newly: list[str] = []
    for row in session.scalars(select(NodeRow).where(col(NodeRow.cluster) == cluster)):
        if row.lost != (row.name in lost):
            row.lost = row.name in lost
            session.add(row)
            note_change(session, now_ms, cluster, [row.name])
            say(session, CAPACITY)
            newly += [row.name] if row.lost else []
    session.flush()
    return newly


def _node_row(row: NodeRow | None, cluster: str, node: NodeInfo) -> NodeRow:
    values = node.model_dump(exclude={"node", "gpus", "isolation", "capabilities"})
    if row is None:
        return NodeRow(cluster=cluster, name=node.node, present=True, lost=False, **values)
    for name, value in values.items():
        setattr(row, name, value)
    row.present, row.lost = True, False
    return row


def _write_gpus(plane: Plane, session: Session, cluster: ClusterRow, nodes: list[NodeInfo]) -> list[str]:
    mine = {row.uuid: row for row in session.scalars(select(GpuRow).where(col(GpuRow.cluster) == cluster.id))}
    refused: list[str] = []
    for node in nodes:
        for gpu in node.gpus:
            row = mine.pop(gpu.uuid, None) or session.get(GpuRow, gpu.uuid)
            if row is not None and row.operator != cluster.operator:
                _dispute(session, row, cluster.operator, plane.now_ms())
                refused.append(gpu.uuid)
            else:
                session.add(_gpu_row(row, plane.now_ms(), cluster, node.node, gpu))
    for gone in mine.values():
        gone.present = False
        session.add(gone)
    session.flush()
    return refused


def _dispute(session: Session, row: GpuRow, claimant: str, now_ms: int) -> None:
    _log.warning("GPU claimed by a second operator", gpu=row.id, operator=row.operator, claimant=claimant)
    if row.disputed_by != claimant:
        challenge_soon(session, now_ms, [row.operator, claimant], SystemRandom())
    row.disputed_by = claimant
    session.add(row)


def _gpu_row(row: GpuRow | None, now_ms: int, cluster: ClusterRow, node: str, gpu: GpuInfo) -> GpuRow:
    values = gpu.model_dump(exclude={"uuid"}) | {"cluster": cluster.id, "node": node, "present": True}
    if row is None:
        public = gpu_id_hex(gpu.uuid)
        return GpuRow(uuid=gpu.uuid, id=public, operator=cluster.operator, used_milli=0, first_seen_ms=now_ms, **values)
    for name, value in values.items():
        setattr(row, name, value)
    return row
