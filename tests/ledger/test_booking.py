from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import accounts, booking
from ledger.booking import MeterState
from ledger.entries import EntryKind, check
from ledger.errors import BudgetExceeded, InsufficientFunds, InvalidAmount, UsageOutOfOrder
from ledger.leaves import gpu_id_hex
from ledger.pricing import PricedShare, charge_due_up
from ledger.usage import Usage

HOLD = {"lease_id": "l", "run_id": "r", "customer": "alice", "source_id": "s", "at_ms": 0}


def usage(seq: int, cumulative_gpu_ms: int, **fields) -> Usage:
    given = {
        "lease_id": "l",
        "generation": 1,
        "run_id": "r",
        "customer": "alice",
        "gpu_id": gpu_id_hex("GPU-1"),
        "operator": "op",
        "pool": "op",
        "holder": "0x" + "11" * 20,
        "model": "H100",
        "share_milli": 1000,
        "price_dc_per_gpu_hour": 3_600_000,  # one DC per ms
        "at_ms": 0,
    }
    return Usage(seq=seq, cumulative_gpu_ms=cumulative_gpu_ms, **(given | fields))


def charge(given: Usage, before: MeterState, held: int = 10**9) -> booking.Charge:
    return booking.charge(given, meter=before, held_dc=held, at_ms=0)


def test_a_hold_needs_funds_and_room_in_the_budget():
    entry = booking.hold(EntryKind.HOLD, dc=5, available_dc=5, budget_left_dc=5, **HOLD)
    check(entry)
    with pytest.raises(InsufficientFunds) as short:
        booking.hold(EntryKind.HOLD, dc=6, available_dc=5, budget_left_dc=None, **HOLD)
    assert (short.value.needed_dc, short.value.available_dc) == (6, 5)
    with pytest.raises(BudgetExceeded) as spent:
        booking.hold(EntryKind.HOLD, dc=6, available_dc=9, budget_left_dc=5, **HOLD)
    assert (spent.value.needed_dc, spent.value.left_dc) == (6, 5)


@pytest.mark.parametrize("dc", [0, -1, 1.0, True])
def test_an_amount_that_is_not_a_positive_integer_is_refused(dc):
    with pytest.raises(InvalidAmount):
        booking.deposit("alice", dc, source_id="s", at_ms=0)


def test_every_rule_books_entries_that_pass_both_checks():
    bookings = [
        booking.test_credit("alice", 1, source_id="s", at_ms=0),
        booking.deposit("alice", 1, source_id="s", at_ms=0),
        booking.request_exit("alice", 1, source_id="s", at_ms=0),
        booking.exit_paid("alice", 1, source_id="s", at_ms=0),
        booking.bct_burned(1, source_id="s", at_ms=0),
        booking.claim("0xg", "0xh", 1, source_id="s", at_ms=0),
        charge(usage(1, 10), MeterState()).entry,
        booking.release("alice", "l", 3, source_id="s", at_ms=0),
        booking.finality("0xg", 2, 3, source_id="s", at_ms=0),
        booking.burn(2, [("0xg", 3), ("0xf", 0)], source_id="s", at_ms=0),
    ]
    assert {entry.customer for entry in bookings} == {"alice", None}
    for entry in bookings:
        check(entry)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.integers(1, 1000), st.integers(0, 10**6))
def test_charges_sum_to_what_is_due_for_the_whole_time(steps, share, price):
    state, total = MeterState(), 0
    for seq, step in enumerate(steps):
        total += step
        charged = charge(usage(seq, total, share_milli=share, price_dc_per_gpu_hour=price), state)
        state = booking.state_after(charged)
    assert state.charged_dc == charge_due_up(sum(steps), PricedShare(share, price))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(0, 500))
def test_the_hold_bounds_every_charge_and_what_it_could_not_bear_stays_due(steps, held):
    state, total, left = MeterState(), 0, held
    for seq, step in enumerate(steps):
        total += step
        charged = charge(usage(seq, total), state, left)
        left, state = left - charged.dc, booking.state_after(charged)
        assert left >= 0
        assert charged.short_dc == total - charged.charged_dc
    assert state.charged_dc == min(total, held)


@pytest.mark.parametrize("later", [usage(4, 11), usage(5, 11), usage(6, 9)])
def test_a_receipt_out_of_order_or_a_meter_that_went_back_is_refused(later):
    state = MeterState(seq=5, cumulative_gpu_ms=10, charged_dc=10)
    assert charge(usage(6, 10), state).dc == 0
    assert charge(usage(5, 11, part=1), state).dc == 1
    with pytest.raises(UsageOutOfOrder):
        charge(later, state)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 700))
def test_an_undo_leaves_exactly_the_charge_of_the_time_that_stands(steps, back_to):
    charges, states, total = [], [MeterState()], 0
    for seq, step in enumerate(steps):
        total += step
        charges.append(charge(usage(seq, total), states[-1]))
        states.append(booking.state_after(charges[-1]))
    kept = sum(1 for c in charges if c.usage.cumulative_gpu_ms <= back_to)
    plan = booking.undo(
        charges[kept:][::-1], back_to_ms=back_to, before=states[kept], held_dc=0, source_id="u", at_ms=1
    )
    back = sum(p.amount for e in plan.reversals for p in e.postings if p.account == accounts.held("alice", "l"))
    again = 0 if plan.again is None else plan.again.dc
    assert total - back + again == min(back_to, total)
    assert len({e.source_id for e in plan.reversals}) == len(charges) - kept


def test_pay_comes_from_emission_first_and_then_from_what_was_burned():
    entry = booking.pay(3, [("g", "h", 70), ("g", "i", 0)], staking_wei=5, emission_wei=60, source_id="s", at_ms=0)
    check(entry)
    assert dict(entry.postings) == {
        accounts.emission(3): -60,
        accounts.remintable(): -15,
        accounts.payable("g", "h"): 70,
        accounts.staking(3): 5,
    }


def test_pay_and_burn_of_nothing_are_entries_without_postings():
    assert booking.pay(3, [], staking_wei=0, emission_wei=60, source_id="s", at_ms=0).postings == ()
    assert booking.burn(3, [], source_id="s", at_ms=0).postings == ()


@pytest.mark.parametrize(
    "field",
    [
        {"share_milli": 0},
        {"share_milli": 1001},
        {"cumulative_gpu_ms": -1},
        {"cumulative_gpu_ms": 2**63},
        {"price_dc_per_gpu_hour": 1.5},
        {"seq": True},
        {"energy_mj": -1},
        {"receipt_hash": b"short"},
        {"holder": "alice"},
        {"gpu_id": "0x12"},
    ],
)
def test_usage_with_a_field_out_of_range_is_refused(field):
    good = usage(1, 10)
    with pytest.raises((InvalidAmount, ValueError)):
        replace(good, **field)
