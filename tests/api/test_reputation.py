"""The formula: docs/reputation.md, from whose page the worked numbers are checked."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.reputation import (
    CUSTOMER_DAY,
    DC_PER_LEASE,
    MAX,
    PRIOR_MILLI,
    REMEMBERED_DAYS,
    STEP,
    UNKNOWN,
    WORD,
    CustomerDay,
    DayFacts,
    of_leases,
    score,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reputation.md").read_text()
NUMBERS = st.integers(0, 10**6)
FACTS = st.builds(
    DayFacts, day=st.integers(0, 120), **{name: NUMBERS for name in DayFacts.__dataclass_fields__ if name != "day"}
)
CUSTOMER = st.builds(CustomerDay, NUMBERS, NUMBERS, NUMBERS, st.just(0), st.just(0))


def a_day(day: int = 0, *customers: CustomerDay, **facts: int) -> DayFacts:
    return DayFacts(day, **of_leases(customers), **facts)


def good(**more: int) -> CustomerDay:
    values = {"kept": 10, "broken": 0, "paid_dc": 10 * DC_PER_LEASE, "reported": 10, "disputed": 0}
    return CustomerDay(**values | more)


HOUR = 3_600_000
WORKED = {
    "nothing is known": [],
    "one lost lease on the first day": [a_day(0, good(kept=0, broken=1, paid_dc=0, reported=0))],
    "five lost leases of five customers": [a_day(0, *[good(kept=0, broken=1, paid_dc=0, reported=0)] * 5)],
    "a month of one good customer": [a_day(day, good(), there_ms=24 * HOUR, passed=1) for day in range(-29, 1)],
    "the same, and yesterday an hour away": [
        a_day(day, good(), there_ms=(23 if day == -1 else 24) * HOUR, missed_ms=HOUR * (day == -1), passed=1)
        for day in range(-29, 1)
    ],
    "a month in which one lease of ten is lost": [
        a_day(day, good(kept=9, broken=1), there_ms=24 * HOUR, passed=1) for day in range(-29, 1)
    ],
    "a month of claims that customers dispute": [
        a_day(day, *[good(disputed=10)] * 3, there_ms=24 * HOUR, passed=1) for day in range(-29, 1)
    ],
    "a good month, and a proof of two receipts": [
        a_day(day, good(), there_ms=24 * HOUR, passed=1, lies=int(day == 0)) for day in range(-29, 1)
    ],
    "a month of failed challenges": [a_day(day, there_ms=24 * HOUR, failed=1) for day in range(-29, 1)],
    "two months after one lost lease": [a_day(-60, good(kept=0, broken=1, paid_dc=0, reported=0))],
}


@pytest.mark.parametrize("case", WORKED)
def test_the_page_has_the_numbers_of_the_code(case):
    assert f"| {case} | {score(WORKED[case], 0).value} |" in PAGE


def test_nobody_is_kicked_for_being_new_nor_for_one_slip():
    assert score([], 0).value == UNKNOWN == 600
    assert score(WORKED["one lost lease on the first day"], 0).value >= 500
    assert score(WORKED["five lost leases of five customers"], 0).value < 500


@given(st.lists(FACTS, max_size=8), st.integers(0, 200))
def test_it_is_the_expected_value_of_the_evidence_in_steps_between_nothing_and_all(days, today):
    found = score(days, today)
    assert 0 <= found.value <= MAX
    assert found.value % STEP == 0
    good_, bad = (sum(getattr(one, side) for one in found.by.values()) for side in ("good_milli", "bad_milli"))
    exact = Fraction(MAX * good_ + UNKNOWN * PRIOR_MILLI, good_ + bad + PRIOR_MILLI)
    assert found.value <= exact < found.value + STEP


@given(st.lists(FACTS, max_size=4), FACTS, st.integers(0, 200))
def test_the_order_of_days_is_irrelevant_and_what_is_forgotten_or_to_come_adds_nothing(days, other, today):
    assert score([*days, other], today) == score([other, *days], today)
    if not 0 <= today - other.day <= REMEMBERED_DAYS:
        assert score([*days, other], today) == score(days, today)


BAD = ("broken_milli", "disputed_milli", "failed", "notices_broken", "lies", "missed_ms")
GOOD = ("kept_milli", "agreed_milli", "passed", "notices_kept", "there_ms")


@given(FACTS, st.sampled_from(BAD + GOOD), st.integers(1, 10**6))
def test_more_of_what_is_good_never_lowers_it_and_more_of_what_is_bad_never_raises_it(facts, name, more):
    from dataclasses import replace

    before = score([facts], facts.day).value
    after = score([replace(facts, **{name: getattr(facts, name) + more})], facts.day).value
    # shares are rounded down per source, which moves a day by less than a thousandth of one lease
    assert after >= before - STEP if name in GOOD else after <= before + STEP


@given(st.lists(CUSTOMER, max_size=5), CUSTOMER)
def test_one_customer_weighs_no_more_than_its_bound_whatever_it_does(others, one):
    without, with_it = of_leases(others), of_leases([*others, one])
    for side in ("kept_milli", "broken_milli"):
        assert 0 <= with_it[side] - without[side] <= CUSTOMER_DAY * 1000


def test_good_leases_count_by_what_was_paid_so_that_a_name_is_not_made_of_seconds():
    cheap = of_leases([good(kept=1000, paid_dc=100, reported=0)])
    assert (cheap["kept"], cheap["kept_milli"]) == (1000, 10)
    assert of_leases([good(kept=1000, paid_dc=10**9)])["kept_milli"] == CUSTOMER_DAY * 1000


def test_a_customer_that_paid_nothing_has_no_word_about_time():
    told = of_leases([good(paid_dc=0, disputed=10)])
    assert (told["disputed"], told["disputed_milli"], told["agreed_milli"]) == (10, 0, 0)
    assert of_leases([good(disputed=5)])["disputed_milli"] == 500 * WORD


def test_what_is_bad_is_forgotten_by_half_in_two_weeks():
    lost = WORKED["five lost leases of five customers"]
    fresh, aged = (UNKNOWN - score(lost, day).value for day in (0, 14))
    assert fresh / 2 - STEP <= aged <= fresh * 2 / 3
