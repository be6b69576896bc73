from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import accounts
from ledger.accounts import Account, AccountKind, asset_of
from ledger.entries import FLOWS, MAX_DC, MAX_WEI, Entry, EntryKind, Posting, check, move, reversal
from ledger.errors import ForbiddenFlow, InvalidAmount, UnbalancedEntry

ALICE, HELD = accounts.available("alice"), accounts.held("alice", "lease-1")
PENDING = accounts.usage_pending("0xg")


def entry(kind: EntryKind, *postings: Posting, **more) -> Entry:
    return Entry(kind, "s", 0, postings, **more)


def test_every_kind_of_entry_has_a_flow():
    assert set(FLOWS) == set(EntryKind)


@given(st.sampled_from(EntryKind), st.sampled_from(AccountKind), st.sampled_from(AccountKind))
def test_a_two_legged_entry_passes_exactly_when_its_kinds_are_in_the_flow(kind, source, target):
    flow = FLOWS[kind]
    moved = entry(kind, *move(Account(source, "a", "x"), Account(target, "a", "y"), 1))
    moved = replace(moved, reverses="r" if kind is EntryKind.UNDO else None)
    permitted = source in flow.out_of and target in flow.into
    if permitted:
        check(moved)
    else:
        same_asset = asset_of(source) is asset_of(target)
        with pytest.raises(ForbiddenFlow if same_asset else UnbalancedEntry):
            check(moved)


def test_postings_that_do_not_sum_to_zero_are_refused():
    check(entry(EntryKind.HOLD, Posting(ALICE, -5), Posting(HELD, 5)))
    with pytest.raises(UnbalancedEntry, match="sum to 1"):
        check(entry(EntryKind.HOLD, Posting(ALICE, -5), Posting(HELD, 6)))


def test_sums_of_different_assets_do_not_cancel():
    with pytest.raises(UnbalancedEntry):
        check(entry(EntryKind.PAY, Posting(accounts.emission(0), -5), Posting(PENDING, 5)))


def test_a_hold_stays_with_one_customer():
    with pytest.raises(ForbiddenFlow, match="one owner"):
        check(entry(EntryKind.HOLD, *move(ALICE, accounts.held("bob", "lease-1"), 5)))


def test_an_account_stands_once_in_an_entry():
    with pytest.raises(ForbiddenFlow, match="twice"):
        check(entry(EntryKind.HOLD, Posting(ALICE, -2), Posting(ALICE, -3), Posting(HELD, 5)))


@pytest.mark.parametrize("amount", [0, True, 1.0, MAX_DC + 1, "5"])
def test_an_amount_that_is_no_integer_or_zero_or_too_large_is_refused(amount):
    with pytest.raises(InvalidAmount):
        check(entry(EntryKind.HOLD, Posting(ALICE, -5), Posting(HELD, amount)))


def test_an_amount_of_wei_may_be_larger_than_one_of_dc_but_not_above_its_own_bound():
    check(entry(EntryKind.PAY, *move(accounts.emission(0), accounts.staking(0), MAX_WEI)))
    with pytest.raises(InvalidAmount):
        check(entry(EntryKind.PAY, *move(accounts.emission(0), accounts.staking(0), MAX_WEI + 1)))


def test_an_undo_and_only_an_undo_names_what_it_reverses():
    charge = entry(EntryKind.CHARGE, *move(HELD, PENDING, 5))
    undo = reversal(charge, source_id="u", at_ms=1)
    check(undo)
    assert undo.postings == (Posting(HELD, 5), Posting(PENDING, -5))
    with pytest.raises(ForbiddenFlow, match="reverses"):
        check(replace(undo, reverses=None))
    with pytest.raises(ForbiddenFlow, match="reverses"):
        check(replace(charge, reverses="s0"))


def test_moving_nothing_is_no_posting():
    assert move(ALICE, HELD, 0) == ()
    check(entry(EntryKind.CHARGE))
