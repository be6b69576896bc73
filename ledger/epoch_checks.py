"""Checkers of closed epochs: burned is what became final, pay is bounded and split whole, the file says so."""

import zlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select
from sqlmodel import Session

from ledger import accounts
from ledger.accounts import Asset
from ledger.allocate import GpuUsage, Payout, Reward, allocate
from ledger.audit import Check, Finding
from ledger.book import ACCOUNT, ENTRY, POSTINGS, Book
from ledger.booking import close_source_id
from ledger.closing import EPOCH, EPOCH_FILE, EPOCH_USAGE, PAYOUT, REWARD, file_of
from ledger.entries import EntryKind
from ledger.epoch import facts_of, file_hash, read_file, verify_file
from ledger.finality import FINALITY
from ledger.meters import METER, USAGE, standing
from ledger.money import BPS, mul_div_down
from ledger.sealer import HEAD

BCT = POSTINGS[Asset.BCT]


def epochs_close_in_order(session: Session) -> Iterator[Finding]:
    """One row per epoch, without a gap, each beginning where the last ended."""
    before: Any = None
    for row in session.execute(select(EPOCH).order_by(EPOCH.c.n)):
        if before is not None and (row.n != before.n + 1 or row.start_ms != before.end_ms):
            yield Finding("ledger_epoch", str(row.n), f"it follows epoch {before.n}")
        if row.closed_ms < row.end_ms:
            yield Finding("ledger_epoch", str(row.n), "it was closed before its end")
        before = row


def pay_is_bounded(session: Session) -> Iterator[Finding]:
    """Pay ≤ value and ≤ emission + remintable; rewards and the stakers' share are exactly the pay."""
    for row in session.execute(select(EPOCH).order_by(EPOCH.c.n)):
        if row.paid_wei > min(row.value_wei, row.emission_wei + row.remintable_wei):
            yield Finding("ledger_epoch", str(row.n), f"it pays {row.paid_wei} wei, above its bound")
        rewards = sum(session.execute(select(REWARD.c.wei).where(REWARD.c.epoch == row.n)).scalars())
        payouts = sum(session.execute(select(PAYOUT.c.wei).where(PAYOUT.c.epoch == row.n)).scalars())
        share = mul_div_down(row.paid_wei, row.stake_bps, BPS)
        if not row.paid_wei == rewards + row.staking_wei == payouts + share:
            message = f"paid {row.paid_wei}, rewards {rewards}, payouts {payouts}, stakers {row.staking_wei} wei"
            yield Finding("ledger_epoch", str(row.n), message)


def burned_is_final_usage(session: Session) -> Iterator[Finding]:
    """What an epoch burned is what became final in it: by usage rows, by its leaves and by its account."""
    book = Book(session)
    for n, burned_dc in session.execute(select(EPOCH.c.n, EPOCH.c.burned_dc).order_by(EPOCH.c.n)).all():
        final = sum(dc for _, _, _, dc in _final_usage(session, n))
        leaves = session.execute(
            select(func.coalesce(func.sum(EPOCH_USAGE.c.dc), 0)).where(EPOCH_USAGE.c.epoch == n)
        ).scalar_one()
        booked = book.balance(accounts.burned(n))
        if not burned_dc == final == leaves == booked:
            message = f"{burned_dc} DC burned, {final} became final, {leaves} in leaves, {booked} booked"
            yield Finding("ledger_epoch", str(n), message)


def rewards_go_to_holders_of_the_time(session: Session) -> Iterator[Finding]:
    """Each reward stands beside exactly the usage of its GPU under that holder and pool."""
    for n in session.execute(select(EPOCH.c.n).order_by(EPOCH.c.n)).scalars().all():
        used = {(gpu, holder, pool): dc for (gpu, holder, pool), _, _, dc in _final_usage(session, n) if dc}
        rows = session.execute(
            select(REWARD.c.gpu_id, REWARD.c.holder, REWARD.c.pool, REWARD.c.dc).where(REWARD.c.epoch == n)
        )
        rewarded = {(gpu, holder, pool): dc for gpu, holder, pool, dc in rows if dc}
        for key in sorted(used.keys() | rewarded.keys()):
            if used.get(key) != rewarded.get(key):
                message = f"rewarded for {rewarded.get(key, 0)} DC of usage; the rows say {used.get(key, 0)}"
                yield Finding("ledger_reward", "/".join((str(n), *key)), message)


def pay_is_booked(session: Session) -> Iterator[Finding]:
    """The pay's entry gives each (GPU, holder) what its payout says, and cumulative payouts add up."""
    totals: dict[tuple[str, str], int] = {}
    for n, staking_wei in session.execute(select(EPOCH.c.n, EPOCH.c.staking_wei).order_by(EPOCH.c.n)).all():
        booked = _earned(session, n)
        told = {accounts.staking(n).name: staking_wei} if staking_wei else {}
        rows = session.execute(select(PAYOUT).where(PAYOUT.c.epoch == n).order_by(PAYOUT.c.gpu_id, PAYOUT.c.holder))
        for row in rows:
            pair = (row.gpu_id, row.holder)
            told[accounts.payable(*pair).name] = row.wei
            totals[pair] = totals.get(pair, 0) + row.wei
            if row.cumulative_wei != totals[pair]:
                message = f"cumulative {row.cumulative_wei} wei; the payouts sum to {totals[pair]}"
                yield Finding("ledger_payout", f"{row.gpu_id}/{row.holder}/{n}", message)
        if booked != told:
            yield Finding("ledger_epoch", str(n), "its pay entry and its payouts differ")


def files_verify(session: Session) -> Iterator[Finding]:
    """Each epoch's file has the hash of its row, allocates again to the same, and says what the rows say."""
    for row in session.execute(select(EPOCH).order_by(EPOCH.c.n)).all():
        try:
            body = file_of(session, row.n)
        except zlib.error:
            body = None
        if body is None or file_hash(body) != row.file_hash:
            yield Finding("ledger_epoch_file", str(row.n), "the file is missing or is not the one the epoch names")
            continue
        if not Book(session).find([close_source_id(row.n, row.file_hash)]):
            yield Finding("ledger_epoch", str(row.n), "no close was booked for the file that it names")
        for fault in verify_file(body).faults:
            yield Finding("ledger_epoch_file", str(row.n), fault)
        yield from _rows_against_file(session, row, body)


def epochs_are_whole(session: Session) -> Iterator[Finding]:
    """Every close that was booked has its epoch, every epoch its head, and no row is of an epoch that never closed."""
    heads = {row.epoch: row.hash for row in session.execute(select(HEAD))}
    known = {row.n: row.head for row in session.execute(select(EPOCH.c.n, EPOCH.c.head))}
    for n in sorted(heads.keys() | known.keys()):
        if heads.get(n) != known.get(n):
            yield Finding("ledger_head", str(n), "the epoch and its head differ, or one of them is missing")
    closes = session.execute(
        select(ENTRY.c.source_id).where(ENTRY.c.kind == EntryKind.CLOSE.value).order_by(ENTRY.c.id)
    ).scalars()
    for source_id in closes:
        if source_id.split("/")[1] not in {str(n) for n in known}:
            yield Finding("ledger_epoch", source_id.split("/")[1], f"{source_id} was booked and its row is gone")
    expected = {f"{kind}/{n}" for n in known for kind in (EntryKind.BURN, EntryKind.PAY)}
    kinds = [EntryKind.BURN.value, EntryKind.PAY.value]
    for entry_id, source_id in session.execute(select(ENTRY.c.id, ENTRY.c.source_id).where(ENTRY.c.kind.in_(kinds))):
        if source_id not in expected:
            yield Finding("ledger_entry", str(entry_id), f"{source_id} belongs to no closed epoch")
    yield from _rows_of_no_epoch(session, set(known))


CHECKS = [
    Check("epochs are whole", 13, epochs_are_whole),
    Check("epochs close in order", 13, epochs_close_in_order),
    Check("pay is bounded and split whole", 12, pay_is_bounded),
    Check("burned is what became final", 12, burned_is_final_usage),
    Check("rewards go to the holders of the time of use", 16, rewards_go_to_holders_of_the_time),
    Check("pay is booked", 15, pay_is_booked),
    Check("epoch files verify", 25, files_verify),
]


def _rows_of_no_epoch(session: Session, known: set[int]) -> Iterator[Finding]:
    for table in (EPOCH_USAGE, REWARD, PAYOUT, EPOCH_FILE):
        for n in session.execute(select(table.c.epoch).distinct().order_by(table.c.epoch)).scalars():
            if n not in known:
                yield Finding(table.name, str(n), "it belongs to no closed epoch")


def _final_usage(session: Session, n: int) -> list[tuple[tuple[str, str, str], str, int, int]]:
    """((GPU, holder, pool), operator, GPU-ms, DC) of usage final in an epoch, from usage and finality rows alone."""
    through = FINALITY.c.through_ms
    start = session.execute(select(func.coalesce(func.max(through), 0)).where(FINALITY.c.epoch < n)).scalar_one()
    end = session.execute(select(func.coalesce(func.max(through), 0)).where(FINALITY.c.epoch <= n)).scalar_one()
    key = (METER.c.gpu_id, USAGE.c.holder, USAGE.c.pool)
    rows = session.execute(
        select(*key, func.max(METER.c.operator), func.sum(USAGE.c.gpu_ms), func.sum(USAGE.c.dc))
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(USAGE.c.accepted_ms >= start, USAGE.c.accepted_ms < end, standing())
        .group_by(*key)
    )
    return [((gpu, who, pool), operator, int(ms), int(dc)) for gpu, who, pool, operator, ms, dc in rows]


def _earned(session: Session, n: int) -> dict[str, int]:
    """Wei by the name of the account that the epoch's pay entry gave them to."""
    rows = session.execute(
        select(ACCOUNT.c.name, BCT.c.amount)
        .join(BCT, BCT.c.account_id == ACCOUNT.c.id)
        .join(ENTRY, ENTRY.c.id == BCT.c.entry_id)
        .where(ENTRY.c.source_id == f"pay/{n}")
    )
    return {name: amount for name, amount in rows if amount > 0}


def _rows_against_file(session: Session, row: Any, body: bytes) -> Iterator[Finding]:
    given, content = read_file(body)
    result = allocate(given)
    totals = result.totals
    stated = (row.burned_dc, row.gpu_ms, row.value_wei, row.emission_wei, row.remintable_wei, row.paid_wei)
    computed = (
        totals.burned_dc,
        totals.gpu_ms,
        totals.value_wei,
        totals.emission_wei,
        totals.remintable_wei,
        totals.paid_wei,
    )
    bounds = (row.start_ms, row.end_ms, row.price_usd_e18, row.price_source, row.stake_bps)
    told = (given.start_ms, given.end_ms, given.price_usd_e18, given.price_source, given.stake_bps)
    if (stated, bounds) != (computed, told):
        yield Finding("ledger_epoch", str(row.n), "its row and its file differ")
    facts = facts_of(content)
    kept = (row.payout_root, row.usage_root, row.head, row.closed_ms, row.settlement)
    if kept != (result.payout_root, result.usage_root, facts.head, facts.closed_ms, facts.settlement):
        yield Finding("ledger_epoch", str(row.n), "its roots, head or close differ from those of its file")
    expected = {
        REWARD: set(result.rewards),
        PAYOUT: {payout for payout in result.payouts if payout.wei},
        EPOCH_USAGE: set(result.usages),
    }
    for table, shape in ((REWARD, Reward), (PAYOUT, Payout), (EPOCH_USAGE, GpuUsage)):
        columns = [table.c[name] for name in shape._fields]
        found = {shape(*values) for values in session.execute(select(*columns).where(table.c.epoch == row.n))}
        for odd in sorted(found ^ expected[table])[:1]:
            yield Finding(table.name, f"{row.n}/{odd.gpu_id}", "this row and the epoch's file differ")
