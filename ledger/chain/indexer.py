"""Follows a chain and keeps its tables: looks at the chain, lets `following` decide, and does it in one transaction.

One transaction a block: the block with what it said, and the booking of the block that became final by it. So the
process may be killed at any instant and goes on from the rows. No question is put to the chain inside a transaction.
What is final is booked once; when the chain takes back a final block, or says what the ledger rules out, the indexer
halts, keeps the reason in the cursor, and does nothing more until a person resumes it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol

import structlog
from sqlmodel import Session

from fabric.wire.clock import Clock
from ledger.chain import crediting
from ledger.chain.book import AddressBook
from ledger.chain.errors import StillHalted
from ledger.chain.events import row_of
from ledger.chain.following import Append, Block, Halt, Instruction, Look, Rest, Trail, Undo, follow
from ledger.chain.index import Index
from ledger.chain.reading import Blocks
from ledger.chain.tables import EventRow
from ledger.errors import LedgerError
from ledger.store import Ledger

_log = structlog.get_logger(__name__)


class Store(Protocol):
    """The database: transactions that write, committed at the end of the block, and such that only read."""

    def write(self) -> AbstractContextManager[Session]: ...

    def read(self) -> AbstractContextManager[Session]: ...


class Did(StrEnum):
    """What one step of the indexer did."""

    APPENDED = "appended"
    UNDONE = "undone"
    RESTED = "rested"  # the chain has nothing new
    HALTED = "halted"
    NOT_OURS = "not_ours"  # another process indexes, or was quicker


class Indexer:
    """Indexes one deployment into one database.

    Args:
        chain: where blocks and logs come from.
        store: the database.
        ledger: the ledger inside a transaction.
        book: the deployment.
        clock: of the control plane; when a halt is noted.
        confirmations: blocks that must stand on a block before it is final.
        held: whether this process is the one that indexes, asked inside each writing transaction.
    """

    def __init__(
        self,
        chain: Blocks,
        store: Store,
        ledger: Callable[[Session], Ledger],
        book: AddressBook,
        clock: Clock,
        *,
        confirmations: int,
        held: Callable[[Session], bool] = lambda _: True,
    ) -> None:
        self._chain = chain
        self._store = store
        self._ledger = ledger
        self._book = book
        self._clock = clock
        self._confirmations = confirmations
        self._held = held

    def run(self, steps: int) -> Did:
        """Steps until there is nothing to do, at most so many; returns what the last one did."""
        did = Did.RESTED
        for _ in range(steps):
            did = self.step()
            if did not in (Did.APPENDED, Did.UNDONE):
                break
        return did

    def step(self) -> Did:
        """Takes in one block, or takes back what the chain took back.

        Raises:
            ChainError: the chain does not answer, or is not the one that this database follows.
        """
        trail = self._trail()
        if trail is None:
            return Did.HALTED
        instruction = self._decide(trail)
        if isinstance(instruction, Append):
            events = [row for log in self._chain.logs(instruction.block) if (row := row_of(log, instruction.block))]
            return self._append(trail, instruction, events)
        if isinstance(instruction, Undo):
            return self._undo(trail, instruction)
        if isinstance(instruction, Halt):
            return self._halt(trail, instruction.reason)
        return Did.RESTED

    def resume(self) -> None:
        """Go on after a halt, once a person has put right what led to it.

        Raises:
            StillHalted: the chain still has another block where the last final one was.
            ChainError: it does not answer.
        """
        with self._store.read() as session:
            trail = Index(session).trail()
        made = self._decide(trail)
        if isinstance(made, Halt):
            raise StillHalted(made.reason)
        with self._store.write() as session:
            Index(session).unhalt()

    def _trail(self) -> Trail | None:
        """What is kept; None while halted."""
        with self._store.read() as session:
            cursor = Index(session).cursor()
            if cursor is not None and cursor.halted:
                return None
            if cursor is not None:
                Index(session).begin(self._book)
                return Index(session).trail()
        with self._store.write() as session:
            Index(session).begin(self._book)
            return Index(session).trail()

    def _decide(self, trail: Trail) -> Append | Undo | Halt | Rest:
        seen: dict[int, Block | None] = {}
        made: Instruction = follow(trail, seen, self._confirmations)
        while isinstance(made, Look):
            seen[made.number] = self._chain.block(made.number)
            made = follow(trail, seen, self._confirmations)
        return made

    def _append(self, trail: Trail, made: Append, events: list[EventRow]) -> Did:
        try:
            with self._store.write() as session:
                if not self._may_write(session, trail):
                    return Did.NOT_OURS
                index = Index(session)
                index.append(made.block, events)
                for number in range(max(trail.final + 1, trail.start), made.final + 1):
                    crediting.book(session, self._ledger(session), index.events(number))
                if made.final > trail.final and made.final >= trail.start:
                    index.finalise(made.final)
        except LedgerError as error:
            return self._halt(trail, f"what block {made.final} says, now final, cannot be booked: {error}")
        return Did.APPENDED

    def _undo(self, trail: Trail, made: Undo) -> Did:
        with self._store.write() as session:
            if not self._may_write(session, trail):
                return Did.NOT_OURS
            Index(session).undo(made.to)
        _log.info("reorg", from_block=trail.next - 1, to_block=made.to)
        return Did.UNDONE

    def _halt(self, trail: Trail, reason: str) -> Did:
        with self._store.write() as session:
            if not self._may_write(session, trail):
                return Did.NOT_OURS
            Index(session).halt(reason, self._clock.now_ms())
        _log.error("the indexer halted", reason=reason)
        return Did.HALTED

    def _may_write(self, session: Session, trail: Trail) -> bool:
        """Whether this process indexes and the rows still are what was decided upon; the cursor stays locked."""
        cursor = Index(session).cursor(lock=True)
        return cursor is not None and not cursor.halted and self._held(session) and Index(session).trail() == trail
