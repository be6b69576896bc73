"""The journal: appends entries and answers balances. Each posting carries its account's balance after it.

So a balance is the last posting of its account, nothing mutable can disagree with the entries, and the database
refuses a balance below zero. The caller owns the transaction; nothing here commits. On PostgreSQL the rows of the
accounts are locked before their balances are read; on SQLite the transaction already has the only write lock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Select, Table, func, select, text
from sqlmodel import Session

from ledger import tables
from ledger.accounts import Account, AccountKind, Asset
from ledger.bulk import among, among_given, insert_returning, insert_tuples
from ledger.entries import Entry, Posting, check
from ledger.errors import InsufficientFunds, Overdrawn, SourceConflict
from ledger.tables import AccountRow, BctPostingRow, DcPostingRow, EntryRow, table_of

ACCOUNT, ENTRY = table_of(AccountRow), table_of(EntryRow)
POSTINGS: Mapping[Asset, Table] = {Asset.DC: table_of(DcPostingRow), Asset.BCT: table_of(BctPostingRow)}
NO_CHARGE = text(f"{ENTRY.name}.{tables.NO_CHARGE}")
"""Said in a question about entries of a lease that are no charges, it keeps the charges from being read."""
IS_PENDING = text(f"{ACCOUNT.name}.{tables.PENDING}")
"""Said in a question about accounts of pending usage, it keeps all others from being read."""
CHUNK = 500

_LINE = ("entry_id", "line", "account_id", "nth", "amount", "balance", "is_source")

Item = TypeVar("Item")


@dataclass(slots=True)
class Tail:
    """The end of an account: its row's id, how many postings it has and its balance."""

    account_id: int
    nth: int
    balance: int


Tails = dict[Account, Tail]


class Book:
    """Entries of one database, inside the caller's session and transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, entries: Sequence[Entry], tails: Tails | None = None) -> list[int]:
        """Book entries in order; those whose ``source_id`` is booked already change nothing. Returns their ids.

        Args:
            entries: each passes both checks of `ledger.entries`.
            tails: what `lock` returned for all their accounts, when the caller has decided by those balances.

        Raises:
            SourceConflict: a source_id is booked with other content.
            InsufficientFunds, Overdrawn: an account would fall below zero; nothing of the call is booked then.
        """
        known = self.find([entry.source_id for entry in entries])
        fresh: dict[str, Entry] = {}
        for entry in entries:
            check(entry)
            if entry.source_id in known:
                self._expect_same(entry, known[entry.source_id])
            elif fresh.setdefault(entry.source_id, entry) != entry:
                raise SourceConflict(f"{entry.source_id} is given twice with different content")
        if fresh:
            known |= self._write(list(fresh.values()), tails)
        return [known[entry.source_id] for entry in entries]

    def lock(self, accounts: Collection[Account]) -> Tails:
        """The ends of accounts, which nobody else can move until the transaction is over."""
        names = {account.name: account for account in accounts}
        tails = self._lock_known(names)
        missing = {name: account for name, account in names.items() if account not in tails}
        tails |= {account: Tail(account_id, 0, 0) for account, account_id in self._create(missing).items()}
        overtaken = {name: account for name, account in missing.items() if account not in tails}
        return tails | self._lock_known(overtaken)

    def balance(self, account: Account) -> int:
        """In the asset's smallest unit; 0 for an account that was never used."""
        return self.balances([account])[account]

    def balances(self, accounts: Collection[Account]) -> dict[Account, int]:
        names = {account.name: account for account in accounts}
        found = dict.fromkeys(accounts, 0)
        for asset in {account.asset for account in accounts}:
            wanted = [account.name for account in accounts if account.asset is asset]
            query = select(ACCOUNT.c.id, ACCOUNT.c.name).where(among(ACCOUNT.c.name, wanted))
            ids = {account_id: names[name] for account_id, name in self._session.execute(query)}
            for account_id, _, balance in self._ends(asset, list(ids)):
                found[ids[account_id]] = balance
        return found

    def find(self, source_ids: Sequence[str]) -> dict[str, int]:
        """Ids of the entries among ``source_ids`` that are booked."""
        if not source_ids:
            return {}
        query = select(ENTRY.c.source_id, ENTRY.c.id).where(among(ENTRY.c.source_id, source_ids))
        return dict(tuple(row) for row in self._session.execute(query))

    def postings(self, entry_id: int) -> list[Posting]:
        """The postings of one entry, in their order."""
        found: list[tuple[int, Posting]] = []
        for table in POSTINGS.values():
            rows = self._session.execute(
                select(table.c.line, ACCOUNT.c.kind, ACCOUNT.c.owner, ACCOUNT.c.sub, table.c.amount)
                .join(ACCOUNT, ACCOUNT.c.id == table.c.account_id)
                .where(table.c.entry_id == entry_id)
            )
            found += [
                (line, Posting(Account(AccountKind(kind), owner, sub), amount))
                for line, kind, owner, sub, amount in rows
            ]
        return [posting for _, posting in sorted(found, key=lambda pair: pair[0])]

    def _expect_same(self, entry: Entry, entry_id: int) -> None:
        kind = self._session.execute(select(ENTRY.c.kind).where(ENTRY.c.id == entry_id)).scalar_one()
        if kind != entry.kind or self.postings(entry_id) != list(entry.postings):
            raise SourceConflict(
                f"{entry.source_id} is booked with other content; a new fact needs a new source_id, "
                "a correction a reversal"
            )

    def _write(self, entries: list[Entry], tails: Tails | None) -> dict[str, int]:
        if tails is None:
            tails = self.lock({posting.account for entry in entries for posting in entry.postings})
        lines = _lines(entries, tails)
        ids = self._insert_entries(entries)
        for asset, rows in lines.items():
            whole = ((ids[source_id], *row) for source_id, *row in rows)
            insert_tuples(self._session, POSTINGS[asset], _LINE, whole)
        return ids

    def _insert_entries(self, entries: list[Entry]) -> dict[str, int]:
        reversed_ids = self.find([entry.reverses for entry in entries if entry.reverses is not None])
        values = [
            {
                "source_id": entry.source_id,
                "kind": entry.kind.value,
                "at_ms": entry.at_ms,
                "lease_id": entry.lease_id,
                "customer": entry.customer,
                "reverses_id": None if entry.reverses is None else reversed_ids[entry.reverses],
            }
            for entry in entries
        ]
        rows = insert_returning(self._session, ENTRY, values, ("source_id", "id"))
        return {row.source_id: row.id for row in rows}

    def _create(self, missing: Mapping[str, Account]) -> dict[Account, int]:
        """New accounts and their ids, without those that somebody else created meanwhile."""
        values = [
            {"name": account.name, "kind": account.kind.value, "owner": account.owner, "sub": account.sub}
            for account in sorted(missing.values())
        ]
        rows = insert_returning(self._session, ACCOUNT, values, ("name", "id"), or_skip=True)
        return {missing[name]: account_id for name, account_id in rows}

    def _lock_known(self, names: Mapping[str, Account]) -> Tails:
        """The ends of those that exist."""
        if not names:
            return {}
        query = select(ACCOUNT.c.id, ACCOUNT.c.name).where(among(ACCOUNT.c.name, sorted(names)))
        rows = self._session.execute(query.order_by(ACCOUNT.c.id).with_for_update()).all()
        found = {account_id: names[name] for account_id, name in rows}
        tails = {account_id: Tail(account_id, 0, 0) for account_id in found}
        for asset in {account.asset for account in found.values()}:
            wanted = [account_id for account_id, account in found.items() if account.asset is asset]
            for account_id, nth, balance in self._ends(asset, wanted):
                tails[account_id] = Tail(account_id, nth, balance)
        return {account: tails[account_id] for account_id, account in found.items()}

    def _ends(self, asset: Asset, account_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """(account, number of postings, balance) of the accounts that have postings."""
        if account_ids:
            rows = self._session.execute(_ends_of(asset), {"accounts": list(account_ids)}).all()
            yield from ((account_id, nth, balance) for account_id, nth, balance in rows)


@cache
def _ends_of(asset: Asset) -> Select[Any, Any, Any]:
    """The last postings of the accounts given; building it takes longer than asking it."""
    table = POSTINGS[asset]
    inner = table.alias()
    last = select(func.max(inner.c.nth)).where(inner.c.account_id == ACCOUNT.c.id).correlate(ACCOUNT).scalar_subquery()
    return (
        select(ACCOUNT.c.id, table.c.nth, table.c.balance)
        .select_from(ACCOUNT)
        .join(table, (table.c.account_id == ACCOUNT.c.id) & (table.c.nth == last))
        .where(among_given(ACCOUNT.c.id, "accounts"))
    )


def _lines(entries: Sequence[Entry], tails: Tails) -> dict[Asset, list[tuple[Any, ...]]]:
    """Rows of postings by asset, each with its entry's ``source_id`` in the place of its id; moves the tails."""
    lines: dict[Asset, list[tuple[Any, ...]]] = {asset: [] for asset in POSTINGS}
    for entry in entries:
        for number, (account, amount) in enumerate(entry.postings):
            tail, is_source = tails[account], account.is_source
            balance = tail.balance + amount
            if balance < 0 and not is_source:
                raise _overdrawn(entry, account, tail.balance, -amount)
            tail.nth, tail.balance = tail.nth + 1, balance
            row = (entry.source_id, number, tail.account_id, tail.nth, amount, balance, is_source)
            lines[account.asset].append(row)
    return lines


def chunks(items: Sequence[Item], size: int = CHUNK) -> Iterator[Sequence[Item]]:
    """Pieces small enough for one statement's parameters."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _overdrawn(entry: Entry, account: Account, balance: int, needed: int) -> InsufficientFunds | Overdrawn:
    if account.kind is AccountKind.AVAILABLE:
        return InsufficientFunds(account.owner, needed_dc=needed, available_dc=balance)
    return Overdrawn(f"{entry.source_id}: {account.name} holds {balance}, {needed} cannot leave it")
