"""Runs on several nodes: one lease per node, granted together; an attempt is one task per rank, and ends as a whole.

The control plane carries a gang's work, attached or not: it sends every rank its task once all leases are open. When
one rank fails or a lease is lost, the others are stopped; a retry keeps the leases that are still good and gets new
ones for the missing ranks only. Here is what the rows say, in the caller's transaction; what follows is
`api.transitions`'.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from api.database import say
from api.gang_tables import GangMemberRow
from api.schemas import RunRequest
from api.signals import cluster_topic
from api.tables import AttemptRow, LeaseRow, RunRow
from api.terms import read_terms
from fabric.wire import link
from fabric.wire.errors import InvalidRequest
from fabric.wire.machines import TASK_EDGES, LeaseState, TaskState, step
from fabric.wire.surroundings import GANG, NONE, Gang

_USABLE = (LeaseState.GRANTED.value, LeaseState.OPEN.value)

Member = tuple[GangMemberRow, LeaseRow]


def check_gang(request: RunRequest) -> None:
    """What a run on several nodes may ask for.

    Raises:
        InvalidRequest: says the member and what to do.
    """
    if request.nodes_min > request.nodes:
        raise InvalidRequest(f"`nodes_min` is {request.nodes_min}, more than `nodes` = {request.nodes}")
    if request.nodes == 1:
        return
    if request.kind not in ("run", "submit"):
        raise InvalidRequest(f"`nodes` is {request.nodes}; a {request.kind} works on one node: use a `submit`")
    if request.work is None and not request.dry_run:
        raise InvalidRequest("a run on several nodes needs `work`: the control plane starts all its ranks together")
    if request.lease is not None:
        raise InvalidRequest("a run on several nodes gets leases of its own; leave out `lease`")


def is_gang(run: RunRow) -> bool:
    return int(run.request.get("nodes", 1)) > 1


def members(session: Session, run: str) -> list[Member]:
    """The run's leases that are granted or open, by rank."""
    query = (
        select(GangMemberRow, LeaseRow)
        .join(LeaseRow, col(LeaseRow.id) == col(GangMemberRow.lease))
        .where(col(GangMemberRow.run) == run, col(LeaseRow.state).in_(_USABLE))
        .order_by(col(GangMemberRow.rank))
    )
    return [(member, lease) for member, lease in session.execute(query)]


def sizes(request: RunRequest) -> range:
    """How many nodes to try for, the most first."""
    return range(request.nodes, (request.nodes_min or request.nodes) - 1, -1)


def enrol(session: Session, run: RunRow, leases: Sequence[LeaseRow], placement: int) -> None:
    """Make new leases and those that were kept a placement of its own.

    The ranks go from 0 without a gap: a kept lease keeps its own while there are so many ranks, and the lowest that
    nobody has go to those that cannot, then to the new ones.
    """
    kept = [member for member, _ in members(session, run.id)]
    run.tasks_total = len(kept) + len(leases)
    taken = {member.rank for member in kept}
    free = (rank for rank in range(run.tasks_total) if rank not in taken)
    for member in kept:
        member.rank = member.rank if member.rank < run.tasks_total else next(free)
    for row in (*kept, *(GangMemberRow(lease=one.id, run=run.id, rank=next(free), placement=0) for one in leases)):
        row.placement = placement
        session.add(row)
    session.add(run)
    session.flush()


def has_own_network(session: Session, run: RunRow, leases: Sequence[LeaseRow]) -> bool:
    """Whether the leases see each other by a network that was made for them when they were granted."""
    terms = read_terms(session, {lease.cluster for lease in leases})
    nodes = [terms.get((lease.cluster, lease.node)) for lease in leases]
    return run.request.get("network") == GANG and any(one is not None and one.isolation != NONE for one in nodes)


def is_current(session: Session, run: RunRow, lease: str) -> bool:
    """Whether the run's present attempt counts on this lease."""
    row = session.get(GangMemberRow, lease)
    return row is not None and row.placement == run.placements


def send_when_complete(session: Session, run: RunRow, now_ms: int) -> None:
    """Send every rank its task once all leases are open; before that nothing is sent, afterwards nothing more."""
    present = members(session, run.id)
    complete = len(present) == run.tasks_total and all(one.state == LeaseState.OPEN.value for _, one in present)
    if not complete or session.get(AttemptRow, (run.id, 0, run.placements)) is not None:
        return
    sent = step(TASK_EDGES, TaskState.PENDING, TaskState.SENT).value
    for member, lease in present:
        values = {"run": run.id, "task": member.rank, "attempt": run.placements, "lease": lease.id}
        session.add(AttemptRow(**values, generation=lease.generation, state=sent, started_ms=now_ms))
        say(session, cluster_topic(lease.cluster))
    session.flush()


def at_work(session: Session, run: RunRow) -> list[AttemptRow]:
    """Tasks of ranks that have not ended."""
    query = select(AttemptRow).where(col(AttemptRow.run) == run.id, col(AttemptRow.state) == TaskState.SENT.value)
    return list(session.scalars(query.order_by(col(AttemptRow.task))))


def stop_ranks(session: Session, run: RunRow, reason: str, message: str, now_ms: int) -> None:
    """End the tasks that are still at work, because of what happened to another rank; their agent hears of it."""
    for row in at_work(session, run):
        row.state = step(TASK_EDGES, TaskState(row.state), TaskState.FAILED).value
        row.reason, row.message, row.ended_ms = reason, f"stopped: {message}"[:2000], now_ms
        session.add(row)
        member = session.get_one(GangMemberRow, row.lease)
        member.stop_attempt = row.attempt
        session.add(member)
        say(session, cluster_topic(session.get_one(LeaseRow, row.lease).cluster))
    session.flush()


def named(session: Session, run: RunRow, lease: LeaseRow, text: str) -> str:
    """A failure with the rank and node that it happened on."""
    row = session.get(GangMemberRow, lease.id)
    return text if row is None else f"rank {row.rank} of {run.tasks_total} on node {lease.node}: {text}"


def gang_of(session: Session, lease: LeaseRow) -> Gang | None:
    """The lease's place among its run's leases as they are now; None when it is no gang's."""
    own = session.get(GangMemberRow, lease.id)
    if own is None:
        return None
    nodes = {member.rank: other.node for member, other in members(session, own.run)} | {own.rank: lease.node}
    return Gang(group=own.run, rank=own.rank, nodes=[nodes.get(rank, "") for rank in range(max(nodes) + 1)])


def stops(session: Session, cluster: str) -> list[tuple[tuple[object, ...], link.StopWork]]:
    """What the cluster's agent must stop, each under a key of its own."""
    query = (
        select(AttemptRow)
        .join(GangMemberRow, col(GangMemberRow.lease) == col(AttemptRow.lease))
        .join(LeaseRow, col(LeaseRow.id) == col(AttemptRow.lease))
        .where(
            col(LeaseRow.cluster) == cluster,
            col(LeaseRow.state) == LeaseState.OPEN.value,
            col(AttemptRow.run) == col(GangMemberRow.run),
            col(AttemptRow.attempt) == col(GangMemberRow.stop_attempt),
        )
    )
    return [
        (
            ("stop", row.lease, row.attempt),
            link.StopWork(lease=row.lease, generation=row.generation, run=row.run, task=row.task, attempt=row.attempt),
        )
        for row in session.scalars(query)
    ]
