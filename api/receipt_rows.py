"""The rows that a batch of receipts needs and changes: read and written in a few statements, whatever their number.

Plain values stand in for rows while receipts are judged, by `api.acceptance` and `api.receipt_batch`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, delete, select, tuple_
from sqlmodel import Session

from api.acceptance import Chain
from api.lifecycle import LeaseEvent
from api.tables import (
    GpuRow,
    LeaseGpuRow,
    LeaseRow,
    LeaseRunRow,
    OperatorRow,
    ReceiptRow,
    RunRow,
    TaskRow,
    UntoldRunRow,
)
from fabric.wire.machines import LeaseState
from fabric.wire.receipts import GpuLine, Receipt, RunLine
from ledger.book import chunks
from ledger.bulk import among, insert_rows, update_rows, upsert_rows
from ledger.chain.holders import holders_of
from ledger.holding import Holders
from ledger.poolbook import stays_of
from ledger.pools import Membership
from ledger.pricing import PricedShare
from ledger.tables import table_of
from ledger.usage import Usage

_LEASES, _LEASE_GPUS, _LEASE_RUNS = table_of(LeaseRow), table_of(LeaseGpuRow), table_of(LeaseRunRow)
_GPUS, _OPERATORS, _RUNS = table_of(GpuRow), table_of(OperatorRow), table_of(RunRow)
_RECEIPTS, _TASKS, _UNTOLD = table_of(ReceiptRow), table_of(TaskRow), table_of(UntoldRunRow)
_CLOSED = frozenset({LeaseState.CLOSED, LeaseState.LOST})

Task = tuple[str, int]
"""(run, number)."""


@dataclass(slots=True)
class Meter:
    """One GPU of a lease with its cumulative numbers: as its last accepted receipt claims, and as they are billed."""

    gpu_id: str
    model: str
    simulated: bool
    line: GpuLine
    billed_ms: int
    window_ms: int
    charged_dc: int


@dataclass(slots=True)
class OpenLease:
    """A lease while its receipts are taken: what its rows say, and what this batch adds.

    `meters` are by the GPU's UUID; by its public id `nfts` are the NFTs' holders and `stays` its stays in pools;
    `holder` is who earns without an NFT.
    """

    id: str
    customer: str
    run: str
    operator: str
    cluster: str
    state: str
    price_dc_per_gpu_hour: int
    notice_ms: int
    least_ms: int
    reason: str
    given_back: bool
    granted_ms: int
    release_ms: int | None
    topped_up_ms: int
    set_aside_dc: int
    billing_nonce_ms: int | None
    last_task_end_ms: int
    chain: Chain
    meters: dict[str, Meter]
    holder: str
    nfts: Mapping[str, Holders]
    stays: Mapping[str, Sequence[Membership]] = field(default_factory=dict)
    seen: dict[int, bytes] = field(default_factory=dict)
    advanced: bool = False
    runs: dict[str, RunLine] = field(default_factory=dict)
    usages: list[Usage] = field(default_factory=list)
    events: list[tuple[LeaseEvent, str]] = field(default_factory=list)

    @property
    def charged_dc(self) -> int:
        return sum(meter.charged_dc for meter in self.meters.values())

    def shares(self) -> list[PricedShare]:
        """The lease's GPUs as the ledger prices them."""
        return [PricedShare(meter.line.share_milli, self.price_dc_per_gpu_hour) for meter in self.meters.values()]


def load(session: Session, fabric_id: str, receipts: Sequence[Receipt]) -> dict[str, OpenLease]:
    """The leases that receipts name, by id; their rows stay locked until the transaction is over."""
    rows = _leases(session, sorted({receipt.lease for receipt in receipts}))
    meters = _meters(session, list(rows))
    payouts = _payouts(session, {row.operator for row in rows.values()})
    gpu_ids = {meter.gpu_id for parts in meters.values() for meter in parts.values()}
    nfts, stays = holders_of(session, gpu_ids), stays_of(session, gpu_ids)
    found = {
        name: OpenLease(
            id=row.id,
            customer=row.customer,
            run=row.run,
            operator=row.operator,
            cluster=row.cluster,
            state=row.state,
            price_dc_per_gpu_hour=row.price_dc_per_gpu_hour,
            notice_ms=row.notice_ms,
            least_ms=row.least_ms,
            reason=row.reason,
            given_back=row.given_back,
            granted_ms=row.granted_ms,
            release_ms=row.release_ms,
            topped_up_ms=row.topped_up_ms,
            set_aside_dc=row.set_aside_dc,
            billing_nonce_ms=row.billing_nonce_ms,
            last_task_end_ms=row.last_task_end_ms,
            chain=_chain(fabric_id, row, meters[name]),
            meters=meters[name],
            holder=payouts[row.operator],
            nfts=nfts,
            stays=stays,
        )
        for name, row in rows.items()
    }
    for lease, seq, digest in _seen(session, found, receipts):
        found[lease].seen[seq] = digest
    return found


def customers_of(session: Session, runs: Iterable[str]) -> dict[str, str]:
    """Whose each of these runs is; a run that is not known yet is not in the answer."""
    rows = session.execute(select(_RUNS.c.id, _RUNS.c.customer).where(among(_RUNS.c.id, sorted(runs))))
    return dict(tuple(row) for row in rows)


def done_tasks(session: Session, tasks: Iterable[Task]) -> set[Task]:
    """Those of these tasks that have their accepted result."""
    asked = set(tasks)
    if not asked:
        return set()
    same = and_(
        among(_TASKS.c.run, sorted({run for run, _ in asked})), among(_TASKS.c.task, sorted({n for _, n in asked}))
    )
    rows = session.execute(select(_TASKS.c.run, _TASKS.c.task).where(same, _TASKS.c.accepted))
    return asked.intersection((run, task) for run, task in rows)


def write_receipts(session: Session, receipts: list[dict[str, Any]]) -> None:
    """A number that another control plane accepted meanwhile raises: the batch is then judged again."""
    insert_rows(session, _RECEIPTS, receipts)


def write_tasks(session: Session, tasks: list[dict[str, Any]]) -> None:
    """A task whose accepted result is there already gets no second one."""
    insert_rows(session, _TASKS, tasks, or_skip=True)


def write_leases(session: Session, leases: Sequence[OpenLease]) -> None:
    """What this batch metered of leases that advanced."""
    update_rows(session, _LEASES, [_lease_values(lease) for lease in leases], key=("id",))
    meters = [_meter_values(lease.id, uuid, meter) for lease in leases for uuid, meter in lease.meters.items()]
    update_rows(session, _LEASE_GPUS, meters, key=("lease", "gpu"))


def write_runs(session: Session, parts: list[dict[str, Any]]) -> None:
    """Each run's part of its lease; a run that is seen for the first time joined now."""
    upsert_rows(session, _LEASE_RUNS, parts, key=("lease", "run"), changed=("gpu_ms", "idle_ms", "setup_ms"))


def write_untold(session: Session, parts: list[dict[str, Any]]) -> None:
    """Parts of runs that are not known yet, for `take_untold`."""
    upsert_rows(session, _UNTOLD, parts, key=("lease", "run"), changed=("gpu_ms", "idle_ms", "setup_ms"))


def take_untold(session: Session, lease: str, runs: Collection[str]) -> dict[str, RunLine]:
    """What receipts of the lease said of these runs before they were told of; it is not kept any longer."""
    named = and_(_UNTOLD.c.lease == lease, among(_UNTOLD.c.run, sorted(runs)))
    columns = (_UNTOLD.c.run, _UNTOLD.c.gpu_ms, _UNTOLD.c.idle_ms, _UNTOLD.c.setup_ms)
    lines = {row.run: RunLine(*row) for row in session.execute(select(*columns).where(named))}
    if lines:
        session.execute(delete(_UNTOLD).where(named))
    return lines


def _lease_values(lease: OpenLease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "last_seq": lease.chain.last_seq,
        "last_hash": lease.chain.last_hash,
        "lost_at_ms": None,
        "billing_nonce_ms": lease.billing_nonce_ms,
        "last_task_end_ms": lease.last_task_end_ms,
        "charged_dc": lease.charged_dc,
    }


def _meter_values(lease: str, uuid: str, meter: Meter) -> dict[str, Any]:
    return {
        "lease": lease,
        "gpu": uuid,
        "billed_ms": meter.billed_ms,
        "window_ms": meter.window_ms,
        "charged_dc": meter.charged_dc,
        "claimed_ms": meter.line.gpu_ms,
        "setup_ms": meter.line.setup_ms,
        "utilised_ms": meter.line.utilised_ms,
        "energy_mj": meter.line.energy_mj,
    }


def _leases(session: Session, names: Sequence[str]) -> dict[str, Any]:
    query = select(_LEASES).where(among(_LEASES.c.id, names)).order_by(_LEASES.c.id).with_for_update()
    return {row.id: row for row in session.execute(query)}


def _meters(session: Session, leases: Sequence[str]) -> defaultdict[str, dict[str, Meter]]:
    found: defaultdict[str, dict[str, Meter]] = defaultdict(dict)
    rows = session.execute(
        select(_LEASE_GPUS, _GPUS.c.id.label("gpu_id"), _GPUS.c.model, _GPUS.c.simulated)
        .join(_GPUS, _GPUS.c.uuid == _LEASE_GPUS.c.gpu)
        .where(among(_LEASE_GPUS.c.lease, leases))
        .order_by(_LEASE_GPUS.c.lease, _LEASE_GPUS.c.position)
    )
    for row in rows:
        line = GpuLine(row.gpu, row.share_milli, row.claimed_ms, row.setup_ms, row.utilised_ms, row.energy_mj)
        found[row.lease][row.gpu] = Meter(
            row.gpu_id, row.model, row.simulated, line, row.billed_ms, row.window_ms, row.charged_dc
        )
    return found


def _payouts(session: Session, operators: set[str]) -> dict[str, str]:
    query = select(_OPERATORS.c.id, _OPERATORS.c.payout).where(among(_OPERATORS.c.id, sorted(operators)))
    return dict(tuple(row) for row in session.execute(query))


def _chain(fabric_id: str, row: Any, meters: Mapping[str, Meter]) -> Chain:
    return Chain(
        fabric_id=fabric_id,
        operator=row.operator,
        lease=row.id,
        generation=row.generation,
        last_seq=row.last_seq,
        last_hash=row.last_hash,
        closed=LeaseState(row.state) in _CLOSED,
        shares=frozenset((uuid, meter.line.share_milli) for uuid, meter in meters.items()),
        simulated=any(meter.simulated for meter in meters.values()),
        gpu_ms={uuid: meter.line.gpu_ms for uuid, meter in meters.items()},
    )


def _seen(
    session: Session, leases: Mapping[str, OpenLease], receipts: Sequence[Receipt]
) -> Iterator[tuple[str, int, bytes]]:
    """(lease, number, hash) of the accepted receipts whose numbers come again."""
    again = {
        (receipt.lease, receipt.generation, receipt.seq)
        for receipt in receipts
        if receipt.lease in leases and _is_again(leases[receipt.lease].chain, receipt)
    }
    key = tuple_(_RECEIPTS.c.lease, _RECEIPTS.c.generation, _RECEIPTS.c.seq)
    columns = (_RECEIPTS.c.lease, _RECEIPTS.c.seq, _RECEIPTS.c.hash)
    for chunk in chunks(sorted(again)):
        yield from (
            (lease, seq, digest) for lease, seq, digest in session.execute(select(*columns).where(key.in_(chunk)))
        )


def _is_again(chain: Chain, receipt: Receipt) -> bool:
    return receipt.generation == chain.generation and receipt.seq <= chain.last_seq
