"""The chain's jobs: read what it says, close epochs that it is final beyond, settle them; run where the lock is held.

Decides only when. What the chain lacks or refuses is no fault of this process: it is logged once, kept for whoever
asks why an epoch waits, and tried again with the next beat.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlmodel import Session

from api import ledger_jobs, locks
from api.plane import Plane
from ledger.chain.calls import Closing
from ledger.chain.errors import ChainError
from ledger.chain.indexer import Did, Indexer
from ledger.chain.outbox import Outbox
from ledger.chain.queue import queue_of
from ledger.chain.settler import Settler
from ledger.chain.stalled import saw
from ledger.chain.statement import closing_of
from ledger.closing import file_of

_log = structlog.get_logger(__name__)
_LOCK = "chain"
_BLOCKS_PER_TICK = 500
_STEPS_PER_TICK = 10


class NotHeld(Exception):
    """Another control plane has taken over the chain's jobs."""


class ChainJobs:
    """The jobs of one control plane; `plane.chain` is there."""

    def __init__(self, plane: Plane) -> None:
        assert plane.chain is not None
        self._plane = plane
        self._link = plane.chain
        self._store = _Fenced(plane)
        self._parts: tuple[Indexer, Settler | None] | None = None

    def tick(self) -> None:
        """One beat; every transaction in it holds the lock or does nothing."""
        try:
            with self._store.write():
                pass
            indexer, settler = self._connected()
            indexed = indexer.run(_BLOCKS_PER_TICK)
            with self._store.write() as session:
                saw(session, queue_of(session).finalised, self._plane.now_ms())
            ledger_jobs.close_over(self._plane)
            if indexed is Did.HALTED:
                self._note("the indexer halted; nothing is sent until a person has looked")
            elif settler is not None:
                self._note(settler.run(_STEPS_PER_TICK).text)
        except NotHeld:
            return
        except ChainError as error:
            self._note(str(error))

    def resume(self) -> None:
        """Go on after a halt.

        Raises:
            StillHalted: the chain still contradicts what was final.
            ChainError: it does not answer.
        """
        self._connected()[0].resume()

    def _connected(self) -> tuple[Indexer, Settler | None]:
        """Indexer and settler, once the chain was reached and counts the same epochs."""
        if self._parts is None:
            plane, link = self._plane, self._link
            client = link.client()
            link.expect_epochs(plane.ledger_settings.genesis_ms, plane.ledger_settings.epoch_ms)
            indexer = Indexer(
                client.blocks(),
                plane.database,
                plane.ledger,
                link.book,
                plane.clock,
                confirmations=link.confirmations,
                held=lambda session: locks.hold(plane, session, _LOCK) is not None,
            )
            settler = None
            if link.signer is not None:
                outbox = Outbox(client, link.signer, self._store, plane.clock, link.confirmations)
                settler = Settler(client, outbox, FileClosings(plane))
            self._parts = indexer, settler
        return self._parts

    def _note(self, text: str) -> None:
        if text != self._link.settler_says:
            _log.info("settlement", says=text, close_waits=self._link.close_waits)
        self._link.settler_says = text


class FileClosings:
    """Closings of the epochs that this database closed."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def closing(self, epoch: int) -> Closing | None:
        with self._plane.database.read() as session:
            body = file_of(session, epoch)
        assert self._plane.chain is not None
        return None if body is None else closing_of(body, self._plane.chain.settlement)


class _Fenced:
    """The database, written to only while this control plane holds the chain's lock."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Raises NotHeld when another one has the lock; nothing is written then."""
        with self._plane.database.write() as session:
            if locks.hold(self._plane, session, _LOCK) is None:
                raise NotHeld
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._plane.database.read() as session:
            yield session
