"""Checkers of entries, postings, accounts and holds: balanced, permitted, solvent, folded, unique, immutable."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import reduce

from sqlalchemy import Select, Table, case, func, select, text
from sqlmodel import Session

from ledger.accounts import SOURCES, AccountKind, Asset, asset_of
from ledger.audit import Check, Finding
from ledger.book import ACCOUNT, ENTRY, NO_CHARGE, POSTINGS
from ledger.entries import FLOWS, EntryKind
from ledger.tables import APPEND_ONLY, WHOLE, HoldRow, table_of

HOLD = table_of(HoldRow)
_SQLITE_TRIGGERS = "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"
_POSTGRES_TRIGGERS = "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgenabled = 'O' AND NOT tgisinternal"
DC, BCT = POSTINGS[Asset.DC], POSTINGS[Asset.BCT]


def entries_balance(session: Session) -> Iterator[Finding]:
    """Postings of each entry sum to zero in each asset."""
    rows = session.execute(
        select(DC.c.entry_id, func.sum(DC.c.amount))
        .group_by(DC.c.entry_id)
        .having(func.sum(DC.c.amount) != 0)
        .order_by(DC.c.entry_id)
    )
    for entry_id, total in rows:
        yield Finding("ledger_entry", str(entry_id), f"its postings in DC sum to {total}")
    totals: dict[int, int] = defaultdict(int)
    for entry_id, amount in session.execute(select(BCT.c.entry_id, BCT.c.amount).order_by(BCT.c.entry_id)):
        totals[entry_id] += amount
    for entry_id, total in totals.items():
        if total:
            yield Finding("ledger_entry", str(entry_id), f"its postings in BCT sum to {total} wei")


def entries_are_whole(session: Session) -> Iterator[Finding]:
    """No entry lost its postings and no posting lost its entry or account."""
    for table in (DC, BCT):
        orphans = (
            select(table.c.entry_id, table.c.line)
            .join(ENTRY, ENTRY.c.id == table.c.entry_id, isouter=True)
            .join(ACCOUNT, ACCOUNT.c.id == table.c.account_id, isouter=True)
            .where(ENTRY.c.id.is_(None) | ACCOUNT.c.id.is_(None))
        )
        for entry_id, line in session.execute(orphans):
            yield Finding(table.name, f"{entry_id}/{line}", "it belongs to no entry or no account")
    for entry_id, kind in session.execute(_without_postings()):
        yield Finding("ledger_entry", str(entry_id), f"a {kind} without postings")


def flows_are_permitted(session: Session) -> Iterator[Finding]:
    """Every kind of entry moves money only between the kinds of accounts that its flow allows."""
    for asset, table in POSTINGS.items():
        sign = case((_is_negative(session, table, "amount"), -1), else_=1)
        rows = session.execute(
            _joined(table)
            .with_only_columns(ENTRY.c.kind, ACCOUNT.c.kind, sign, func.min(ENTRY.c.id))
            .group_by(ENTRY.c.kind, ACCOUNT.c.kind, sign)
            .order_by(func.min(ENTRY.c.id))
        )
        for kind, account_kind, direction, entry_id in rows:
            if not _permitted(kind, account_kind, direction, asset):
                side = "into" if direction > 0 else "out of"
                yield Finding("ledger_entry", str(entry_id), f"a {kind} moved {asset} {side} {account_kind}")
    yield from _owners_mixed(session)


def accounts_are_named(session: Session) -> Iterator[Finding]:
    """Each account bears the name of what it is: bookings find it by its name, investors by the rest."""
    parts = (func.replace(func.replace(part, "%", "%25"), "/", "%2F") for part in (ACCOUNT.c.owner, ACCOUNT.c.sub))
    name = reduce(lambda left, right: left + "/" + right, parts, ACCOUNT.c.kind)
    rows = session.execute(select(ACCOUNT).where(ACCOUNT.c.name != name).order_by(ACCOUNT.c.id))
    for row in rows:
        yield Finding("ledger_account", str(row.id), f"{row.name} is a {row.kind} of {row.owner!r}, {row.sub!r}")


def accounts_are_solvent(session: Session) -> Iterator[Finding]:
    """No account below zero but the sources; and only sources are marked as such."""
    sources = [kind.value for kind in SOURCES]
    for table in POSTINGS.values():
        below = _is_negative(session, table, "balance")
        wrong = ACCOUNT.c.kind.in_(sources) != table.c.is_source
        rows = session.execute(
            _joined(table)
            .with_only_columns(table.c.entry_id, table.c.line, ACCOUNT.c.name, table.c.balance)
            .where((below & ACCOUNT.c.kind.not_in(sources)) | wrong)
            .order_by(table.c.entry_id)
        )
        for entry_id, line, name, balance in rows:
            yield Finding(
                table.name, f"{entry_id}/{line}", f"{name} stands at {balance}, or is wrongly marked a source"
            )


def balances_are_folds(session: Session) -> Iterator[Finding]:
    """Each posting's balance is the one before plus its amount; an account's postings have no gap."""
    before = func.coalesce(func.lag(DC.c.balance).over(partition_by=DC.c.account_id, order_by=DC.c.nth), 0)
    number = func.row_number().over(partition_by=DC.c.account_id, order_by=DC.c.nth)
    folded = select(DC, before.label("before"), number.label("number")).subquery()
    rows = session.execute(
        select(folded.c.entry_id, folded.c.line, folded.c.before, folded.c.amount, folded.c.balance)
        .where((folded.c.before + folded.c.amount != folded.c.balance) | (folded.c.nth != folded.c.number))
        .order_by(folded.c.entry_id)
    )
    for entry_id, line, was, amount, balance in rows:
        message = f"{was} before and {amount} more is not {balance}, or a posting before it is missing"
        yield Finding("ledger_dc_posting", f"{entry_id}/{line}", message)
    yield from _bct_folds(session)


def sources_are_unique(session: Session) -> Iterator[Finding]:
    """One entry per source_id, one reversal per entry, and only of an entry that exists."""
    for column in (ENTRY.c.source_id, ENTRY.c.reverses_id):
        rows = session.execute(
            select(column, func.max(ENTRY.c.id)).where(column.is_not(None)).group_by(column).having(func.count() > 1)
        )
        for value, entry_id in rows:
            yield Finding("ledger_entry", str(entry_id), f"{column.name} {value} is booked twice")


def holds_end(session: Session) -> Iterator[Finding]:
    """Money is held only for a lease with an open hold of that customer."""
    last = DC.alias()
    end = select(func.max(last.c.nth)).where(last.c.account_id == ACCOUNT.c.id).correlate(ACCOUNT).scalar_subquery()
    rows = session.execute(
        select(ACCOUNT.c.owner, ACCOUNT.c.sub, DC.c.balance, HOLD.c.customer, HOLD.c.closed_ms)
        .select_from(ACCOUNT)
        .join(DC, (DC.c.account_id == ACCOUNT.c.id) & (DC.c.nth == end))
        .join(HOLD, HOLD.c.lease_id == ACCOUNT.c.sub, isouter=True)
        .where(ACCOUNT.c.kind == AccountKind.HELD.value)
        .order_by(ACCOUNT.c.id)
    )
    for customer, lease_id, balance, holder, closed_ms in rows:
        if holder != customer:
            yield Finding("ledger_hold", lease_id, f"{customer} has {balance} DC held for it without a hold")
        elif closed_ms is not None and balance:
            yield Finding("ledger_hold", lease_id, f"it has ended and {balance} DC are still held")
    yield from _holds_without_entry(session)
    yield from _ends_without_release(session)


def rows_are_protected(session: Session) -> Iterator[Finding]:
    """The database still has the triggers that refuse changes, and PostgreSQL those that check what rows name."""
    on_sqlite = session.get_bind().dialect.name == "sqlite"
    counts = Counter(session.execute(text(_SQLITE_TRIGGERS if on_sqlite else _POSTGRES_TRIGGERS)).scalars())
    for row in (*APPEND_ONLY, HoldRow):
        name = table_of(row).name
        if counts[name] < 2 + (not on_sqlite and row in WHOLE):
            yield Finding(
                name, "*", "its triggers against change, or against rows that name what is not there, are missing"
            )


CHECKS = [
    Check("entries balance", 1, entries_balance),
    Check("entries are whole", 1, entries_are_whole),
    Check("flows are permitted", 1, flows_are_permitted),
    Check("accounts are named for what they are", 2, accounts_are_named),
    Check("accounts are solvent", 2, accounts_are_solvent),
    Check("balances are folds of entries", 3, balances_are_folds),
    Check("source ids are unique", 5, sources_are_unique),
    Check("holds end", 17, holds_end),
    Check("rows are protected", 24, rows_are_protected),
]


def _joined(table: Table) -> Select:
    return (
        select(table.c.entry_id)
        .select_from(table)
        .join(ENTRY, ENTRY.c.id == table.c.entry_id)
        .join(ACCOUNT, ACCOUNT.c.id == table.c.account_id)
    )


def _is_negative(session: Session, table: Table, column: str):  # noqa: ANN202 - SQLAlchemy's element types say nothing
    value = table.c[column]
    if table is BCT and session.get_bind().dialect.name == "sqlite":
        return func.substr(value, 1, 1) >= text("x'80'")
    return value < 0


def _without_postings() -> Select:
    """Entries that lack postings they must have; of finality only the steps of the watermark have none."""
    may_be_empty = [EntryKind.CHARGE, EntryKind.UNDO, EntryKind.RELEASE, EntryKind.BURN, EntryKind.PAY, EntryKind.CLOSE]
    may_be_empty.append(EntryKind.OPEN_HOLD)
    step = (ENTRY.c.kind == EntryKind.FINAL.value) & ENTRY.c.source_id.not_like("final/%/%/%")
    return (
        select(ENTRY.c.id, ENTRY.c.kind)
        .where(ENTRY.c.kind.not_in([kind.value for kind in may_be_empty]), ~step)
        .where(~select(DC.c.line).where(DC.c.entry_id == ENTRY.c.id).exists())
        .where(~select(BCT.c.line).where(BCT.c.entry_id == ENTRY.c.id).exists())
        .order_by(ENTRY.c.id)
    )


def _permitted(kind: str, account_kind: str, direction: int, asset: Asset) -> bool:
    if kind not in set(EntryKind) or account_kind not in set(AccountKind):
        return False
    flow = FLOWS[EntryKind(kind)]
    account = AccountKind(account_kind)
    return asset_of(account) is asset and account in (flow.into if direction > 0 else flow.out_of)


def _owners_mixed(session: Session) -> Iterator[Finding]:
    kinds = [kind.value for kind, flow in FLOWS.items() if flow.one_owner]
    for table in POSTINGS.values():
        rows = session.execute(
            _joined(table)
            .with_only_columns(ENTRY.c.id, ENTRY.c.kind)
            .where(ENTRY.c.kind.in_(kinds))
            .group_by(ENTRY.c.id, ENTRY.c.kind)
            .having(func.count(ACCOUNT.c.owner.distinct()) > 1)
            .order_by(ENTRY.c.id)
        )
        for entry_id, kind in rows:
            yield Finding("ledger_entry", str(entry_id), f"a {kind} between two owners")


def _bct_folds(session: Session) -> Iterator[Finding]:
    account, nth, balance = None, 0, 0
    for row in session.execute(select(BCT).order_by(BCT.c.account_id, BCT.c.nth)):
        if row.account_id != account:
            account, nth, balance = row.account_id, 0, 0
        if (row.nth, row.balance) != (nth + 1, balance + row.amount):
            message = f"{balance} before and {row.amount} more is not {row.balance}, or a posting before it is missing"
            yield Finding("ledger_bct_posting", f"{row.entry_id}/{row.line}", message)
        nth, balance = row.nth, row.balance


def _ends_without_release(session: Session) -> Iterator[Finding]:
    """A hold's end is when its first release was booked."""
    released = (
        select(func.min(ENTRY.c.at_ms))
        .where(ENTRY.c.lease_id == HOLD.c.lease_id, NO_CHARGE, ENTRY.c.kind == EntryKind.RELEASE.value)
        .correlate(HOLD)
        .scalar_subquery()
    )
    rows = session.execute(select(HOLD.c.lease_id, HOLD.c.closed_ms, released).order_by(HOLD.c.lease_id))
    for lease_id, closed_ms, released_ms in rows:
        if closed_ms != released_ms:
            yield Finding("ledger_hold", lease_id, f"it ends at {closed_ms}; its release was booked at {released_ms}")


def _holds_without_entry(session: Session) -> Iterator[Finding]:
    kinds = [EntryKind.HOLD.value, EntryKind.OPEN_HOLD.value]
    booked = select(ENTRY.c.id).where(ENTRY.c.lease_id == HOLD.c.lease_id, NO_CHARGE, ENTRY.c.kind.in_(kinds)).exists()
    for lease_id in session.execute(select(HOLD.c.lease_id).where(~booked).order_by(HOLD.c.lease_id)).scalars():
        yield Finding("ledger_hold", lease_id, "no entry ever held anything for it")
