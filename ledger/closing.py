"""Closing an epoch: gathers what `allocate` needs from the rows, and books and keeps what it answers.

In the caller's transaction. Decides no amount: `ledger.allocate` does.
"""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import func, insert, select
from sqlmodel import Session

from fabric.wire.hashing import keccak256
from fabric.wire.merkle import root
from ledger import accounts, booking
from ledger.allocate import EpochAllocation, EpochInput, Exit, GpuUsage, Payout, Reward, allocate
from ledger.book import Book
from ledger.bulk import insert_tuples
from ledger.collection import collection_paused
from ledger.epoch import CloseFacts, EpochClock, epoch_file, file_hash, read_file
from ledger.errors import EpochNotOver, EpochOutOfOrder
from ledger.finality import FINALITY
from ledger.leaves import lease_leaf
from ledger.meters import METER, USAGE, standing
from ledger.money import BPS
from ledger.sealer import Sealer
from ledger.settings import NOT_SETTLED, LedgerSettings
from ledger.split import AvailableLine, Payee, PoolTerms, UsageLine
from ledger.tables import EpochFileRow, EpochRow, EpochUsageRow, PayoutRow, RewardRow, table_of

EPOCH, EPOCH_FILE = table_of(EpochRow), table_of(EpochFileRow)
EPOCH_USAGE, REWARD, PAYOUT = table_of(EpochUsageRow), table_of(RewardRow), table_of(PayoutRow)

_FAST = 1
TEST_PRICE = "test"


@dataclass(frozen=True, slots=True)
class Pooled:
    """Terms by pool, and availability lines for those that share."""

    terms: Mapping[str, PoolTerms]
    available: Sequence[AvailableLine]


@dataclass(frozen=True, slots=True)
class EpochTerms:
    """What a close depends on beside the ledger's rows.

    Attributes:
        price_usd_e18: the oracle's price for the pay bound; none = the settings' test price.
        price_source: who gave the price; ``test`` with the test price.
        pools: terms in force, by pool; a pool that is missing is a pool of one.
        available: availability lines, for pools with a shared part.
        pooled: gives both for the pools that the epoch's usage names, when they are not known before.
        payer_salt: hashes payers in the epoch file, so that the public can count them but not name them.
        settlement: how the epoch is settled, in words.
        stake_bps: the stakers' share that the chain says; none = the settings'.
        exits: what every account was given back since the beginning.
    """

    price_usd_e18: int | None = None
    price_source: str = TEST_PRICE
    pools: Mapping[str, PoolTerms] = field(default_factory=dict)
    available: Sequence[AvailableLine] = ()
    pooled: Callable[[Collection[str]], "Pooled"] | None = None
    payer_salt: bytes = b""
    settlement: str = NOT_SETTLED
    stake_bps: int | None = None
    exits: Sequence[Exit] = ()


class Closing:
    """Closes epochs of one ledger."""

    def __init__(self, session: Session, settings: LedgerSettings, book: Book) -> None:
        self._session = session
        self._settings = settings
        self._book = book
        self._epochs = EpochClock(settings.genesis_ms, settings.epoch_ms)

    def close(self, n: int, terms: EpochTerms, *, at_ms: int) -> EpochAllocation:
        """Close epoch ``n``, or answer what its close answered; all usage up to its end must be final."""
        body = file_of(self._session, n)
        if body is not None:
            return allocate(read_file(body)[0])
        self._expect_turn(n, at_ms)
        span = span_of(self._session, n)
        with collection_paused():
            given = self._input(n, terms, span)
            result = allocate(given)
            self._book_close(result, at_ms)
            self._keep(given, result, terms, self._payers(span, terms.payer_salt), at_ms)
        return result

    def _expect_turn(self, n: int, at_ms: int) -> None:
        if at_ms < self._epochs.end(n):
            raise EpochNotOver(f"epoch {n} ends at {self._epochs.end(n)} ms and it is {at_ms} ms")
        last = self._session.execute(select(func.max(EPOCH.c.n))).scalar_one()
        due = n if last is None else last + 1
        if last is None:
            first = self._session.execute(select(func.min(FINALITY.c.epoch))).scalar_one()
            due = n if first is None else min(n, first)
        if n != due:
            raise EpochOutOfOrder(f"epoch {due} is the next to close, not {n}; epochs close in order")

    def _input(self, n: int, terms: EpochTerms, span: tuple[int, int]) -> EpochInput:
        lines = self._lines(span)
        pooled = Pooled(terms.pools, terms.available)
        if terms.pooled is not None:
            pooled = terms.pooled({line.pool for line in lines})
        return EpochInput(
            epoch=n,
            start_ms=self._epochs.start(n),
            end_ms=self._epochs.end(n),
            lines=lines,
            gpus=self._gpus(n, span),
            available=pooled.available,
            pools=pooled.terms,
            previous=self._previous(),
            price_usd_e18=terms.price_usd_e18 or self._settings.test_price_usd_e18,
            price_source=terms.price_source,
            emission_wei=self._settings.schedule.emission_wei(n),
            remintable_wei=self._book.balance(accounts.remintable()),
            stake_bps=self._settings.stake_bps if terms.stake_bps is None else terms.stake_bps,
            exits=terms.exits,
        )

    def _lines(self, span: tuple[int, int]) -> list[UsageLine]:
        key = (METER.c.gpu_id, USAGE.c.holder, USAGE.c.pool)
        sums = (func.max(METER.c.operator), func.sum(USAGE.c.gpu_ms), func.sum(USAGE.c.dc))
        rows = self._session.execute(_final(span).with_only_columns(*key, *sums).group_by(*key)).all()
        lines = (UsageLine(gpu, who, pool, operator, int(ms), int(dc)) for gpu, who, pool, operator, ms, dc in rows)
        return [line for line in lines if line.gpu_ms or line.dc]

    def _gpus(self, n: int, span: tuple[int, int]) -> list[GpuUsage]:
        payers = self._payers_by_gpu(n)
        gpus: list[GpuUsage] = []
        for gpu_id, leases in groupby(leases_in(self._session, span), key=itemgetter(0)):
            rows = [row for row in leases if row[2] or row[3]]
            if rows:
                leaves = [lease_leaf(lease, ms, dc, receipt) for _, lease, ms, dc, receipt in rows]
                gpu_ms, dc = sum(row[2] for row in rows), sum(row[3] for row in rows)
                gpus.append(GpuUsage(gpu_id, gpu_ms, dc, root(leaves), *payers.get(gpu_id, (0, 0))))
        return gpus

    def _payers_by_gpu(self, n: int) -> dict[str, tuple[int, int]]:
        """Per GPU, over the last epochs: how many customers paid, and the largest one's share in bps, rounded down."""
        span = span_of(self._session, max(0, n - self._settings.payer_epochs + 1), n)
        key = (METER.c.gpu_id, METER.c.customer)
        rows = self._session.execute(
            _final(span)
            .with_only_columns(METER.c.gpu_id, func.sum(USAGE.c.dc))
            .group_by(*key)
            .having(func.sum(USAGE.c.dc) > 0)
            .order_by(METER.c.gpu_id)
        )
        found: dict[str, tuple[int, int]] = {}
        for gpu_id, group in groupby(rows, key=itemgetter(0)):
            paid = [int(dc) for _, dc in group]
            found[gpu_id] = (len(paid), max(paid) * BPS // sum(paid))
        return found

    def _payers(self, span: tuple[int, int], salt: bytes) -> dict[str, int]:
        rows = self._session.execute(
            _final(span)
            .with_only_columns(METER.c.customer, func.sum(USAGE.c.dc))
            .group_by(METER.c.customer)
            .having(func.sum(USAGE.c.dc) > 0)
        )
        return {"0x" + keccak256(salt, customer.encode()).hex(): int(dc) for customer, dc in rows}

    def _previous(self) -> dict[Payee, int]:
        """The last cumulative payout of every (GPU, holder)."""
        later = PAYOUT.alias()
        last = (
            select(func.max(later.c.epoch))
            .where(later.c.gpu_id == PAYOUT.c.gpu_id, later.c.holder == PAYOUT.c.holder)
            .correlate(PAYOUT)
            .scalar_subquery()
        )
        columns = (PAYOUT.c.gpu_id, PAYOUT.c.holder, PAYOUT.c.cumulative_wei)
        rows = self._session.execute(select(*columns).where(PAYOUT.c.epoch == last))
        return {(gpu_id, holder): cumulative for gpu_id, holder, cumulative in rows}

    def _book_close(self, result: EpochAllocation, at_ms: int) -> None:
        n = result.epoch
        final_dc = [(usage.gpu_id, usage.dc) for usage in result.usages]
        paid = [(payout.gpu_id, payout.holder, payout.wei) for payout in result.payouts]
        entries = [
            booking.burn(n, final_dc, source_id=f"burn/{n}", at_ms=at_ms),
            booking.pay(
                n,
                paid,
                staking_wei=result.totals.staking_wei,
                emission_wei=result.totals.emission_wei,
                source_id=f"pay/{n}",
                at_ms=at_ms,
            ),
        ]
        self._book.append(entries)

    def _keep(
        self, given: EpochInput, result: EpochAllocation, terms: EpochTerms, payers: Mapping[str, int], at_ms: int
    ) -> None:
        sealer = Sealer(self._session)
        head = sealer.seal(at_ms)
        sealer.mark(result.epoch)
        facts = CloseFacts(closed_ms=at_ms, head=head, payers=payers, settlement=terms.settlement)
        body = epoch_file(given, result, facts)
        address = file_hash(body)
        totals = result.totals
        row = EpochRow(
            n=given.epoch,
            start_ms=given.start_ms,
            end_ms=given.end_ms,
            closed_ms=at_ms,
            gpu_ms=totals.gpu_ms,
            burned_dc=totals.burned_dc,
            price_usd_e18=given.price_usd_e18,
            price_source=given.price_source,
            value_wei=totals.value_wei,
            emission_wei=totals.emission_wei,
            remintable_wei=totals.remintable_wei,
            paid_wei=totals.paid_wei,
            staking_wei=totals.staking_wei,
            stake_bps=given.stake_bps,
            payout_root=result.payout_root,
            usage_root=result.usage_root,
            file_hash=address,
            head=head,
            settlement=terms.settlement,
        )
        self._session.add(row)
        self._session.flush()
        self._session.execute(insert(EPOCH_FILE).values(epoch=given.epoch, body=zlib.compress(body, _FAST)))
        self._keep_lines(result)
        self._book.append([booking.close(given.epoch, address, at_ms=at_ms)])

    def _keep_lines(self, result: EpochAllocation) -> None:
        for table, shape, lines in (
            (EPOCH_USAGE, GpuUsage, result.usages),
            (REWARD, Reward, result.rewards),
            (PAYOUT, Payout, [payout for payout in result.payouts if payout.wei]),
        ):
            rows = ((result.epoch, *line) for line in lines)
            insert_tuples(self._session, table, ("epoch", *shape._fields), rows)


def span_of(session: Session, first: int, last: int | None = None) -> tuple[int, int]:
    """Bounds of the acceptance times of usage final in the epochs ``first`` to ``last``."""
    through = FINALITY.c.through_ms
    below = select(func.coalesce(func.max(through), 0)).where(FINALITY.c.epoch < first)
    upto = select(func.coalesce(func.max(through), 0)).where(FINALITY.c.epoch <= (first if last is None else last))
    return session.execute(below).scalar_one(), session.execute(upto).scalar_one()


def leases_in(
    session: Session, span: tuple[int, int], gpu_id: str | None = None
) -> Iterator[tuple[str, str, int, int, bytes]]:
    """(GPU, lease, GPU-ms, DC, hash of its last receipt counted), by GPU and lease; of one GPU if given."""
    key = (METER.c.gpu_id, METER.c.lease_id)
    sums = (
        func.sum(USAGE.c.gpu_ms).label("ms"),
        func.sum(USAGE.c.dc).label("dc"),
        func.max(USAGE.c.entry_id).label("last"),
    )
    usage = _final(span) if gpu_id is None else _final(span).where(METER.c.gpu_id == gpu_id)
    grouped = usage.with_only_columns(*key, *sums).group_by(*key).subquery()
    last = USAGE.alias()
    rows = session.execute(
        select(grouped.c.gpu_id, grouped.c.lease_id, grouped.c.ms, grouped.c.dc, last.c.receipt_hash)
        .join(last, last.c.entry_id == grouped.c.last)
        .order_by(grouped.c.gpu_id, grouped.c.lease_id)
    )
    for found, lease_id, ms, dc, receipt_hash in rows:
        yield found, lease_id, int(ms), int(dc), receipt_hash


def file_of(session: Session, n: int) -> bytes | None:
    """The bytes of a closed epoch's file, unpacked; none when the epoch is not closed."""
    packed = session.execute(select(EPOCH_FILE.c.body).where(EPOCH_FILE.c.epoch == n)).scalar_one_or_none()
    return None if packed is None else zlib.decompress(packed)


def _final(span: tuple[int, int]) -> Any:
    """Standing usage whose acceptance lies in the span, with its meter."""
    start, end = span
    return (
        select(USAGE)
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(USAGE.c.accepted_ms >= start, USAGE.c.accepted_ms < end, standing())
    )
