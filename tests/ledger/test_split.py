from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import PoolTermsRefused
from ledger.split import POOL_OF_ONE, AvailableLine, PoolTerms, UsageLine, split_pool

OPERATOR = "0x" + "99" * 20


@st.composite
def terms(draw) -> PoolTerms:
    used = draw(st.integers(1250, 10_000))
    shared = draw(st.integers(0, 10_000 - used))
    weights = draw(st.dictionaries(st.sampled_from(["A", "B"]), st.integers(0, 100)))
    return PoolTerms(10_000 - used - shared, shared, used, OPERATOR, weights)


names = st.sampled_from(["g1", "g2", "g3"])
holders = st.sampled_from(["h1", "h2"])
lines = st.lists(
    st.builds(UsageLine, names, holders, st.just("p"), st.just("op"), st.integers(0, 10**7), st.integers(0, 10**9)),
    min_size=1,
    max_size=6,
).filter(lambda given: sum(line.dc for line in given))
available = st.lists(
    st.builds(
        AvailableLine, names, holders, st.just("p"), st.just("op"), st.sampled_from("ABC"), st.integers(0, 10**7)
    ),
    max_size=6,
)
wei = st.integers(0, 10**27)


@given(wei, lines, available, terms())
def test_the_parts_of_a_pool_sum_to_its_reward(reward, used, idle, by):
    assert sum(split_pool(reward, used, idle, by).values()) == reward


@given(wei, lines, available, terms(), st.randoms())
def test_the_order_of_lines_changes_nothing(reward, used, idle, by, random):
    shuffled, other = list(used), list(idle)
    random.shuffle(shuffled)
    random.shuffle(other)
    assert split_pool(reward, shuffled, other, by) == split_pool(reward, used, idle, by)


@given(wei, lines)
def test_in_a_pool_of_one_each_holder_gets_the_share_of_its_dc(reward, used):
    total = sum(line.dc for line in used)
    for (gpu, holder), paid in split_pool(reward, used, (), POOL_OF_ONE).items():
        own = sum(line.dc for line in used if (line.gpu_id, line.holder) == (gpu, holder))
        assert abs(paid - Fraction(reward * own, total)) < 1


@given(wei, lines, available, terms())
def test_the_operator_gets_its_bps_rounded_down_and_no_more(reward, used, idle, by):
    paid = split_pool(reward, used, idle, by)
    assert (
        sum(amount for (_, holder), amount in paid.items() if holder == OPERATOR) == reward * by.operator_bps // 10_000
    )


def test_the_shared_part_goes_by_available_time_and_model():
    by = PoolTerms(0, 5000, 5000, model_weights={"A": 3, "B": 1})
    used = [UsageLine("g1", "h1", "p", "op", 10, 10)]
    idle = [AvailableLine("g2", "h2", "p", "op", "A", 100), AvailableLine("g3", "h3", "p", "op", "B", 100)]
    assert split_pool(8000, used, idle, by) == {("g1", "h1"): 4000, ("g2", "h2"): 3000, ("g3", "h3"): 1000}


def test_with_nothing_available_the_shared_part_goes_by_usage():
    by = PoolTerms(0, 5000, 5000, model_weights={"A": 1})
    used = [UsageLine("g1", "h1", "p", "op", 10, 10)]
    unknown_model = [AvailableLine("g2", "h2", "p", "op", "Z", 100)]
    assert split_pool(8000, used, unknown_model, by) == {("g1", "h1"): 8000}


@pytest.mark.parametrize("parts", [(0, 8751, 1249), (1, 0, 10_000), (-1, 1, 10_000), (0, 0, 9_999)])
def test_terms_that_do_not_sum_or_break_the_floor_are_refused(parts):
    PoolTerms(0, 8750, 1250)
    with pytest.raises(PoolTermsRefused):
        PoolTerms(*parts, OPERATOR)


def test_an_operators_part_needs_an_address():
    PoolTerms(1, 0, 9_999, OPERATOR)
    with pytest.raises(PoolTermsRefused, match="payout address"):
        PoolTerms(1, 0, 9_999)
