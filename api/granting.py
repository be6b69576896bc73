"""Turns a placement into leases with their holds, in the caller's transaction. Decides no placement."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session

from api import nonces
from api.acceptance import EVICTING_LEAST_MS, MINIMUM_MS
from api.database import say
from api.fleet import split_node
from api.fleets import note_change
from api.plane import Plane
from api.receipt_rows import take_untold
from api.signals import cluster_topic, run_topic
from api.tables import GpuRow, LeaseGpuRow, LeaseRow, LeaseRunRow, NodeRow, RunRow
from fabric.placement.answer import Placement
from fabric.placement.inventory import Assignment
from fabric.wire.errors import BudgetExhausted, InsufficientFunds
from fabric.wire.ids import new_id
from fabric.wire.machines import LeaseState
from ledger.pricing import PricedShare, StopReason, Wanted, hold_sizes

NOTICE_MS = {"spot": 30_000, "on_demand": 5_000, "reserved": 5_000}
"""What a lease of each tier is promised before it is stopped; the hold's reserve pays it."""

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000


def default_budget_dc(placement: Placement, available_dc: int) -> int:
    """What a detached run without a budget may cost: a day at the placed price, at most what is there."""
    return min(placement.price_dc_per_hour_up * _DAY_MS // _HOUR_MS, available_dc)


def grant(plane: Plane, session: Session, run: RunRow, placement: Placement, startup_timeout_ms: int) -> list[LeaseRow]:
    """One lease for each node of the placement, each with its hold; all or none.

    Raises:
        InsufficientFunds: not even the reserve can be held.
        BudgetExhausted: likewise, because of the run's budget.
    """
    leases = [_new_lease(plane, session, run, placement, part, startup_timeout_ms) for part in placement.assignments]
    _hold(plane, session, run, leases, placement.assignments)
    for lease in leases:
        join(session, lease.id, run.id, lease.granted_ms)
        note_change(session, lease.granted_ms, lease.cluster, [lease.node])
        plane.metrics.leases.inc()
        say(session, cluster_topic(lease.cluster), run_topic(run.id))
    return leases


def join(session: Session, lease: str, run: str, now_ms: int) -> None:
    """Note that a run uses a lease, with what its receipts have said of it already."""
    if session.get(LeaseRunRow, (lease, run)) is None:
        said = take_untold(session, lease, (run,)).get(run)
        part = {"gpu_ms": said.gpu_ms, "idle_ms": said.idle_ms, "setup_ms": said.setup_ms} if said else {}
        session.add(LeaseRunRow(lease=lease, run=run, joined_ms=now_ms, **part))
        session.flush()


def _new_lease(
    plane: Plane, session: Session, run: RunRow, placement: Placement, part: Assignment, startup_timeout_ms: int
) -> LeaseRow:
    now = plane.now_ms()
    cluster, node = split_node(part.node)
    row = session.get(NodeRow, (cluster, node))
    lease = LeaseRow(
        id=new_id("lease"),
        generation=1,
        customer=run.customer,
        session=run.session,
        run=run.id,
        operator=placement.operator,
        cluster=cluster,
        node=node,
        region=row.region if row else "",
        tier=placement.tier,
        state=LeaseState.GRANTED.value,
        price_dc_per_gpu_hour=placement.price_dc_per_gpu_hour,
        notice_ms=NOTICE_MS[placement.tier],
        cpu_milli=part.cpu_milli,
        memory_bytes=part.memory_bytes,
        disk_bytes=part.disk_bytes,
        startup_timeout_ms=startup_timeout_ms,
        grant_nonce=nonces.issue(session, cluster, now).seq or 0,
        granted_ms=now,
        topped_up_ms=now,
        least_ms=_least_ms(run, part),
    )
    session.add(lease)
    session.flush()
    _take_gpus(session, lease, part)
    return lease


def _least_ms(run: RunRow, part: Assignment) -> int:
    """Ten minutes where spot leases had to leave for it, once; else what any lease costs at least."""
    evicted = {share.uuid for share in part.gpus}.intersection(run.evicted_gpus)
    run.evicted_gpus = [uuid for uuid in run.evicted_gpus if uuid not in evicted]
    return EVICTING_LEAST_MS if evicted else MINIMUM_MS


def _take_gpus(session: Session, lease: LeaseRow, part: Assignment) -> None:
    """The database refuses this when another lease was faster, whatever placement thought."""
    for position, share in enumerate(part.gpus):
        session.execute(
            update(GpuRow).where(GpuRow.uuid == share.uuid).values(used_milli=GpuRow.used_milli + share.milli)  # type: ignore[arg-type]
        )
        session.add(
            LeaseGpuRow(lease=lease.id, gpu=share.uuid, position=position, share_milli=share.milli, active=True)
        )
    session.flush()


def _hold(plane: Plane, session: Session, run: RunRow, leases: Sequence[LeaseRow], parts: Sequence[Assignment]) -> None:
    """For leases that are granted together what there is is divided, so that the first does not take what all need."""
    ledger = plane.ledger(session)
    if leases[0].tier == "reserved":
        for lease in leases:
            ledger.hold_nothing(lease.id, run.id, run.customer, f"hold/{lease.id}")
        return
    available = ledger.balance(run.customer).available
    left = None if run.budget_dc is None else run.budget_dc - ledger.committed_dc(run.id)
    wanted = [
        Wanted(priced_shares(lease, [share.milli for share in part.gpus]), lease.notice_ms, lease.least_ms)
        for lease, part in zip(leases, parts, strict=True)
    ]
    sizes = hold_sizes(wanted, available_dc=available, budget_left_dc=left)
    needs = f"{'the lease needs' if len(leases) == 1 else f'{len(leases)} leases need'} at least {sizes.reserve_dc} DC"
    if sizes.refused is StopReason.BUDGET_EXHAUSTED:
        raise BudgetExhausted(
            f"the budget has {left} DC left, {needs} set aside; raise `budget`",
            budget_dc=run.budget_dc,
            needed_dc=sizes.reserve_dc,
        )
    if sizes.refused is not None:
        raise InsufficientFunds(
            f"{available} DC are available and {needs} set aside; deposit DC",
            needed_dc=sizes.reserve_dc,
            available_dc=available,
        )
    for lease, dc in zip(leases, sizes.dc, strict=True):
        ledger.hold(lease.id, run.id, run.customer, dc, f"hold/{lease.id}", budget_dc=run.budget_dc)
        lease.set_aside_dc = dc
        session.add(lease)


def priced_shares(lease: LeaseRow, millis: Sequence[int]) -> list[PricedShare]:
    """The lease's GPUs as the ledger prices them."""
    return [PricedShare(milli, lease.price_dc_per_gpu_hour) for milli in millis]
