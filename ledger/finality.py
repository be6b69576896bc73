"""Finality: moves usage that can no longer be undone into its epoch, in the caller's transaction.

Usage accepted at t becomes final at t + ``final_after_ms``, and counts in the epoch that contains that moment. Each
step of the watermark is a row that covers one stretch of acceptance times and names its epoch, so which usage is in
which epoch can be read off later whatever the settings are then.
"""

from collections.abc import Iterator

from sqlalchemy import func, insert, select
from sqlmodel import Session

from ledger import accounts, booking, totals
from ledger.book import Book
from ledger.collection import collection_paused
from ledger.epoch import EpochClock
from ledger.meters import USAGE
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
        self._book.lock(())  # the watermark stays where it is from here on
        with collection_paused():
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
        used = totals.gpus_used(self._session, start_ms, end_ms)
        tails = self._book.lock({accounts.usage_pending(gpu_id) for gpu_id in used})
        added = totals.sums(self._session, start_ms, end_ms)
        tails |= self._book.lock({accounts.usage_final(one.gpu_id, epoch) for one in added if one.dc})
        entries = [booking.finality_step(epoch, end_ms, at_ms=at_ms)]
        entries += [
            booking.finality(one.gpu_id, epoch, one.dc, source_id=f"final/{epoch}/{end_ms}/{one.gpu_id}", at_ms=at_ms)
            for one in added
            if one.dc
        ]
        self._book.append(entries, tails)
        totals.keep(self._session, end_ms, added)
        return sum(one.dc for one in added)
