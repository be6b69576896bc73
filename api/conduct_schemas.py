"""The shapes of what is said about operators' conduct: time reports, bills, reputations."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import Dc

MAX_OBSERVED_MS = 366 * 86_400_000


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class TimeIn(_In):
    """For how long the process had a lease, by its own clock; `final`: it gave it back."""

    lease: Annotated[str, Field(max_length=80)]
    observed_ms: int = Field(ge=0, le=MAX_OBSERVED_MS)
    final: bool = False


class TimesIn(_In):
    times: Annotated[list[TimeIn], Field(max_length=256)]


class TimesTaken(_Out):
    """Leases of which a report came too late to count, or that are none of this session's."""

    late: list[str]


class LeaseBill(_Out):
    """One lease: what its operator claims per GPU, what was billed, and what the customer's own process measured.

    `observed_ms` and `over_ms` are null while there is no report; `compared_ms` is the claim at the time of the report.
    """

    lease: str
    operator: str
    operator_name: str
    node: str
    model: str
    gpus: int
    state: str
    claimed_ms: int
    billed_ms: int
    setup_ms: int
    observed_ms: int | None
    compared_ms: int | None
    over_ms: int | None
    tolerance_ms: int | None
    final: bool
    flagged: bool
    charged_dc: Dc


class Bill(_Out):
    run: str
    leases: list[LeaseBill]
    accrued_dc: Dc
    flagged: bool


class EvidenceOut(_Out):
    good_milli: int
    bad_milli: int


class DayOut(_Out):
    """`api.reputation.DayFacts`."""

    day: int
    kept: int
    broken: int
    reported: int
    disputed: int
    kept_milli: int
    broken_milli: int
    agreed_milli: int
    disputed_milli: int
    there_ms: int
    missed_ms: int
    passed: int
    failed: int
    notices_kept: int
    notices_broken: int
    lies: int


class Reputation(_Out):
    """`reputation` is what placement and pools go by; with `days` and `today` anybody can compute it again."""

    operator: str
    name: str
    reputation: int
    unknown: int
    today: int
    evidence: dict[str, EvidenceOut]
    days: list[DayOut]
