from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.amounts import MAX_DC, dc_to_usd, format_dc, usd_to_dc_down


@given(st.integers(0, MAX_DC))
def test_dc_to_usd_and_back_is_exact(dc):
    assert usd_to_dc_down(dc_to_usd(dc)) == dc


@given(st.decimals(0, 1_000_000, allow_nan=False, places=9))
def test_a_usd_amount_is_never_rounded_up(usd):
    assert dc_to_usd(usd_to_dc_down(usd)) <= usd


def test_a_float_means_what_it_prints():
    assert usd_to_dc_down(0.1) == 10_000
    assert usd_to_dc_down(2.5) == 250_000
    assert usd_to_dc_down("0.000019") == 1


def test_many_digits_do_not_round_up():
    assert usd_to_dc_down("0." + "9" * 60) == 99_999


@pytest.mark.parametrize("bad", [-1, "nan", "inf", "two", True, Decimal("1e30"), None])
def test_what_is_no_amount_is_refused(bad):
    with pytest.raises(ValueError, match="USD"):
        usd_to_dc_down(bad)


@pytest.mark.parametrize(
    ("dc", "text"), [(0, "$0.00"), (125_000, "$1.25"), (342, "$0.00342"), (-5, "-$0.00005"), (10**11, "$1,000,000.00")]
)
def test_amounts_read_as_money(dc, text):
    assert format_dc(dc) == text
