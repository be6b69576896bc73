"""The journal: appends entries and answers balances. Each posting carries its account's balance after it.

So a balance is the last posting of its account, nothing mutable can disagree with the entries, and the database
refuses a balance below zero. The caller owns the transaction; nothing here commits. On PostgreSQL one advisory lock
stands before every booking (locks on the accounts' rows would write each row); on SQLite the transaction already has
the only write lock.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Select, Table, func, select, text
from sqlmodel import Session

from ledger import tables
from ledger.accounts import Account, AccountKind, Asset
from ledger.bulk import among, among_given, insert_returning, insert_tuples, on_postgresql
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

_LOCK = select(func.pg_advisory_xact_lock(0x6C6564676572))
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
        if tails is None:
            self.lock(())  # nobody books one of them after it was not found
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

    def append_new(self, entries: Sequence[Entry], tails: Tails) -> list[int]:
        """The same for entries of which the caller, holding the lock, has found that none is booked."""
        for entry in entries:
            check(entry)
        ids = self._write(entries, tails)
        return [ids[entry.source_id] for entry in entries]

    def lock(self, accounts: Collection[Account]) -> Tails:
        """The ends of accounts, which nobody else can move until the transaction is over."""
        if on_postgresql(self._session):
            self._session.execute(_LOCK)
        tails = self._ends(accounts)
        return tails | self._create([account for account in accounts if account not in tails])

    def balance(self, account: Account) -> int:
        """In the asset's smallest unit; 0 for an account that was never used."""
        return self.balances([account])[account]

    def balances(self, accounts: Collection[Account]) -> dict[Account, int]:
        return dict.fromkeys(accounts, 0) | {account: tail.balance for account, tail in self._ends(accounts).items()}

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

    def _write(self, entries: Sequence[Entry], tails: Tails | None) -> dict[str, int]:
        if tails is None:
            tails = self.lock({posting.account for entry in entries for posting in entry.postings})
        lines = _lines(entries, tails)
        ids = self._insert_entries(entries)
        for asset, rows in lines.items():
            whole = ((ids[source_id], *row) for source_id, *row in rows)
            insert_tuples(self._session, POSTINGS[asset], _LINE, whole)
        return ids

    def _insert_entries(self, entries: Sequence[Entry]) -> dict[str, int]:
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

    def _create(self, missing: Collection[Account]) -> Tails:
        names = {account.name: account for account in sorted(missing)}
        values = [
            {"name": name, "kind": account.kind.value, "owner": account.owner, "sub": account.sub}
            for name, account in names.items()
        ]
        rows = insert_returning(self._session, ACCOUNT, values, ("name", "id"))
        return {names[name]: Tail(account_id, 0, 0) for name, account_id in rows}

    def _ends(self, accounts: Collection[Account]) -> Tails:
        """Of the accounts that exist."""
        tails: Tails = {}
        for asset in {account.asset for account in accounts}:
            names = {account.name: account for account in accounts if account.asset is asset}
            rows = self._session.execute(_ends_of(asset), {"names": list(names)}).all()
            for name, account_id, nth, balance in rows:
                tails[names[name]] = Tail(account_id, nth or 0, balance or 0)
        return tails


@cache
def _ends_of(asset: Asset) -> Select[Any, Any, Any, Any]:
    """The last postings of the accounts named; building it takes longer than asking it.

    No join: PostgreSQL would read all postings for it as long as it believes them to be few.
    """
    table = POSTINGS[asset]
    ends = [
        select(column).where(table.c.account_id == ACCOUNT.c.id).order_by(table.c.nth.desc()).limit(1)
        for column in (table.c.nth, table.c.balance)
    ]
    columns = [end.correlate(ACCOUNT).scalar_subquery() for end in ends]
    return select(ACCOUNT.c.name, ACCOUNT.c.id, *columns).where(among_given(ACCOUNT.c.name, "names"))


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
