"""An operator's reputation, 0 to 1000, out of what the fabric knows of it, day by day. Pure: docs/reputation.md.

It is the expected value of a Beta distribution over good and bad evidence, with older evidence forgotten, as in Jøsang
and Ismail, "The Beta Reputation System" (Bled eConference, 2002): `(r + W·a) / (r + s + W)` with base rate `a` and the
weight `W` of knowing nothing. Whole numbers only, so that anybody's computation of it is the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_MS = 86_400_000
MAX = 1000
STEP = 10
"""It moves in steps: placement builds an operator's part of its map anew whenever it moves."""

UNKNOWN = 600
"""Of an operator of which nothing is known: above the 500 under which a pool may kick, so that one slip is no exile."""
PRIOR_MILLI = 40_000
REMEMBERED_DAYS = 90
_FORGET = (95, 100)
"""What a day of age leaves of evidence: half after two weeks, a hundredth after `REMEMBERED_DAYS`."""

CUSTOMER_DAY = 10
"""Leases of one customer on one day count as so many at most, in their proportion: nobody makes a name alone."""
WORD = 3
"""A customer's reports of one day count as so many at most: if all say that an operator claims too much, it has a poor
name; if one does, it may be that customer."""
DC_PER_LEASE = 10_000
"""What a customer must have paid for each that is counted, of good leases and of its word about time: USD 0.10."""
PAIRS = 4
"""Challenges, and notices, of one day count as so many at most, in their proportion."""
BAD_WEIGHT = 5
"""What was promised and not done weighs so much more than what was done."""
MISSED_WEIGHT = 10
LIE_MILLI = 100_000
"""A proof that two receipts were signed under one number; no honest machine makes one."""


@dataclass(frozen=True, slots=True)
class CustomerDay:
    """One customer's leases with an operator that ended on one day.

    Attributes:
        kept: opened, and ended otherwise than by the operator's fault.
        broken: lost, never opened, unhealthy, or stopped for a receipt that lied.
        paid_dc: what the kept ones cost.
        reported: those of whose time the customer's process gave a report.
        disputed: of these, those of which the operator claims more, beyond the tolerance.
    """

    kept: int
    broken: int
    paid_dc: int
    reported: int
    disputed: int


@dataclass(frozen=True, slots=True)
class DayFacts:
    """What is known of an operator of one day; evidence of leases and reports is weighted by customer already.

    Attributes:
        day: since 1970.
        kept, broken, reported, disputed: leases.
        kept_milli, broken_milli: their evidence.
        agreed_milli, disputed_milli: evidence of the customers' reports.
        there_ms: GPU time in which it answered.
        missed_ms: GPU time in which it did not, and came back on this day.
        passed, failed: challenges.
        notices_kept, notices_broken: leases that ended with notice as promised, and otherwise.
        lies: proofs of two receipts under one number.
    """

    day: int
    kept: int = 0
    broken: int = 0
    reported: int = 0
    disputed: int = 0
    kept_milli: int = 0
    broken_milli: int = 0
    agreed_milli: int = 0
    disputed_milli: int = 0
    there_ms: int = 0
    missed_ms: int = 0
    passed: int = 0
    failed: int = 0
    notices_kept: int = 0
    notices_broken: int = 0
    lies: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """For and against, in thousandths of one kept lease."""

    good_milli: int = 0
    bad_milli: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """`value` is what is shown; `by` is today's weight of all remembered evidence, by where it comes from."""

    value: int
    by: dict[str, Evidence]


def of_leases(customers: Iterable[CustomerDay]) -> dict[str, int]:
    """The members of `DayFacts` that a day's leases give, each customer's counted within its bounds."""
    found: dict[str, int] = dict.fromkeys(
        ("kept", "broken", "reported", "disputed", "kept_milli", "broken_milli", "agreed_milli", "disputed_milli"), 0
    )
    for one in customers:
        paid_milli = one.paid_dc * 1000 // DC_PER_LEASE
        bound = _bounded(one.kept, one.broken, CUSTOMER_DAY)
        word = min(1000 * WORD, paid_milli)
        agreed = word * (one.reported - one.disputed) // one.reported if one.reported else 0
        added = {
            "kept": one.kept,
            "broken": one.broken,
            "reported": one.reported,
            "disputed": one.disputed,
            "kept_milli": min(bound.good_milli, paid_milli),
            "broken_milli": bound.bad_milli,
            "agreed_milli": agreed,
            "disputed_milli": word - agreed if one.reported else 0,
        }
        for name, value in added.items():
            found[name] += value
    return found


def evidence(facts: DayFacts) -> dict[str, Evidence]:
    """What one day says for and against an operator."""
    seen_ms = facts.there_ms + facts.missed_ms
    challenges = _bounded(facts.passed, facts.failed, PAIRS)
    notices = _bounded(facts.notices_kept, facts.notices_broken, PAIRS)
    return {
        "leases": Evidence(facts.kept_milli, BAD_WEIGHT * facts.broken_milli),
        "time reports": Evidence(facts.agreed_milli, BAD_WEIGHT * facts.disputed_milli),
        "uptime": Evidence(
            1000 * facts.there_ms // seen_ms if seen_ms else 0,
            MISSED_WEIGHT * 1000 * facts.missed_ms // seen_ms if seen_ms else 0,
        ),
        "challenges": Evidence(challenges.good_milli, BAD_WEIGHT * challenges.bad_milli),
        "notices": Evidence(notices.good_milli, BAD_WEIGHT * notices.bad_milli),
        "equivocations": Evidence(0, LIE_MILLI * facts.lies),
    }


def score(days: Sequence[DayFacts], today: int) -> Score:
    """The reputation on a day, of all days up to it that are remembered; days of which nothing is known add nothing."""
    sums = {name: [0, 0] for name in evidence(DayFacts(0))}
    for facts in days:
        age = today - facts.day
        if 0 <= age <= REMEMBERED_DAYS:
            for name, one in evidence(facts).items():
                sums[name][0] += _aged(one.good_milli, age)
                sums[name][1] += _aged(one.bad_milli, age)
    good, bad = (sum(pair[side] for pair in sums.values()) for side in (0, 1))
    exact = (MAX * good + UNKNOWN * PRIOR_MILLI) // (good + bad + PRIOR_MILLI)
    return Score(exact // STEP * STEP, {name: Evidence(*pair) for name, pair in sums.items()})


def day_of(at_ms: int) -> int:
    return at_ms // DAY_MS


def _bounded(good: int, bad: int, most: int) -> Evidence:
    """As many as there are, `most` together at most, in their proportion."""
    total = good + bad
    if not total:
        return Evidence()
    counted = 1000 * min(total, most)
    return Evidence(counted * good // total, counted * bad // total)


def _aged(milli: int, days: int) -> int:
    return milli * _FORGET[0] ** days // _FORGET[1] ** days
