"""What people ask the ledger: entries, a GPU's cash flow, what pools, operators and holders earned, epochs, proofs.

Reads only and answers plain values; pages go by a cursor that is the last row seen. Who may see what is the caller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Row, Select, bindparam, func, or_, select
from sqlmodel import Session

from fabric.wire.merkle import levels, proof_in
from ledger.accounts import Account, AccountKind, Asset
from ledger.allocate import GpuUsage, Payout, payout_leaves, usage_leaves
from ledger.book import ACCOUNT, ENTRY, POSTINGS
from ledger.closing import EPOCH, EPOCH_USAGE, PAYOUT, REWARD
from ledger.entries import Posting
from ledger.finality import FINALITY
from ledger.meters import METER, USAGE, standing
from ledger.pools import as_of

MAX_LIMIT = 1000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some rows, and the cursor of the next ones; none when these are the last."""

    items: tuple[Item, ...]
    next_cursor: int | None


@dataclass(frozen=True, slots=True)
class EntryView:
    """A booked entry. Amounts are in the smallest unit of their account's asset."""

    id: int
    source_id: str
    kind: str
    at_ms: int
    lease_id: str | None
    customer: str | None
    reverses_id: int | None
    postings: tuple[Posting, ...]


@dataclass(frozen=True, slots=True)
class EpochView:
    """A closed epoch's row."""

    n: int
    start_ms: int
    end_ms: int
    closed_ms: int
    gpu_ms: int
    burned_dc: int
    price_usd_e18: int
    price_source: str
    value_wei: int
    emission_wei: int
    remintable_wei: int
    paid_wei: int
    staking_wei: int
    stake_bps: int
    payout_root: bytes
    usage_root: bytes
    file_hash: bytes
    head: bytes
    settlement: str


@dataclass(frozen=True, slots=True)
class CashFlow:
    """What a GPU did and earned in one epoch for one holder in one pool."""

    epoch: int
    start_ms: int
    end_ms: int
    gpu_id: str
    holder: str
    pool: str
    operator: str
    gpu_ms: int
    dc: int
    wei: int


@dataclass(frozen=True, slots=True)
class GpuView:
    """A GPU over all its life: what it was used for, and what closed epochs paid for it.

    ``used_gpu_ms`` and ``used_dc`` count all standing usage, ``rewarded_dc`` that of closed epochs;
    ``share_milli_ms`` is GPU-ms × share, for utilisation.
    """

    gpu_id: str
    model: str
    operator: str
    simulated: bool
    price_dc_per_gpu_hour: int
    used_gpu_ms: int
    share_milli_ms: int
    used_dc: int
    utilised_gpu_ms: int
    energy_mj: int
    first_ms: int
    last_ms: int
    rewarded_dc: int
    wei: int


class Party(StrEnum):
    """Whom rewards can be summed for."""

    POOL = "pool"
    OPERATOR = "operator"
    HOLDER = "holder"


@dataclass(frozen=True, slots=True)
class Earnings:
    """Sums over closed epochs, and over how many GPUs."""

    gpus: int
    epochs: int
    gpu_ms: int
    dc: int
    wei: int


@dataclass(frozen=True, slots=True)
class RunBill:
    """What a run's standing usage costs so far, per GPU-ms and DC."""

    gpu_ms: int
    dc: int
    utilised_gpu_ms: int
    energy_mj: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A leaf's path to the root of its epoch, and the values that the leaf is made of."""

    epoch: int
    leaf: bytes
    index: int
    path: tuple[bytes, ...]
    root: bytes
    values: tuple[Any, ...]


def entries(
    session: Session,
    *,
    customer: str | None = None,
    lease_id: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> Page[EntryView]:
    """Entries newest first, of one customer or lease if given; ``before`` is the cursor of the page before."""
    wanted = select(ENTRY).order_by(ENTRY.c.id.desc())
    if customer is not None:
        wanted = wanted.where(ENTRY.c.customer == customer)
    if lease_id is not None:
        wanted = wanted.where(ENTRY.c.lease_id == lease_id)
    if before is not None:
        wanted = wanted.where(ENTRY.c.id < before)
    rows, cursor = _page(session, wanted, limit, lambda row: row.id)
    postings = _postings(session, [row.id for row in rows])
    return Page(tuple(_entry_view(row, postings.get(row.id, [])) for row in rows), cursor)


def epochs(session: Session, *, before: int | None = None, limit: int = 100) -> Page[EpochView]:
    """Closed epochs, newest first."""
    wanted = select(EPOCH).order_by(EPOCH.c.n.desc())
    if before is not None:
        wanted = wanted.where(EPOCH.c.n < before)
    rows, cursor = _page(session, wanted, limit, lambda row: row.n)
    return Page(tuple(EpochView(*row) for row in rows), cursor)


def entries_since(session: Session, after: int, *, customer: str, limit: int = 100) -> list[EntryView]:
    """A customer's entries behind a number, oldest first."""
    wanted = select(ENTRY).where(ENTRY.c.customer == customer, ENTRY.c.id > after).order_by(ENTRY.c.id)
    rows = session.execute(wanted.limit(limit)).all()
    postings = _postings(session, [row.id for row in rows])
    return [_entry_view(row, postings.get(row.id, [])) for row in rows]


def epochs_since(session: Session, after: int, *, limit: int = 100) -> list[EpochView]:
    """Closed epochs behind a number, oldest first."""
    wanted = select(EPOCH).where(EPOCH.c.n > after).order_by(EPOCH.c.n).limit(limit)
    return [EpochView(*row) for row in session.execute(wanted)]


def epoch(session: Session, n: int) -> EpochView | None:
    row = session.execute(select(EPOCH).where(EPOCH.c.n == n)).one_or_none()
    return None if row is None else EpochView(*row)


def epoch_usages(session: Session, n: int) -> list[GpuUsage]:
    """The usage leaves of a closed epoch in their order."""
    columns = [EPOCH_USAGE.c[name] for name in GpuUsage._fields]
    rows = session.execute(select(*columns).where(EPOCH_USAGE.c.epoch == n).order_by(EPOCH_USAGE.c.gpu_id))
    return [GpuUsage(*row) for row in rows]


def payouts_upto(session: Session, n: int) -> list[Payout]:
    """The payout leaves of epoch ``n`` in their order: every (GPU, holder) paid in it or before."""
    later = PAYOUT.alias()
    last = (
        select(func.max(later.c.epoch))
        .where(later.c.gpu_id == PAYOUT.c.gpu_id, later.c.holder == PAYOUT.c.holder, later.c.epoch <= n)
        .correlate(PAYOUT)
        .scalar_subquery()
    )
    rows = session.execute(
        select(PAYOUT).where(PAYOUT.c.epoch == last).order_by(PAYOUT.c.gpu_id, PAYOUT.c.holder)
    ).all()
    return [Payout(row.gpu_id, row.holder, row.wei if row.epoch == n else 0, row.cumulative_wei) for row in rows]


def gpus(session: Session, *, after: str = "", limit: int = 100) -> list[str]:
    """Ids of GPUs that were ever used, in order, beyond ``after``."""
    wanted = select(METER.c.gpu_id).where(METER.c.gpu_id > after).distinct().order_by(METER.c.gpu_id)
    return list(session.execute(wanted.limit(min(limit, MAX_LIMIT))).scalars())


def gpu(session: Session, gpu_id: str) -> GpuView | None:
    """One GPU; none when it was never used."""
    meter = session.execute(
        select(METER.c.model, METER.c.operator, METER.c.simulated, METER.c.price_dc_per_gpu_hour)
        .where(METER.c.gpu_id == gpu_id)
        .order_by(METER.c.id.desc())
        .limit(1)
    ).one_or_none()
    if meter is None:
        return None
    used = session.execute(_gpu_sums(), {"gpu": gpu_id}).one()
    earned = _sum_rewards(session, REWARD.c.gpu_id == gpu_id)
    values: list[Any] = [gpu_id, *meter, *(int(value) for value in used), earned.dc, earned.wei]
    return GpuView(*values)


def gpu_cash_flow(session: Session, gpu_id: str, *, before: int | None = None, limit: int = 100) -> Page[CashFlow]:
    """A GPU's rewards by epoch, newest first; they stay with the GPU whoever holds it. Pages never cut an epoch."""
    return _cash_flow(session, REWARD.c.gpu_id == gpu_id, before, limit)


def cash_flow(
    session: Session, party: Party, name: str, *, before: int | None = None, limit: int = 100
) -> Page[CashFlow]:
    """Rewards of a pool, operator or holder by epoch, newest first. Pages never cut an epoch."""
    return _cash_flow(session, whose(party, name), before, limit)


def earnings(session: Session, party: Party, name: str) -> Earnings:
    """What a pool, operator or holder earned in all closed epochs."""
    return _sum_rewards(session, whose(party, name))


def whose(party: Party, name: str) -> Any:
    """The condition on rewards that they are this party's; a pool's in whatever epoch it stood."""
    column = REWARD.c[party.value]
    if party is Party.POOL:
        return or_(column == name, column.startswith(as_of(name, 0)[:-1], autoescape=True))
    return column == (name.lower() if party is Party.HOLDER else name)


def run_bill(session: Session, run_id: str) -> RunBill:
    """Standing usage charged for a run."""
    row = session.execute(
        select(_sum(USAGE.c.gpu_ms), _sum(USAGE.c.dc), _sum(USAGE.c.utilised_gpu_ms), _sum(USAGE.c.energy_mj)).where(
            USAGE.c.run_id == run_id, standing()
        )
    ).one()
    return RunBill(*(int(value) for value in row))


def pending_dc(session: Session) -> int:
    """Charged and not final yet, over all GPUs."""
    through = select(func.coalesce(func.max(FINALITY.c.through_ms), 0)).scalar_subquery()
    return int(session.execute(select(_sum(USAGE.c.dc)).where(USAGE.c.accepted_ms >= through, standing())).scalar_one())


def payout_proof(session: Session, n: int, gpu_id: str, holder: str) -> Proof | None:
    """The path of a payout leaf (GPU, holder, cumulative wei) in epoch ``n``; none when there is no such leaf."""
    if epoch(session, n) is None:
        return None
    payouts = payouts_upto(session, n)
    values = [(payout.gpu_id, payout.holder, payout.cumulative_wei) for payout in payouts]
    return _prove(n, payout_leaves(payouts), values, (gpu_id, holder.lower()))


def usage_proof(session: Session, n: int, gpu_id: str) -> Proof | None:
    """The path of a usage leaf (GPU, GPU-ms, DC, root of its leases) in epoch ``n``."""
    usages = epoch_usages(session, n)
    values = [(usage.gpu_id, usage.gpu_ms, usage.dc, usage.leases_root) for usage in usages]
    return _prove(n, usage_leaves(n, usages), values, (gpu_id,))


def _prove(n: int, leaves: list[bytes], values: Sequence[tuple[Any, ...]], key: tuple[str, ...]) -> Proof | None:
    index = next((at for at, value in enumerate(values) if value[: len(key)] == key), None)
    if index is None:
        return None
    tree = levels(leaves)
    return Proof(n, leaves[index], index, tuple(proof_in(tree, index)), tree[-1][0], values[index])


def _page(
    session: Session, wanted: Select, limit: int, cursor_of: Callable[[Row], int]
) -> tuple[Sequence[Row], int | None]:
    size = max(1, min(limit, MAX_LIMIT))
    rows = session.execute(wanted.limit(size + 1)).all()
    return rows[:size], cursor_of(rows[size - 1]) if len(rows) > size else None


def _entry_view(row: Row, postings: Sequence[Posting]) -> EntryView:
    return EntryView(
        row.id, row.source_id, row.kind, row.at_ms, row.lease_id, row.customer, row.reverses_id, tuple(postings)
    )


def _postings(session: Session, entry_ids: Sequence[int]) -> dict[int, list[Posting]]:
    found: dict[int, list[Posting]] = {}
    for asset in (Asset.DC, Asset.BCT):
        for entry_id, kind, owner, sub, amount in session.execute(_postings_of(asset), {"entries": list(entry_ids)}):
            found.setdefault(entry_id, []).append(Posting(Account(AccountKind(kind), owner, sub), amount))
    return found


@cache
def _postings_of(asset: Asset) -> Select[Any, Any, Any, Any, Any]:
    table = POSTINGS[asset]
    return (
        select(table.c.entry_id, ACCOUNT.c.kind, ACCOUNT.c.owner, ACCOUNT.c.sub, table.c.amount)
        .join(ACCOUNT, ACCOUNT.c.id == table.c.account_id)
        .where(table.c.entry_id.in_(bindparam("entries", expanding=True)))
        .order_by(table.c.entry_id, table.c.line)
    )


@cache
def _gpu_sums() -> Select[Any, Any, Any, Any, Any, Any, Any]:
    """All standing usage of one GPU."""
    return (
        select(
            _sum(USAGE.c.gpu_ms),
            _sum(USAGE.c.gpu_ms * METER.c.share_milli),
            _sum(USAGE.c.dc),
            _sum(USAGE.c.utilised_gpu_ms),
            _sum(USAGE.c.energy_mj),
            func.coalesce(func.min(USAGE.c.at_ms), 0),
            func.coalesce(func.max(USAGE.c.at_ms), 0),
        )
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(METER.c.gpu_id == bindparam("gpu"), standing())
    )


def _cash_flow(session: Session, whose: Any, before: int | None, limit: int) -> Page[CashFlow]:
    """The rows of the newest epochs that hold at least ``limit`` rows together."""
    size = max(1, min(limit, MAX_LIMIT))
    counts = (
        select(REWARD.c.epoch, func.count().label("rows"))
        .where(whose, REWARD.c.epoch < (2**62 if before is None else before))
        .group_by(REWARD.c.epoch)
        .order_by(REWARD.c.epoch.desc())
        .limit(size + 1)
    )
    chosen, rows = _whole_epochs(session.execute(counts).all(), size), list[CashFlow]()
    if chosen.epochs:
        names = ("gpu_id", "holder", "pool", "operator", "gpu_ms", "dc", "wei")
        found = session.execute(
            select(REWARD.c.epoch, EPOCH.c.start_ms, EPOCH.c.end_ms, *(REWARD.c[name] for name in names))
            .join(EPOCH, EPOCH.c.n == REWARD.c.epoch)
            .where(whose, REWARD.c.epoch.in_(chosen.epochs))
            .order_by(REWARD.c.epoch.desc(), REWARD.c.gpu_id, REWARD.c.holder, REWARD.c.pool)
        )
        rows = [CashFlow(*row) for row in found]
    return Page(tuple(rows), chosen.next_cursor)


@dataclass(frozen=True, slots=True)
class _Chosen:
    epochs: tuple[int, ...]
    next_cursor: int | None


def _whole_epochs(counts: Sequence[Row], size: int) -> _Chosen:
    chosen: list[int] = []
    total = 0
    for number, rows in counts:
        if total >= size:
            return _Chosen(tuple(chosen), chosen[-1])
        chosen.append(number)
        total += rows
    return _Chosen(tuple(chosen), None)


def _sum_rewards(session: Session, whose: Any) -> Earnings:
    gpus_, epochs_, gpu_ms, dc = session.execute(
        select(
            func.count(REWARD.c.gpu_id.distinct()),
            func.count(REWARD.c.epoch.distinct()),
            _sum(REWARD.c.gpu_ms),
            _sum(REWARD.c.dc),
        ).where(whose)
    ).one()
    wei = sum(session.execute(select(REWARD.c.wei).where(whose)).scalars())
    return Earnings(gpus_, epochs_, int(gpu_ms), int(dc), wei)


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)
