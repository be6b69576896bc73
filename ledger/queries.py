"""What people ask the ledger: entries, a GPU's cash flow, what pools, operators and holders earned, epochs, proofs.

Reads only and answers plain values; pages go by a cursor that is the last row seen. Who may see what is the caller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, String, bindparam, func, or_, select
from sqlmodel import Session

from fabric.wire.merkle import levels, proof_in
from ledger import totals
from ledger.accounts import Account, AccountKind, Asset, asset_of
from ledger.allocate import GpuUsage, Payout, payout_leaves, usage_leaves
from ledger.book import ACCOUNT, ENTRY, IS_PENDING, POSTINGS
from ledger.bulk import among_given, fetch
from ledger.closing import EPOCH, EPOCH_USAGE, PAYOUT, REWARD
from ledger.entries import FLOWS, EntryKind, Posting
from ledger.meters import METER
from ledger.pools import as_of

MAX_LIMIT = 1000
Item = TypeVar("Item")
Rows = Sequence[Sequence[Any]]


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
    given = {"customer": customer, "lease_id": lease_id, "before": before}
    asked = {name: value for name, value in given.items() if value is not None}
    rows, cursor = _page(session, _entries_by(*asked), asked, limit)
    return Page(_entry_views(session, rows), cursor)


def epochs(session: Session, *, before: int | None = None, limit: int = 100) -> Page[EpochView]:
    """Closed epochs, newest first."""
    rows, cursor = _page(session, _epochs_before(), {"before": 2**62 if before is None else before}, limit)
    return Page(tuple(EpochView(*row) for row in rows), cursor)


def entries_since(session: Session, after: int, *, customer: str, limit: int = 100) -> list[EntryView]:
    """A customer's entries behind a number, oldest first."""
    wanted = select(ENTRY).where(ENTRY.c.customer == customer, ENTRY.c.id > after).order_by(ENTRY.c.id)
    return list(_entry_views(session, session.execute(wanted.limit(limit)).all()))


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
    meter = session.execute(_newest_meter(), {"gpu": gpu_id}).one_or_none()
    if meter is None:
        return None
    used, rewarded = totals.life(session, gpu_id), totals.rewarded(session, gpu_id)
    wei = sum(session.execute(_earned_of_gpu(), {"gpu": gpu_id}).scalars())
    sums: Sequence[int] = (0,) * 7 if used is None else used[1:-1]
    values: list[Any] = [gpu_id, *meter, *sums, 0 if rewarded is None else rewarded.dc, wei]
    return GpuView(*values)


def gpu_cash_flow(session: Session, gpu_id: str, *, before: int | None = None, limit: int = 100) -> Page[CashFlow]:
    """A GPU's rewards by epoch, newest first; they stay with the GPU whoever holds it. Pages never cut an epoch."""
    return _cash_flow(session, "gpu_id", gpu_id, before, limit)


def cash_flow(
    session: Session, party: Party, name: str, *, before: int | None = None, limit: int = 100
) -> Page[CashFlow]:
    """Rewards of a pool, operator or holder by epoch, newest first. Pages never cut an epoch."""
    return _cash_flow(session, party.value, _name_of(party, name), before, limit)


def earnings(session: Session, party: Party, name: str) -> Earnings:
    """What a pool, operator or holder earned in all closed epochs."""
    return _sum_rewards(session, party.value, _name_of(party, name))


def pending_dc(session: Session) -> int:
    """Charged and not final yet, over all GPUs."""
    return int(session.execute(_pending_balances()).scalar_one())


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
    session: Session, wanted: Select, values: dict[str, Any], limit: int
) -> tuple[list[tuple[Any, ...]], int | None]:
    """The first rows of a statement that takes ``size``, and the first column of the last one when more follow."""
    size = max(1, min(limit, MAX_LIMIT))
    rows = fetch(session, wanted, {**values, "size": size + 1})
    return rows[:size], rows[size - 1][0] if len(rows) > size else None


@cache
def _entries_by(*given: str) -> Select:
    """Entries newest first, where the columns given are what they must be; built once, which costs more than asking.

    Beside a lease the customer is compared as a value without an index, or all the customer's entries might be read.
    """
    wanted = select(ENTRY).order_by(ENTRY.c.id.desc()).limit(bindparam("size"))
    customer = func.coalesce(ENTRY.c.customer, "") if "lease_id" in given else ENTRY.c.customer
    conditions = {
        "customer": customer == bindparam("customer"),
        "lease_id": ENTRY.c.lease_id == bindparam("lease_id"),
        "before": ENTRY.c.id < bindparam("before"),
    }
    return wanted.where(*(conditions[name] for name in given))


@cache
def _epochs_before() -> Select:
    return select(EPOCH).where(EPOCH.c.n < bindparam("before")).order_by(EPOCH.c.n.desc()).limit(bindparam("size"))


def _entry_views(session: Session, rows: Rows) -> tuple[EntryView, ...]:
    found: dict[int, list[Posting]] = {row[0]: [] for row in rows}
    moved = frozenset[Asset]().union(*(_assets_of(row[2]) for row in rows))
    moves = [move for asset in sorted(moved) for move in fetch(session, _postings_of(asset), {"entries": list(found)})]
    named = fetch(session, _accounts_with(), {"ids": list({account_id for _, account_id, _ in moves})})
    accounts = {account_id: Account(AccountKind(kind), owner, sub) for account_id, kind, owner, sub in named}
    for entry_id, account_id, amount in moves:
        found[entry_id].append(Posting(accounts[account_id], amount))
    return tuple(_entry_view(row, found[row[0]]) for row in rows)


def _entry_view(row: Sequence[Any], postings: Sequence[Posting]) -> EntryView:
    columns: list[Any] = [*row, tuple(postings)]
    return EntryView(*columns)


@cache
def _assets_of(kind: str) -> frozenset[Asset]:
    """What an entry of this kind can move."""
    flow = FLOWS[EntryKind(kind)]
    return frozenset(asset_of(account) for account in flow.out_of | flow.into)


@cache
def _postings_of(asset: Asset) -> Select:
    """Without their accounts: PostgreSQL, which expects more postings of an entry, would read all accounts to join."""
    table = POSTINGS[asset]
    return (
        select(table.c.entry_id, table.c.account_id, table.c.amount)
        .where(among_given(table.c.entry_id, "entries"))
        .order_by(table.c.entry_id, table.c.line)
    )


@cache
def _accounts_with() -> Select:
    return select(ACCOUNT.c.id, ACCOUNT.c.kind, ACCOUNT.c.owner, ACCOUNT.c.sub).where(among_given(ACCOUNT.c.id, "ids"))


@cache
def _pending_balances() -> Select:
    """The sum of what stands in all accounts of pending usage."""
    return _balances(Asset.DC, _sum).where(IS_PENDING)


@cache
def _earned_of_gpu() -> Select:
    """What holders of a GPU were ever paid for it: what they can claim and what they have claimed."""
    paid = ACCOUNT.c.kind.in_([AccountKind.PAYABLE.value, AccountKind.CLAIMED.value])
    return _balances(Asset.BCT, lambda balance: balance).where(ACCOUNT.c.owner == bindparam("gpu"), paid)


def _balances(asset: Asset, shown: Callable[[Any], Any]) -> Select:
    """Of the last postings of accounts."""
    posting = POSTINGS[asset]
    other = posting.alias()
    last = select(func.max(other.c.nth)).where(other.c.account_id == ACCOUNT.c.id).correlate(ACCOUNT).scalar_subquery()
    return (
        select(shown(posting.c.balance))
        .select_from(ACCOUNT)
        .join(posting, (posting.c.account_id == ACCOUNT.c.id) & (posting.c.nth == last))
    )


@cache
def _newest_meter() -> Select:
    return (
        select(METER.c.model, METER.c.operator, METER.c.simulated, METER.c.price_dc_per_gpu_hour)
        .where(METER.c.gpu_id == bindparam("gpu"))
        .order_by(METER.c.id.desc())
        .limit(1)
    )


def _cash_flow(session: Session, by: str, name: str, before: int | None, limit: int) -> Page[CashFlow]:
    """The rows of the newest epochs that hold at least ``limit`` rows together."""
    size = max(1, min(limit, MAX_LIMIT))
    asked = {"name": name, "before": 2**62 if before is None else before}
    rows = [CashFlow(*row) for row in fetch(session, _rewards_upto(by), {**asked, "skipped": size - 1})]
    if len(rows) < size:
        return Page(tuple(rows), None)
    older = session.execute(_older_reward(by), {"name": name, "before": rows[-1].epoch}).first()
    return Page(tuple(rows), None if older is None else rows[-1].epoch)


@cache
def _rewards_upto(by: str) -> Select:
    """Whole epochs down to that of the row behind ``skipped`` others: no more is read, however many there are."""
    ours = (_whose(by), REWARD.c.epoch < bindparam("before"))
    last = select(REWARD.c.epoch).where(*ours).order_by(REWARD.c.epoch.desc()).limit(1).offset(bindparam("skipped"))
    names = ("gpu_id", "holder", "pool", "operator", "gpu_ms", "dc", "wei")
    return (
        select(REWARD.c.epoch, EPOCH.c.start_ms, EPOCH.c.end_ms, *(REWARD.c[name] for name in names))
        .join(EPOCH, EPOCH.c.n == REWARD.c.epoch)
        .where(*ours, REWARD.c.epoch >= func.coalesce(last.scalar_subquery(), 0))
        .order_by(REWARD.c.epoch.desc(), REWARD.c.gpu_id, REWARD.c.holder, REWARD.c.pool)
    )


@cache
def _older_reward(by: str) -> Select:
    return select(REWARD.c.epoch).where(_whose(by), REWARD.c.epoch < bindparam("before")).limit(1)


def _sum_rewards(session: Session, by: str, name: str) -> Earnings:
    sums, weis = _reward_sums(by)
    gpus_, epochs_, gpu_ms, dc = session.execute(sums, {"name": name}).one()
    return Earnings(gpus_, epochs_, int(gpu_ms), int(dc), sum(wei for (wei,) in fetch(session, weis, {"name": name})))


@cache
def _reward_sums(by: str) -> tuple[Select, Select]:
    """All but the wei, which SQLite cannot add, and the wei one by one."""
    counts = (func.count(REWARD.c.gpu_id.distinct()), func.count(REWARD.c.epoch.distinct()))
    return (
        select(*counts, _sum(REWARD.c.gpu_ms), _sum(REWARD.c.dc)).where(_whose(by)),
        select(REWARD.c.wei).where(_whose(by)),
    )


def _whose(by: str) -> Any:
    """The condition on rewards that they are ``name``'s; a pool's in whatever epoch it stood."""
    column, name = REWARD.c[by], bindparam("name", type_=String())
    if by != Party.POOL:
        return column == name
    stood = as_of("", 0)[:-1]
    return or_(column == name, func.substr(column, 1, func.length(name) + len(stood)) == name + stood)


def _name_of(party: Party, name: str) -> str:
    return name.lower() if party is Party.HOLDER else name


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)
