"""Rows as answers: what a run, a lease, a cost looks like from outside. Reads only; who may see it is the route's."""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from api import schemas, transitions
from api.tables import AttemptRow, ClusterRow, GpuRow, LeaseGpuRow, LeaseRow, LeaseRunRow, OperatorRow, RunRow, TaskRow
from fabric.placement.answer import Placement
from fabric.wire.machines import ACTIVE_LEASE_STATES, LeaseState, TaskState
from fabric.wire.reasons import Reason
from ledger.leaves import gpu_id_hex
from ledger.money import split_by_weight
from ledger.pricing import PricedShare, cost_up

MAX_ATTEMPTS = 100
"""Attempts shown with a run; the newest. All of them are in the receipts."""

_HOUR_MS = 3_600_000


def lease_view(session: Session, lease: LeaseRow) -> schemas.Lease:
    """One lease with its GPUs."""
    operator = session.get_one(OperatorRow, lease.operator)
    cluster = session.get_one(ClusterRow, lease.cluster)
    parts = transitions.gpus_of(session, lease.id)
    return schemas.Lease(
        id=lease.id,
        generation=lease.generation,
        state=lease.state,
        reason=lease.reason,
        operator=lease.operator,
        operator_name=operator.name,
        cluster=cluster.name,
        node=lease.node,
        region=lease.region,
        tier=lease.tier,
        price_dc_per_gpu_hour=lease.price_dc_per_gpu_hour,
        gpus=[_lease_gpu(session, part) for part in parts],
        granted_at_ms=lease.granted_ms,
        opened_at_ms=lease.opened_ms,
        closed_at_ms=lease.closed_ms,
        charged_dc=lease.charged_dc,
        gpu_ms=sum(part.billed_ms for part in parts),
    )


def run_view(session: Session, run: RunRow) -> schemas.Run:
    """A run with its leases, attempts and cost so far."""
    leases = transitions.leases_of(session, run.id)
    return schemas.Run(
        id=run.id,
        kind=run.kind,
        name=run.name,
        tags=run.request.get("tags", {}),
        state=run.state,
        reason=run.reason,
        message=run.message,
        tier=run.tier,
        created_at_ms=run.created_ms,
        started_at_ms=run.started_ms,
        ended_at_ms=run.ended_ms,
        leases=[lease_view(session, lease) for lease in leases],
        attempts=_attempts(session, run.id, {lease.id: lease for lease in leases}),
        tasks=_tasks(session, run),
        cost=cost_of(session, run, leases),
        explain=schemas.Explain(**run.explain) if run.explain else _of_lease(session, leases),
        result=schemas.Result(blob=run.result_blob, message=run.result_message) if run.result_blob else None,
    )


def planned_view(run: RunRow, placement: Placement) -> schemas.Run:
    """The answer to a dry run: what it would be and cost; nothing of it is stored."""
    rate = placement.price_dc_per_hour_up
    return schemas.Run(
        id=run.id,
        kind=run.kind,
        name=run.name,
        tags=run.request.get("tags", {}),
        state=run.state,
        reason="",
        message="a dry run: nothing was bought",
        tier=run.tier,
        created_at_ms=run.created_ms,
        started_at_ms=None,
        ended_at_ms=None,
        leases=[],
        attempts=[],
        tasks=schemas.TaskCounts(total=run.tasks_total, done=0, failed=0),
        cost=_cost(_Part(), held=0, rate=rate, budget=run.budget_dc),
        explain=schemas.Explain(**run.explain),
        result=None,
    )


def cost_of(session: Session, run: RunRow, leases: list[LeaseRow]) -> schemas.Cost:
    """A run's part of what its leases cost; the parts of all runs of a lease add up to the lease, to the last DC."""
    total, held, rate = _Part(), 0, 0
    for lease in leases:
        parts = transitions.gpus_of(session, lease.id)
        total = total.plus(_part_of(session, run, lease, parts))
        if LeaseState(lease.state) in ACTIVE_LEASE_STATES:
            shares = [PricedShare(part.share_milli, lease.price_dc_per_gpu_hour) for part in parts]
            rate += cost_up(shares, _HOUR_MS) if run.ended_ms is None else 0
            held += lease.set_aside_dc - lease.charged_dc if lease.run == run.id else 0
    return _cost(total, held=held, rate=rate, budget=run.budget_dc)


@dataclass(frozen=True, slots=True)
class _Part:
    dc: int = 0
    gpu_ms: int = 0
    idle_ms: int = 0
    setup_ms: int = 0
    utilised_ms: int = 0
    energy_mj: int = 0

    def plus(self, other: "_Part") -> "_Part":
        return _Part(
            self.dc + other.dc,
            self.gpu_ms + other.gpu_ms,
            self.idle_ms + other.idle_ms,
            self.setup_ms + other.setup_ms,
            self.utilised_ms + other.utilised_ms,
            self.energy_mj + other.energy_mj,
        )


def _part_of(session: Session, run: RunRow, lease: LeaseRow, parts: list[LeaseGpuRow]) -> _Part:
    """By each run's metered time; a lease that metered none is its opening run's."""
    lines = list(session.scalars(select(LeaseRunRow).where(col(LeaseRunRow.lease) == lease.id)))
    weights = {line.run: line.gpu_ms for line in lines}
    if not any(weights.values()):
        weights = {line.run: int(line.run == lease.run) for line in lines}
    mine = next((line for line in lines if line.run == run.id), None)
    if mine is None or not any(weights.values()):
        return _Part()

    def share(total: int) -> int:
        return split_by_weight(total, weights)[run.id]

    return _Part(
        share(lease.charged_dc),
        share(sum(part.billed_ms for part in parts)),
        mine.idle_ms,
        mine.setup_ms,
        share(sum(part.utilised_ms for part in parts)),
        share(sum(part.energy_mj for part in parts)),
    )


def _cost(part: _Part, *, held: int, rate: int, budget: int | None) -> schemas.Cost:
    return schemas.Cost(
        accrued_dc=part.dc,
        held_dc=held,
        rate_dc_per_hour=rate,
        gpu_ms=part.gpu_ms,
        idle_ms=part.idle_ms,
        setup_ms=part.setup_ms,
        utilised_gpu_ms=part.utilised_ms,
        energy_mj=part.energy_mj,
        budget_dc=budget,
    )


def _lease_gpu(session: Session, part: LeaseGpuRow) -> schemas.LeaseGpu:
    device = session.get_one(GpuRow, part.gpu)
    return schemas.LeaseGpu(
        id=gpu_id_hex(part.gpu),
        uuid=part.gpu,
        model=device.model,
        memory_bytes=device.memory_bytes,
        share_milli=part.share_milli,
        simulated=device.simulated,
    )


def _attempts(session: Session, run: str, leases: dict[str, LeaseRow]) -> list[schemas.Attempt]:
    """What receipts say of tasks, and what the agent runs for a detached run, which says more of the same attempt."""
    found: dict[tuple[int, int], schemas.Attempt] = {}
    metered = select(TaskRow).where(col(TaskRow.run) == run).order_by(col(TaskRow.seq).desc()).limit(MAX_ATTEMPTS)
    for task in session.scalars(metered):
        lease = leases.get(task.lease)
        opened = (lease.opened_ms if lease else None) or 0
        found[task.task, task.attempt] = schemas.Attempt(
            attempt=task.attempt,
            task=task.task,
            lease=task.lease,
            state=(TaskState.DONE if task.reason == Reason.DONE else TaskState.FAILED).value,
            reason=task.reason,
            message="",
            started_at_ms=opened + task.start_ms,
            ended_at_ms=opened + task.end_ms,
        )
    for row in session.scalars(select(AttemptRow).where(col(AttemptRow.run) == run).limit(MAX_ATTEMPTS)):
        found[row.task, row.attempt] = schemas.Attempt(
            attempt=row.attempt,
            task=row.task,
            lease=row.lease,
            state=row.state,
            reason=row.reason,
            message=row.message,
            started_at_ms=row.started_ms,
            ended_at_ms=row.ended_ms,
            exit_code=row.exit_code,
        )
    return [found[key] for key in sorted(found)][:MAX_ATTEMPTS]


def _tasks(session: Session, run: RunRow) -> schemas.TaskCounts:
    counts: defaultdict[bool, int] = defaultdict(int)
    query = (
        select(col(TaskRow.accepted), func.count())
        .where(col(TaskRow.run) == run.id, (col(TaskRow.accepted)) | (col(TaskRow.reason) != Reason.DONE.value))
        .group_by(col(TaskRow.accepted))
    )
    for accepted, count in session.execute(query):
        counts[accepted] += count
    return schemas.TaskCounts(total=run.tasks_total, done=counts[True], failed=counts[False])


def _of_lease(session: Session, leases: list[LeaseRow]) -> schemas.Explain:
    """A run that found its lease held was placed by the decision for the run that opened it."""
    for lease in leases:
        opener = session.get(RunRow, lease.run)
        if opener is not None and opener.explain:
            text = f"on lease {lease.id}, which {opener.id} had opened: {opener.explain['text']}"
            return schemas.Explain(**{**opener.explain, "text": text})
    return schemas.Explain(considered=0, rejected={}, chosen=None, next_best=None, text="not placed yet")
