from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.emission import DEFAULT_SCHEDULE, WEI_PER_BCT, Schedule, paid_wei, value_wei_down

schedules = st.builds(Schedule, st.integers(0, 10**30), st.integers(1, 5000))


@given(schedules)
def test_all_epochs_together_mint_exactly_the_total(schedule):
    assert schedule.minted_before_wei(0) == 0
    assert schedule.minted_before_wei(schedule.epochs) == schedule.total_wei
    assert schedule.emission_wei(schedule.epochs) == 0


@given(schedules, st.integers(0, 6000))
def test_emission_is_the_difference_of_the_closed_form_and_never_negative(schedule, epoch):
    x = min(epoch, schedule.epochs)
    exact = Fraction(schedule.total_wei * x * (2 * schedule.epochs - x), schedule.epochs**2)
    assert schedule.minted_before_wei(epoch) == exact.numerator // exact.denominator
    assert schedule.emission_wei(epoch) >= 0


def test_the_default_schedule_falls_from_epoch_to_epoch_and_sums_to_its_total():
    emissions = [DEFAULT_SCHEDULE.emission_wei(epoch) for epoch in range(DEFAULT_SCHEDULE.epochs)]
    assert emissions == sorted(emissions, reverse=True)
    assert sum(emissions) == DEFAULT_SCHEDULE.total_wei == 500_000_000 * WEI_PER_BCT


def test_dc_buy_bct_at_the_price_rounded_down():
    assert value_wei_down(100_000, 10**18) == WEI_PER_BCT  # one dollar at one dollar per BCT
    assert value_wei_down(1, 3 * 10**18) == 3_333_333_333_333


@given(*[st.integers(0, 10**30)] * 3)
def test_pay_is_bounded_by_value_and_by_what_may_be_minted(value, emission, remintable):
    paid = paid_wei(value, emission, remintable)
    assert paid <= value
    assert paid <= emission + remintable
    assert paid in {value, emission + remintable}


@pytest.mark.parametrize(("total", "epochs"), [(-1, 1), (1, 0)])
def test_a_schedule_without_epochs_or_of_a_negative_total_is_refused(total, epochs):
    with pytest.raises(ValueError):
        Schedule(total, epochs)


def test_epochs_before_the_first_are_refused():
    with pytest.raises(ValueError, match="count from 0"):
        DEFAULT_SCHEDULE.minted_before_wei(-1)
