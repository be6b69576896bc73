"""The sealed chain: each committed entry gets a link whose hash covers its postings, its usage or hold, and all before.

One sealer at a time; each run links what has been committed since. `Sealer.verify` walks the chain and names the
first bad row; entries that no run has reached yet are the tail, reported as such.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlmodel import Session

from ledger.accounts import Asset
from ledger.book import ACCOUNT, ENTRY, POSTINGS, chunks
from ledger.bulk import among_given, insert_tuples
from ledger.entries import EntryKind
from ledger.meters import METER, USAGE
from ledger.tables import HeadRow, HoldRow, LinkRow, table_of

LINK, HEAD, HOLD = table_of(LinkRow), table_of(HeadRow), table_of(HoldRow)

Heads = dict[int, list[tuple[str, bytes]]]
"""By position in the chain: what the head is known as (an epoch's number, or seen before) and its hash."""

_ENTRIES_AT_ONCE = 2_000
_LINK = ("position", "entry_id", "hash", "sealed_ms")
_canonical = json.JSONEncoder(separators=(",", ":"), default=bytes.hex).encode

GENESIS = bytes(32)
LATE_COMMIT_MS = 600_000
"""A transaction may commit this long after its entry got its id; older rows without a link were slipped in."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that the chain contradicts."""

    table: str
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class SealReport:
    """``sealed`` entries verified up to the first fault, ``tail`` entries not sealed yet."""

    sealed: int
    tail: int
    head: bytes
    fault: Fault | None


class Sealer:
    """The chain of one ledger, inside the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def seal(self, at_ms: int) -> bytes:
        """Link every committed entry that has no link; returns the head's hash. Two at once: one fails, on the key."""
        position, head = self._end()
        for entry_ids in chunks(self._unlinked(at_ms), _ENTRIES_AT_ONCE):
            links: list[tuple[int, int, bytes, int]] = []
            for entry_id, digest in self._digests(entry_ids).items():
                position, head = position + 1, link_hash(head, digest, at_ms)
                links.append((position, entry_id, head, at_ms))
            insert_tuples(self._session, LINK, _LINK, links)
        return head

    def mark(self, epoch: int) -> None:
        """Keep the head at an epoch's close."""
        position, head = self._end()
        self._session.execute(insert(HEAD).values(epoch=epoch, position=position, hash=head))

    def verify(self, now_ms: int, known_heads: Mapping[int, bytes] | None = None) -> SealReport:
        """Walk the whole chain.

        Args:
            now_ms: now; an entry older than `LATE_COMMIT_MS` behind the seal is a fault, not tail.
            known_heads: hashes by position that were seen before, kept outside the database. Only they show that the
                end of the chain was cut off together with its entries.
        """
        verified, head = 0, GENESIS
        heads = self._heads()
        for position, seen in (known_heads or {}).items():
            heads.setdefault(position, []).append(("seen before", seen))
        fault = None
        for links in self._links():
            digests = self._digests([link.entry_id for link in links])
            for link in links:
                fault = _check_link(link, verified + 1, head, digests.get(link.entry_id), self._name(link.entry_id))
                fault = fault or _check_heads(heads.pop(link.position, []), link)
                if fault is not None:
                    return SealReport(verified, self._tail(), head, fault)
                verified, head = link.position, link.hash
        heads.pop(0, None)
        fault = _first_missing_head(heads) or self._first_inserted(now_ms)
        return SealReport(verified, self._tail(), head, fault)

    def _end(self) -> tuple[int, bytes]:
        row = self._session.execute(
            select(LINK.c.position, LINK.c.hash).order_by(LINK.c.position.desc()).limit(1)
        ).one_or_none()
        return (0, GENESIS) if row is None else (row[0], row[1])

    def _unlinked(self, at_ms: int) -> list[int]:
        """Ids of entries without a link; ids far below the newest link are passed over: nothing commits there."""
        floor = select(func.coalesce(func.max(LINK.c.entry_id), 0))
        if self._session.get_bind().dialect.name == "postgresql":
            floor = floor.where(LINK.c.sealed_ms < at_ms - LATE_COMMIT_MS)
        start = self._session.execute(floor).scalar_one()
        return list(
            self._session.execute(
                select(ENTRY.c.id).where(ENTRY.c.id > start, _no_link()).order_by(ENTRY.c.id)
            ).scalars()
        )

    def _links(self) -> Iterator[Sequence[Any]]:
        after = -1
        while True:
            rows = self._session.execute(
                select(LINK).where(LINK.c.position > after).order_by(LINK.c.position).limit(_ENTRIES_AT_ONCE)
            ).all()
            if not rows:
                return
            yield rows
            after = rows[-1].position

    def _heads(self) -> Heads:
        heads: Heads = defaultdict(list)
        for row in self._session.execute(select(HEAD).order_by(HEAD.c.epoch)):
            heads[row.position].append((str(row.epoch), row.hash))
        return heads

    def _tail(self) -> int:
        return self._session.execute(select(func.count()).select_from(ENTRY).where(_no_link())).scalar_one()

    def _first_inserted(self, now_ms: int) -> Fault | None:
        """An old entry that the chain passed by."""
        newest = self._session.execute(
            select(func.max(LINK.c.entry_id)).where(LINK.c.sealed_ms < now_ms - LATE_COMMIT_MS)
        ).scalar_one()
        if self._session.get_bind().dialect.name == "sqlite":  # ids there follow the order of commits
            newest = self._session.execute(select(func.max(LINK.c.entry_id))).scalar_one()
        row = self._session.execute(
            select(ENTRY.c.id, ENTRY.c.source_id)
            .where(ENTRY.c.id <= (newest or 0), _no_link())
            .order_by(ENTRY.c.id)
            .limit(1)
        ).one_or_none()
        if row is None:
            return None
        return Fault("ledger_entry", str(row.id), f"entry {row.source_id} was inserted behind the seal")

    def _name(self, entry_id: int) -> str:
        name = self._session.execute(select(ENTRY.c.source_id).where(ENTRY.c.id == entry_id)).scalar_one_or_none()
        return name or "?"

    def _digests(self, entry_ids: Sequence[int]) -> dict[int, bytes]:
        """Digest of each entry that exists, in ascending order of id."""
        given = {"entries": list(entry_ids)}
        rows = self._session.execute(_entries(), given).all()
        postings = self._postings(given)
        usages = {row[0]: tuple(row) for row in self._session.execute(_usages(), given)}
        causes = usages | {row[0]: tuple(row) for row in self._session.execute(_holds(), given)}
        return {row[0]: entry_digest(tuple(row), postings[row[0]], causes.get(row[0])) for row in rows}

    def _postings(self, given: Mapping[str, Any]) -> Mapping[int, list[tuple[Any, ...]]]:
        found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for asset in POSTINGS:
            name = (asset.value,)
            for row in self._session.execute(_postings(asset), given).all():
                found[row[0]].append(name + row[1:])
        return found


def entry_digest(entry: Sequence[Any], postings: Sequence[Sequence[Any]], cause: Sequence[Any] | None) -> bytes:
    """SHA-256 of an entry's rows as canonical JSON; bytes as hex, so every column of every row counts.

    All are tuples or lists of columns; ``cause`` is the usage of a charge or the hold that the entry opened.
    """
    return hashlib.sha256(_canonical([entry, postings, cause]).encode()).digest()


def link_hash(previous: bytes, digest: bytes, sealed_ms: int) -> bytes:
    return hashlib.sha256(previous + digest + sealed_ms.to_bytes(8, "big")).digest()


@cache
def _entries() -> Select:
    return select(ENTRY).where(among_given(ENTRY.c.id, "entries")).order_by(ENTRY.c.id)


@cache
def _postings(asset: Asset) -> Select:
    table = POSTINGS[asset]
    return (
        select(
            table.c.entry_id,
            table.c.line,
            ACCOUNT.c.kind,
            ACCOUNT.c.owner,
            ACCOUNT.c.sub,
            ACCOUNT.c.name,
            table.c.nth,
            table.c.amount,
            table.c.balance,
            table.c.is_source,
        )
        .join(ACCOUNT, ACCOUNT.c.id == table.c.account_id, isouter=True)
        .where(among_given(table.c.entry_id, "entries"))
        .order_by(table.c.entry_id, table.c.line)
    )


@cache
def _usages() -> Select:
    meter_columns = [column for column in METER.c if column.name != "id"]
    return (
        select(USAGE, *meter_columns)
        .join(METER, METER.c.id == USAGE.c.meter_id, isouter=True)
        .where(among_given(USAGE.c.entry_id, "entries"))
    )


@cache
def _holds() -> Select:
    """What is fixed of the holds that entries of that kind opened."""
    return (
        select(ENTRY.c.id, HOLD.c.lease_id, HOLD.c.run_id, HOLD.c.customer, HOLD.c.opened_ms)
        .join(HOLD, HOLD.c.lease_id == ENTRY.c.lease_id)
        .where(among_given(ENTRY.c.id, "entries"), ENTRY.c.kind == EntryKind.HOLD.value)
    )


def _no_link() -> Any:
    return ~select(LINK.c.position).where(LINK.c.entry_id == ENTRY.c.id).exists()


def _check_link(link: Any, position: int, head: bytes, digest: bytes | None, name: str) -> Fault | None:
    if link.position != position:
        return Fault("ledger_link", str(position), f"link {position} is missing; the chain goes on at {link.position}")
    if digest is None:
        return Fault("ledger_entry", str(link.entry_id), f"entry {link.entry_id}, sealed at {position}, is gone")
    if link_hash(head, digest, link.sealed_ms) != link.hash:
        return Fault(
            "ledger_entry",
            str(link.entry_id),
            f"entry {name} or its link {position} differs from what was sealed (edited, swapped or re-linked)",
        )
    return None


def _check_heads(heads: Sequence[tuple[str, bytes]], link: Any) -> Fault | None:
    for name, known in heads:
        if known != link.hash:
            return Fault("ledger_head", name, f"the chain at {link.position} is not the head that was kept ({name})")
    return None


def _first_missing_head(heads: Heads) -> Fault | None:
    for position, kept in sorted(heads.items()):
        return Fault("ledger_head", kept[0][0], f"link {position}, a head that was kept ({kept[0][0]}), is gone")
    return None
