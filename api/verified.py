"""What others ask about verification: which GPUs passed in a stretch of time. Reads rows only.

The challenges themselves are `api.rounds`' business.
"""

from collections.abc import Collection

from sqlalchemy import select
from sqlmodel import Session, col

from api.standing import Standing
from api.verification_tables import ChallengeRow, StandingRow

PASSED = "passed"


def verified_between(
    session: Session, begin_ms: int, end_ms: int, *, gpu_ids: Collection[str] | None = None
) -> frozenset[str]:
    """Public ids of the GPUs that passed a challenge begun in [begin_ms, end_ms).

    Every such challenge went to all idle GPUs of its operator in the same moment. For an epoch give its bounds:
    `clock.start(e)` and `clock.end(e)` of `ledger.epoch.EpochClock`.

    Args:
        session: to read with.
        begin_ms: from then on.
        end_ms: before then.
        gpu_ids: only these; None for all.
    """
    query = select(ChallengeRow.gpu_id).where(  # type: ignore[call-overload]
        col(ChallengeRow.stage) == PASSED, col(ChallengeRow.begun_ms) >= begin_ms, col(ChallengeRow.begun_ms) < end_ms
    )
    found = frozenset(session.scalars(query))
    return found if gpu_ids is None else found & frozenset(gpu_ids)


def standing_of(session: Session, gpu: str) -> Standing:
    """Where a GPU stands, by its UUID."""
    row = session.get(StandingRow, gpu)
    if row is None:
        return Standing()
    return Standing(row.strikes, row.in_a_row, row.passed_ms, row.failed_ms, row.reason)
