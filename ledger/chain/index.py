"""The indexer's tables inside the caller's transaction: the trail of blocks, their events, and the cursor.

Each method is one change that leaves the tables as a reading from the first block on would have left them. It decides
nothing: `ledger.chain.following` does; and books nothing: `ledger.chain.crediting` does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import delete, select
from sqlmodel import Session

from ledger.chain.errors import WrongChain
from ledger.chain.following import Block, Trail
from ledger.chain.tables import EVENT_ROWS, BlockRow, CursorRow, EventRow
from ledger.tables import table_of

BLOCK, CURSOR = table_of(BlockRow), table_of(CursorRow)
_ONLY = 1


class Deployed(Protocol):
    """What an address book says of the deployment that is followed."""

    @property
    def chain_id(self) -> int: ...

    @property
    def start_block(self) -> int: ...

    @property
    def settlement(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ChainStatus:
    """How far the chain was read.

    Attributes:
        chain_id: of the chain that this database follows.
        tip: last block read; None while none was.
        final: last block that is final; everything up to it is booked.
        final_ms: its time, Unix ms; 0 while none is.
        halted: why the indexer stopped; empty while it runs.
    """

    chain_id: int
    tip: int | None
    final: int
    final_ms: int
    halted: str


class Index:
    """What was read of one deployment."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def begin(self, book: Deployed) -> None:
        """Make the cursor on the first run; on later ones check that it is of this deployment.

        Raises:
            WrongChain: this database follows another deployment.
        """
        row = self.cursor()
        if row is None:
            row = CursorRow(
                chain_id=book.chain_id,
                settlement=book.settlement.lower(),
                start_block=book.start_block,
                final_number=book.start_block - 1,
                final_hash=b"",
            )
            self._session.add(row)
            self._session.flush()
        if (row.chain_id, row.settlement) != (book.chain_id, book.settlement.lower()):
            raise WrongChain(
                f"this database follows the deployment with Settlement {row.settlement} on chain {row.chain_id}, the "
                f"address book names {book.settlement} on chain {book.chain_id}; a ledger is settled in one place: "
                "use that book, or another database"
            )

    def cursor(self, *, lock: bool = False) -> CursorRow | None:
        """The cursor; locked, nobody else moves it before the transaction is over."""
        return self._session.get(CursorRow, _ONLY, with_for_update=lock, populate_existing=True)

    def trail(self) -> Trail:
        """What is kept of the chain; call it after `begin`."""
        row = self._session.get_one(CursorRow, _ONLY)
        blocks = self._session.execute(select(BLOCK).order_by(BLOCK.c.number))
        kept = tuple(Block(found.number, found.hash, found.parent, found.time_s) for found in blocks)
        return Trail(row.start_block, row.final_number, kept)

    def append(self, block: Block, events: Iterable[EventRow]) -> None:
        self._session.add(BlockRow(number=block.number, hash=block.hash, parent=block.parent, time_s=block.time_s))
        self._session.add_all(events)
        self._session.flush()

    def undo(self, to: int) -> None:
        """Take back every block above ``to``, with all that it said. The database refuses it for final ones."""
        for row in EVENT_ROWS:
            table = table_of(row)
            self._session.execute(delete(table).where(table.c.block_number > to))
        self._session.execute(delete(BLOCK).where(BLOCK.c.number > to))

    def events(self, number: int) -> list[EventRow]:
        """What a block said, in its order."""
        found: list[EventRow] = []
        for row in EVENT_ROWS:
            found += self._session.scalars(select(row).where(table_of(row).c.block_number == number))
        return sorted(found, key=lambda event: event.log_index)

    def finalise(self, number: int) -> None:
        """All blocks up to ``number`` are final; those before it are forgotten, their events stay."""
        cursor = self._session.get_one(CursorRow, _ONLY)
        cursor.final_number = number
        cursor.final_hash = self._session.execute(select(BLOCK.c.hash).where(BLOCK.c.number == number)).scalar_one()
        self._session.add(cursor)
        self._session.execute(delete(BLOCK).where(BLOCK.c.number < number))
        self._session.flush()

    def halt(self, reason: str, at_ms: int) -> None:
        self._mark(reason, at_ms)

    def unhalt(self) -> None:
        self._mark("", None)

    def status(self) -> ChainStatus | None:
        """None when no chain was ever followed."""
        row = self._session.get(CursorRow, _ONLY)
        if row is None:
            return None
        times: Sequence[tuple[int, int]] = [
            (number, time_s)
            for number, time_s in self._session.execute(select(BLOCK.c.number, BLOCK.c.time_s).order_by(BLOCK.c.number))
        ]
        final_ms = next((time_s * 1000 for number, time_s in times if number == row.final_number), 0)
        return ChainStatus(row.chain_id, times[-1][0] if times else None, row.final_number, final_ms, row.halted)

    def _mark(self, reason: str, at_ms: int | None) -> None:
        row = self._session.get_one(CursorRow, _ONLY)
        row.halted, row.halted_ms = reason, at_ms
        self._session.add(row)
        self._session.flush()
