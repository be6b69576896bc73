"""Finality: moves usage that can no longer be undone into its epoch, in the caller's transaction.

Usage accepted at t becomes final at t + ``final_after_ms``, and counts in the epoch that contains that moment. Each
step of the watermark is a row that covers one stretch of acceptance times and names its epoch, so which usage is in
which epoch can be read off later whatever the settings are then.
"""

from collections.abc import Iterator

from sqlalchemy import func, insert, select
from sqlmodel import Session

from ledger import accounts, booking
from ledger.book import Book
from ledger.epoch import EpochClock
from ledger.meters import METER, USAGE, standing
from ledger.settings import LedgerSettings
from ledger.tables import FinalityRow, table_of

FINALITY = table_of(FinalityRow)


class Finality:
    """The watermark below which usage is final."""

    def __init__(self, session: Session, settings: LedgerSettings) -> None:
        self._session = session
        self._settings = settings
        self._book = Book(session)
        self.epochs = EpochClock(settings.genesis_ms, settings.epoch_ms)

    def through_ms(self) -> int:
        """All usage accepted before this is final; 0 when none is."""
        return self._session.execute(select(func.coalesce(func.max(FINALITY.c.through_ms), 0))).scalar_one()

    def advance(self, now_ms: int, *, at_ms: int) -> int:
        """Move the watermark to ``now_ms - final_after_ms``; returns the DC that became final."""
        return sum(self._step(start, end, epoch, at_ms) for start, end, epoch in list(self._stretches(now_ms)))

    def _stretches(self, now_ms: int) -> Iterator[tuple[int, int, int]]:
        """(from, to, epoch) of acceptance times with usage in them, cut where an epoch ends."""
        start, delay = self.through_ms(), self._settings.final_after_ms
        while (first := self._first_accepted(start, now_ms - delay)) is not None:
            epoch = self.epochs.at(first + delay)
            end = min(now_ms, self.epochs.end(epoch)) - delay
            yield start, end, epoch
            start = end

    def _first_accepted(self, start_ms: int, end_ms: int) -> int | None:
        return self._session.execute(
            select(func.min(USAGE.c.accepted_ms)).where(USAGE.c.accepted_ms >= start_ms, USAGE.c.accepted_ms < end_ms)
        ).scalar_one()

    def _step(self, start_ms: int, end_ms: int, epoch: int, at_ms: int) -> int:
        self._session.execute(insert(FINALITY).values(through_ms=end_ms, epoch=epoch))
        self._book.lock({accounts.usage_pending(gpu_id) for gpu_id, _ in self._sums(start_ms, end_ms)})
        sums = self._sums(start_ms, end_ms)
        entries = [booking.finality_step(epoch, end_ms, at_ms=at_ms)]
        entries += [
            booking.finality(gpu_id, epoch, dc, source_id=f"final/{epoch}/{end_ms}/{gpu_id}", at_ms=at_ms)
            for gpu_id, dc in sums
            if dc
        ]
        self._book.append(entries)
        return sum(dc for _, dc in sums)

    def _sums(self, start_ms: int, end_ms: int) -> list[tuple[str, int]]:
        """(GPU, DC) of standing usage accepted in the stretch."""
        rows = self._session.execute(
            select(METER.c.gpu_id, func.sum(USAGE.c.dc))
            .join(METER, METER.c.id == USAGE.c.meter_id)
            .where(USAGE.c.accepted_ms >= start_ms, USAGE.c.accepted_ms < end_ms, standing())
            .group_by(METER.c.gpu_id)
            .order_by(METER.c.gpu_id)
        )
        return [(gpu_id, int(dc)) for gpu_id, dc in rows]
