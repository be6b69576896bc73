"""Checkers of meters and usage: each charge is what its meter's time costs, once, within the hold and the window."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import case, func, select
from sqlmodel import Session

from ledger import accounts, totals
from ledger.accounts import AccountKind, Asset
from ledger.audit import Check, Finding
from ledger.book import ACCOUNT, ENTRY, POSTINGS, Book
from ledger.entries import EntryKind
from ledger.finality import FINALITY
from ledger.meters import METER, USAGE, standing
from ledger.pricing import PricedShare, charge_due_up
from ledger.sealer import LATE_COMMIT_MS
from ledger.tables import HoldRow, table_of
from ledger.totals import GpuTotal

DC = POSTINGS[Asset.DC]
HOLD = table_of(HoldRow)
_CLOCK_SLACK_MS = LATE_COMMIT_MS
_PAGE = 5_000


def charges_follow_meters(session: Session) -> Iterator[Finding]:
    """Along a meter's standing rows: numbers and time grow, and what was charged and short is what is due."""
    before: Any = None
    for row in _standing_rows(session):
        if before is None or before.meter_id != row.meter_id:
            before = None
        yield from _against(before, row)
        before = row


def charges_move_their_dc(session: Session) -> Iterator[Finding]:
    """A charge's entry moves exactly the DC of its usage, to its meter's GPU, out of its lease's hold."""
    into = _legs(AccountKind.USAGE_PENDING)
    out_of = _legs(AccountKind.HELD)
    rows = session.execute(
        select(USAGE.c.entry_id, USAGE.c.dc, METER.c.gpu_id, METER.c.lease_id, ENTRY.c.kind, ENTRY.c.lease_id)
        .add_columns(into.c.amount, into.c.owner, out_of.c.sub)
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .join(ENTRY, ENTRY.c.id == USAGE.c.entry_id)
        .join(into, into.c.entry_id == USAGE.c.entry_id, isouter=True)
        .join(out_of, out_of.c.entry_id == USAGE.c.entry_id, isouter=True)
        .where(
            (USAGE.c.dc != func.coalesce(into.c.amount, 0))
            | (METER.c.gpu_id != func.coalesce(into.c.owner, METER.c.gpu_id))
            | (METER.c.lease_id != func.coalesce(out_of.c.sub, METER.c.lease_id))
            | (METER.c.lease_id != ENTRY.c.lease_id)
            | (ENTRY.c.kind != EntryKind.CHARGE.value)
        )
        .order_by(USAGE.c.entry_id)
    )
    for entry_id, dc, *_ in rows:
        yield Finding("ledger_usage", str(entry_id), f"its entry does not move its {dc} DC from its lease to its GPU")


def usage_is_whole(session: Session) -> Iterator[Finding]:
    """No row of usage lost its entry or its meter."""
    rows = session.execute(
        select(USAGE.c.entry_id)
        .join(ENTRY, ENTRY.c.id == USAGE.c.entry_id, isouter=True)
        .join(METER, METER.c.id == USAGE.c.meter_id, isouter=True)
        .where(ENTRY.c.id.is_(None) | METER.c.id.is_(None))
        .order_by(USAGE.c.entry_id)
    )
    for entry_id in rows.scalars():
        yield Finding("ledger_usage", str(entry_id), "it belongs to no entry or no meter")


def charges_have_usage(session: Session) -> Iterator[Finding]:
    """Every charge has its usage row, and a lease that had a hold."""
    missing = ~select(USAGE.c.entry_id).where(USAGE.c.entry_id == ENTRY.c.id).exists()
    unheld = ~select(HOLD.c.lease_id).where(HOLD.c.lease_id == ENTRY.c.lease_id).exists()
    rows = session.execute(
        select(ENTRY.c.id, ENTRY.c.source_id)
        .where(ENTRY.c.kind == EntryKind.CHARGE.value, missing | unheld)
        .order_by(ENTRY.c.id)
    )
    for entry_id, source_id in rows:
        yield Finding("ledger_entry", str(entry_id), f"{source_id} has no usage, or its lease never had a hold")


def meters_have_usage(session: Session) -> Iterator[Finding]:
    """A meter is opened by its first usage: one without any waits to refuse that of the lease it names."""
    used = select(USAGE.c.entry_id).where(USAGE.c.meter_id == METER.c.id).exists()
    for row in session.execute(select(METER.c.id, METER.c.lease_id).where(~used).order_by(METER.c.id)):
        yield Finding("ledger_meter", str(row.id), f"no usage of lease {row.lease_id} opened it")


def undos_reverse_charges(session: Session) -> Iterator[Finding]:
    """An undo is the exact opposite of a charge, and no charge is undone after it became final."""
    charge, undo = ENTRY.alias(), ENTRY.alias()
    was, back = DC.alias(), DC.alias()
    mismatch = (
        select(undo.c.id)
        .join(charge, charge.c.id == undo.c.reverses_id, isouter=True)
        .join(was, was.c.entry_id == charge.c.id, isouter=True)
        .join(back, (back.c.entry_id == undo.c.id) & (back.c.account_id == was.c.account_id), isouter=True)
        .where(undo.c.kind == EntryKind.UNDO.value)
        .where(
            charge.c.id.is_(None)
            | (charge.c.kind != EntryKind.CHARGE.value)
            | (was.c.amount.is_not(None) & (func.coalesce(back.c.amount, 0) + was.c.amount != 0))
        )
        .order_by(undo.c.id)
        .distinct()
    )
    for entry_id in session.execute(mismatch).scalars():
        yield Finding("ledger_entry", str(entry_id), "it is not the opposite of a charge")


def gpus_bill_no_more_than_time(session: Session) -> Iterator[Finding]:
    """Σ billed ms × share of a GPU fits between its first and last use, up to the slack of late receipts."""
    rows = session.execute(
        select(
            METER.c.gpu_id,
            func.sum(USAGE.c.gpu_ms * METER.c.share_milli),
            func.max(USAGE.c.at_ms) - func.min(USAGE.c.at_ms - USAGE.c.gpu_ms),
        )
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(standing())
        .group_by(METER.c.gpu_id)
        .order_by(METER.c.gpu_id)
    )
    for gpu_id, milli_ms, window_ms in rows:
        if milli_ms > (window_ms + _CLOCK_SLACK_MS) * 1000:
            message = f"{milli_ms // 1000} GPU-ms are billed in a window of {window_ms} ms"
            yield Finding("ledger_meter", gpu_id, message)


def finality_is_booked(session: Session) -> Iterator[Finding]:
    """Each step of the watermark moved exactly the standing usage accepted in its stretch, GPU by GPU."""
    start = 0
    yield from _steps_against_entries(session)
    for row in session.execute(select(FINALITY).order_by(FINALITY.c.through_ms)).all():
        sums = session.execute(
            select(METER.c.gpu_id, func.sum(USAGE.c.dc))
            .join(METER, METER.c.id == USAGE.c.meter_id)
            .where(USAGE.c.accepted_ms >= start, USAGE.c.accepted_ms < row.through_ms, standing())
            .group_by(METER.c.gpu_id)
        )
        final = _legs(AccountKind.USAGE_FINAL)
        prefix = f"final/{row.epoch}/{row.through_ms}/"
        moved = session.execute(
            select(final.c.owner, final.c.amount)
            .join(ENTRY, ENTRY.c.id == final.c.entry_id)
            .where(ENTRY.c.source_id >= prefix, ENTRY.c.source_id < prefix + "~")
        )
        if {gpu_id: int(dc) for gpu_id, dc in sums if dc} != {gpu_id: int(dc) for gpu_id, dc in moved}:
            yield Finding(
                "ledger_finality", str(row.through_ms), "the usage of its stretch is not what its entries moved"
            )
        start = row.through_ms


def pending_is_not_final(session: Session) -> Iterator[Finding]:
    """A GPU's pending usage is the standing usage above the finality watermark, no more and no less."""
    through = select(func.coalesce(func.max(FINALITY.c.through_ms), 0)).scalar_subquery()
    rows = session.execute(
        select(METER.c.gpu_id, func.sum(case((USAGE.c.accepted_ms >= through, USAGE.c.dc), else_=0)))
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(standing())
        .group_by(METER.c.gpu_id)
        .order_by(METER.c.gpu_id)
    )
    expected = {accounts.usage_pending(gpu_id): int(dc) for gpu_id, dc in rows}
    for account, balance in Book(session).balances(list(expected)).items():
        if balance != expected[account]:
            message = f"{balance} DC are pending; the rows above the watermark sum to {expected[account]}"
            yield Finding("ledger_usage", account.owner, message)


def totals_are_sums(session: Session) -> Iterator[Finding]:
    """Each GPU's total is the one before and the standing usage that the step between them made final."""
    before: dict[str, GpuTotal] = {}
    start = 0
    for through_ms in session.execute(select(FINALITY.c.through_ms).order_by(FINALITY.c.through_ms)).scalars().all():
        added = totals.sums(session, start, through_ms)
        expected = {one.gpu_id: one for one in totals.totals(session, through_ms, added, before)}
        kept = totals.kept(session, through_ms)
        for gpu_id in sorted(expected.keys() | kept.keys()):
            if expected.get(gpu_id) != kept.get(gpu_id):
                message = "it is not the total before and the usage of its step"
                yield Finding("ledger_gpu_total", f"{gpu_id}/{through_ms}", message)
        before |= expected
        start = through_ms
    for gpu_id, through_ms in totals.without_step(session):
        yield Finding("ledger_gpu_total", f"{gpu_id}/{through_ms}", "there is no such step of finality")


CHECKS = [
    Check("finality is booked", 12, finality_is_booked),
    Check("totals of GPUs are sums", 25, totals_are_sums),
    Check("pending usage is what is not final", 12, pending_is_not_final),
    Check("charges follow their meters", 7, charges_follow_meters),
    Check("charges move their DC", 7, charges_move_their_dc),
    Check("usage is whole", 1, usage_is_whole),
    Check("charges have usage and a hold", 17, charges_have_usage),
    Check("meters have usage", 24, meters_have_usage),
    Check("undos reverse charges", 24, undos_reverse_charges),
    Check("GPUs bill no more than time", 9, gpus_bill_no_more_than_time),
]


def _standing_rows(session: Session) -> Iterator[Any]:
    rows = session.execute(
        select(USAGE, METER.c.share_milli, METER.c.price_dc_per_gpu_hour)
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(standing())
        .order_by(USAGE.c.meter_id, USAGE.c.entry_id)
        .execution_options(yield_per=_PAGE)
    )
    yield from rows


def _against(before: Any, row: Any) -> Iterator[Finding]:
    seen = (-1, 0, 0, 0) if before is None else (before.seq, before.part, before.cumulative_gpu_ms, before.charged_dc)
    seq, part, cumulative_ms, charged_dc = seen
    key = str(row.entry_id)
    if (row.seq, row.part) <= (seq, part):
        yield Finding("ledger_usage", key, f"receipt {row.seq}.{row.part} stands after {seq}.{part}")
    if row.gpu_ms < 0 or row.gpu_ms != row.cumulative_gpu_ms - cumulative_ms:
        yield Finding("ledger_usage", key, f"{cumulative_ms} ms and {row.gpu_ms} more is not {row.cumulative_gpu_ms}")
    due = charge_due_up(row.cumulative_gpu_ms, PricedShare(row.share_milli, row.price_dc_per_gpu_hour))
    if row.dc < 0 or row.charged_dc != charged_dc + row.dc or row.charged_dc + row.short_dc != max(due, charged_dc):
        message = f"{charged_dc} DC charged before, {row.dc} now, {row.short_dc} short; due in all {due}"
        yield Finding("ledger_usage", key, message)


def _steps_against_entries(session: Session) -> Iterator[Finding]:
    rows = session.execute(select(FINALITY.c.epoch, FINALITY.c.through_ms))
    kept = {f"final/{row.epoch}/{row.through_ms}": row.through_ms for row in rows}
    marks = session.execute(
        select(ENTRY.c.source_id).where(
            ENTRY.c.kind == EntryKind.FINAL.value, ENTRY.c.source_id.not_like("final/%/%/%")
        )
    ).scalars()
    booked = {mark: int(mark.rsplit("/", 1)[-1]) for mark in marks}
    for mark in sorted(kept.keys() ^ booked.keys(), key=lambda mark: (kept | booked)[mark]):
        yield Finding("ledger_finality", str((kept | booked)[mark]), f"{mark}: a row without an entry, or the reverse")


def _legs(kind: AccountKind) -> Any:
    return (
        select(DC.c.entry_id, DC.c.amount, ACCOUNT.c.owner, ACCOUNT.c.sub)
        .join(ACCOUNT, ACCOUNT.c.id == DC.c.account_id)
        .where(ACCOUNT.c.kind == kind.value)
        .subquery()
    )
