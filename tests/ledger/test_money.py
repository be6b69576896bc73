from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.money import mul_div_down, mul_div_up, split_by_weight

amounts = st.integers(0, 10**40)
weights = st.dictionaries(st.text("abc", max_size=4), st.integers(0, 10**12), min_size=1, max_size=12)


@given(amounts, amounts, st.integers(1, 10**20))
def test_down_and_up_bracket_the_exact_quotient(a, b, divisor):
    exact = Fraction(a * b, divisor)
    assert mul_div_down(a, b, divisor) <= exact <= mul_div_up(a, b, divisor)
    assert mul_div_up(a, b, divisor) - mul_div_down(a, b, divisor) == (0 if exact.denominator == 1 else 1)


@pytest.mark.parametrize("factors", [(-1, 1, 1), (1, -1, 1), (1, 1, 0), (1, 1, -1)])
def test_negative_factors_and_divisors_below_one_are_refused(factors):
    for rounded in (mul_div_down, mul_div_up):
        with pytest.raises(ValueError, match="0 or more"):
            rounded(*factors)


@given(amounts, weights.filter(lambda w: sum(w.values())))
def test_parts_sum_to_the_total_and_differ_from_the_exact_share_by_less_than_one(total, by_key):
    parts = split_by_weight(total, by_key)
    assert sum(parts.values()) == total
    for key, part in parts.items():
        assert abs(part - Fraction(total * by_key[key], sum(by_key.values()))) < 1


@given(amounts, weights.filter(lambda w: sum(w.values())), st.randoms())
def test_the_order_of_weights_changes_no_part(total, by_key, random):
    shuffled = list(by_key.items())
    random.shuffle(shuffled)
    assert split_by_weight(total, dict(shuffled)) == split_by_weight(total, by_key)


def test_the_unit_left_over_goes_to_the_largest_remainder_and_on_a_tie_to_the_smallest_key():
    assert split_by_weight(100, {"b": 1, "a": 1, "c": 1}) == {"b": 33, "a": 34, "c": 33}
    assert split_by_weight(10, {"a": 14, "b": 26}) == {"a": 4, "b": 6}  # 3.5 and 6.5: a tie
    assert split_by_weight(10, {"a": 13, "b": 27}) == {"a": 3, "b": 7}  # 3.25 and 6.75


def test_nothing_can_be_split_over_weights_of_zero_but_zero():
    assert split_by_weight(0, {"a": 0}) == {"a": 0}
    with pytest.raises(ValueError, match="all weights are 0"):
        split_by_weight(1, {"a": 0})


@pytest.mark.parametrize(("total", "by_key"), [(-1, {"a": 1}), (1, {"a": -1, "b": 2})])
def test_a_negative_total_or_weight_is_refused(total, by_key):
    with pytest.raises(ValueError, match="0 or more"):
        split_by_weight(total, by_key)
