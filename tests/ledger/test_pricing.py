from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ledger.pricing import (
    HOLD_MS,
    MILLI_GPU_MS_PER_GPU_HOUR,
    PricedShare,
    StopReason,
    Wanted,
    charge_due_up,
    cost_up,
    hold_sizes,
    reserve_dc_up,
    top_up,
)

shares = st.builds(PricedShare, st.integers(1, 1000), st.integers(0, 10**7))
leases = st.lists(shares, min_size=1, max_size=8)
dc = st.integers(0, 10**9)
notice = st.integers(0, 300_000)
wanted = st.builds(Wanted, leases, notice, st.integers(0, 700_000))


def test_an_hour_of_a_whole_gpu_costs_its_price():
    assert charge_due_up(3_600_000, PricedShare(1000, 200_000)) == 200_000
    assert charge_due_up(1, PricedShare(1000, 200_000)) == 1  # any time at a price costs at least one DC
    assert charge_due_up(0, PricedShare(1000, 200_000)) == 0


@given(st.integers(0, 10**10), shares)
def test_the_due_charge_is_the_exact_cost_rounded_up_once(ms, share):
    exact = Fraction(ms * share.share_milli * share.price_dc_per_gpu_hour, MILLI_GPU_MS_PER_GPU_HOUR)
    assert 0 <= charge_due_up(ms, share) - exact < 1


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), shares)
def test_however_receipts_cut_the_time_the_sum_of_charges_is_the_same(steps, share):
    total, charged = 0, 0
    for step in steps:
        total += step
        charged += charge_due_up(total, share) - charged
    assert charged == charge_due_up(sum(steps), share)


@given(leases, st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_cost_of_more_time_bounds_what_the_bill_can_grow_by(lease, done_ms, more_ms):
    grown = sum(charge_due_up(done_ms + more_ms, share) - charge_due_up(done_ms, share) for share in lease)
    assert grown <= cost_up(lease, more_ms)


@given(st.lists(wanted, min_size=1, max_size=5), dc, st.none() | dc)
def test_holds_are_within_budget_and_balance_and_contain_the_reserves_or_are_refused(gang, available, budget):
    sizes = hold_sizes(gang, available_dc=available, budget_left_dc=budget)
    reserves = [max(reserve_dc_up(one.shares, one.notice_ms), cost_up(one.shares, one.least_ms)) for one in gang]
    assert sizes.reserve_dc == sum(reserves)
    assert (sizes.refused is None) == (sum(reserves) <= min(available, available if budget is None else budget))
    assert sum(sizes.dc) <= min(available, available if budget is None else budget)
    for one, reserve, dc in zip(gang, reserves, sizes.dc, strict=False):
        assert reserve <= dc <= max(cost_up(one.shares, HOLD_MS), reserve)


@given(wanted, st.integers(1, 5), dc)
def test_leases_that_are_alike_have_holds_that_are_alike_and_no_more_is_left_than_cannot_be_divided(
    one, count, available
):
    sizes = hold_sizes([one] * count, available_dc=available, budget_left_dc=None)
    full = hold_sizes([one] * count, available_dc=10**12, budget_left_dc=None)
    assert len(set(sizes.dc)) <= 1
    assert sizes.refused or sizes.dc == full.dc or available - sum(sizes.dc) < count


@given(leases, notice, dc, st.none() | dc, dc)
def test_a_lease_stops_only_when_no_more_than_the_reserve_is_left_and_limits_bind(
    lease, notice_ms, available, budget, held
):
    step = top_up(lease, held_dc=held, notice_ms=notice_ms, available_dc=available, budget_left_dc=budget)
    assert 0 <= step.add_dc <= available
    assert budget is None or step.add_dc <= budget
    if step.stop is not None:
        assert held + step.add_dc <= reserve_dc_up(lease, notice_ms)
        assert step.add_dc in {available, budget}


def test_ten_minutes_are_held_and_topped_up_when_there_is_money_for_it():
    lease = [PricedShare(1000, 200_000)]
    sizes = hold_sizes([Wanted(lease, 30_000)], available_dc=10**6, budget_left_dc=None)
    assert (sizes.dc, sizes.refused) == ((33_334,), None)
    step = top_up(lease, held_dc=30_000, notice_ms=30_000, available_dc=10**6, budget_left_dc=None)
    assert (step.add_dc, step.stop) == (3_334, None)


def test_the_reason_to_stop_says_which_limit_bound():
    lease = [PricedShare(1000, 200_000)]
    broke = top_up(lease, held_dc=10, notice_ms=0, available_dc=3, budget_left_dc=500)
    spent = top_up(lease, held_dc=10, notice_ms=0, available_dc=500, budget_left_dc=3)
    assert (broke.add_dc, broke.stop) == (3, StopReason.INSUFFICIENT_FUNDS)
    assert (spent.add_dc, spent.stop) == (3, StopReason.BUDGET_EXHAUSTED)


def test_a_reserve_longer_than_ten_minutes_is_held_whole():
    lease = [PricedShare(1000, 3_600_000)]  # 1 DC per ms
    sizes = hold_sizes([Wanted(lease, 900_000)], available_dc=10**9, budget_left_dc=None)
    assert sizes.dc == (sizes.reserve_dc,) == (906_000,)
