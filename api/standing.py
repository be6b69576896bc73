"""Where a GPU stands after its challenges: level, strikes, and since when. Pure.

| level | meaning |
|---|---|
| 0 | never passed, or failed since |
| 1 | passed its last challenge, longer ago than `FRESH_EPOCHS` epochs |
| 2 | passed its last challenge lately |
| 3 | passed lately, and `TRUSTED_IN_A_ROW` times in a row before anything failed |
"""

from dataclasses import dataclass, replace

BOUND = 2
"""Strikes from which a GPU gets no new lease. A wrong answer counts two; being late, or silent, counts one: a machine
may be busy once."""
FRESH_EPOCHS = 2
TRUSTED_IN_A_ROW = 5
MAX_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """`in_a_row`: passes since the last failure."""

    strikes: int = 0
    in_a_row: int = 0
    passed_ms: int | None = None
    failed_ms: int | None = None
    reason: str = ""

    @property
    def leasable(self) -> bool:
        return self.strikes < BOUND


def passed(before: Standing, now_ms: int) -> Standing:
    """After a challenge that was met: what was held against it is forgiven."""
    return replace(before, strikes=0, in_a_row=before.in_a_row + 1, passed_ms=now_ms, reason="")


def failed(before: Standing, now_ms: int, reason: str, *, wrong: bool) -> Standing:
    """After one that was not; `wrong`: its answer was, and not only late."""
    strikes = min(before.strikes + (BOUND if wrong else 1), 1000)
    return replace(before, strikes=strikes, in_a_row=0, failed_ms=now_ms, reason=reason)


def level(standing: Standing, now_ms: int, epoch_ms: int) -> int:
    """The verification level now, 0 to `MAX_LEVEL`."""
    if standing.strikes or standing.passed_ms is None:
        return 0
    if now_ms - standing.passed_ms > FRESH_EPOCHS * epoch_ms:
        return 1
    return 3 if standing.in_a_row >= TRUSTED_IN_A_ROW else 2
