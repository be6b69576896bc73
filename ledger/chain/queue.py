"""The contract's queue of epochs as the indexed blocks tell it: what is posted, what is finalised. Reads rows only."""

from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlmodel import Session

from ledger.chain.index import Index
from ledger.chain.tables import FinalisationRow, PostRow, RewindRow
from ledger.epoch import EpochState
from ledger.tables import table_of

POST, REWIND, FINALISATION = table_of(PostRow), table_of(RewindRow), table_of(FinalisationRow)


@dataclass(frozen=True, slots=True)
class Queue:
    """The next epoch to post and the next to finalise; ``final_block`` is None while nothing was read."""

    posted: int
    finalised: int
    final_block: int | None

    def state_of(self, closed_epoch: int) -> EpochState:
        """Where a closed epoch stands on the chain."""
        if closed_epoch < self.finalised:
            return EpochState.FINALISED
        return EpochState.POSTED if closed_epoch < self.posted else EpochState.CLOSED


def queue_of(session: Session) -> Queue:
    """The queue at the last block read."""
    status = Index(session).status()
    posted = _last(session, select(POST.c.block_number, POST.c.log_index, POST.c.epoch + 1), POST)
    rewound = _last(session, select(REWIND.c.block_number, REWIND.c.log_index, REWIND.c.to_epoch), REWIND)
    finalised = _last(
        session, select(FINALISATION.c.block_number, FINALISATION.c.log_index, FINALISATION.c.epoch + 1), FINALISATION
    )
    return Queue(max(posted, rewound)[2], finalised[2], None if status is None else status.final)


def _last(session: Session, wanted: Select, table: object) -> tuple[int, int, int]:
    """(block, index, value) of the last event of a kind; before all blocks when there is none."""
    columns = table.c  # type: ignore[attr-defined]
    row = session.execute(wanted.order_by(columns.block_number.desc(), columns.log_index.desc()).limit(1)).first()
    return (-1, -1, 0) if row is None else (row[0], row[1], row[2])
