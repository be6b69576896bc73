import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import PoolTermsRefused
from ledger.pools import (
    Entrance,
    Membership,
    PoolRules,
    TermsRow,
    change_terms,
    distributed,
    found,
    join,
    kick,
    leave,
    pool_at,
    self_pool,
    single_source,
    terms_at,
)
from ledger.split import POOL_OF_ONE, PoolTerms

RULES = PoolRules(exit_delay_epochs=3)
SHARED = PoolTerms(1000, 2000, 7000, "0x" + "99" * 20, {"A": 1}, 300_000)
epochs = st.integers(0, 1000)


def open_pool(epoch: int = 0) -> TermsRow:
    return found("p", *distributed(), now_epoch=epoch)


def test_presets_are_terms_and_who_may_join():
    assert self_pool() == (POOL_OF_ONE, Entrance.OWN)
    assert distributed() == (POOL_OF_ONE, Entrance.OPEN)
    terms, entrance = single_source(1000, SHARED.operator_payout, 2000, {"A": 1}, 300_000)
    assert (terms, entrance) == (SHARED, Entrance.INVITED)


@given(epochs)
def test_a_new_pool_and_a_new_member_count_from_the_next_epoch(now):
    row = open_pool(now)
    stay = join([], row, "g", now_epoch=now)
    assert row.from_epoch == stay.from_epoch == now + 1
    assert pool_at([stay], now) is None
    assert pool_at([stay], now + 1) == "p"


@given(epochs, st.integers(0, 30))
def test_whoever_leaves_when_new_terms_are_announced_is_out_before_they_hold(now, delay):
    rules = PoolRules(exit_delay_epochs=delay)
    row = found("p", SHARED, Entrance.INVITED, now_epoch=0)
    later = change_terms([row], POOL_OF_ONE, Entrance.INVITED, now_epoch=now + 1, rules=rules)
    out = leave(Membership("g", "p", 1), now_epoch=now + 1, rules=rules)
    assert out.until_epoch is not None
    assert out.until_epoch < later.from_epoch
    assert terms_at([row, later], later.from_epoch - 1) == row
    assert terms_at([row, later], later.from_epoch) == later


def test_a_pool_has_no_terms_before_its_first():
    assert terms_at([open_pool(5)], 5) is None


def test_one_change_of_terms_waits_at_a_time():
    row = open_pool()
    later = change_terms([row], *distributed(), now_epoch=1, rules=RULES)
    with pytest.raises(PoolTermsRefused, match="wait"):
        change_terms([row, later], *distributed(), now_epoch=2, rules=RULES)
    change_terms([row, later], *distributed(), now_epoch=later.from_epoch, rules=RULES)


@pytest.mark.parametrize(
    ("entrance", "own", "invited", "let_in"),
    [
        (Entrance.OWN, True, False, True),
        (Entrance.OWN, False, True, False),
        (Entrance.INVITED, False, True, True),
        (Entrance.INVITED, True, False, True),
        (Entrance.INVITED, False, False, False),
        (Entrance.OPEN, False, False, True),
    ],
)
def test_who_may_join_is_the_pools_entrance(entrance, own, invited, let_in):
    row = TermsRow("p", 1, POOL_OF_ONE, entrance)
    if let_in:
        assert join([], row, "g", now_epoch=1, own=own, invited=invited).pool == "p"
    else:
        with pytest.raises(PoolTermsRefused, match="only"):
            join([], row, "g", now_epoch=1, own=own, invited=invited)


@given(epochs, st.integers(0, 20))
def test_a_gpu_is_in_one_pool_at_a_time(now, waited):
    stay = leave(Membership("g", "p", 0), now_epoch=now, rules=RULES)
    assert stay.until_epoch == now + 4
    row = TermsRow("q", 0, POOL_OF_ONE, Entrance.OPEN)
    if now + waited + 1 < stay.until_epoch:
        with pytest.raises(PoolTermsRefused, match="leave it first"):
            join([stay], row, "g", now_epoch=now + waited)
    else:
        stays = [stay, join([stay], row, "g", now_epoch=now + waited)]
        assert sum(s.covers(epoch) for s in stays for epoch in [now + waited + 1]) == 1


def test_leaving_twice_does_not_prolong_the_stay():
    once = leave(Membership("g", "p", 0), now_epoch=5, rules=RULES)
    assert leave(once, now_epoch=9, rules=RULES) == once


def test_only_a_poor_reputation_is_kicked_and_the_stay_goes_on_for_the_delay():
    stay = Membership("g", "p", 0)
    with pytest.raises(PoolTermsRefused, match="reputation"):
        kick(stay, 5000, now_epoch=5, rules=RULES)
    assert kick(stay, 4999, now_epoch=5, rules=RULES) == leave(stay, now_epoch=5, rules=RULES)


def test_an_open_pool_shares_nothing_and_no_operator_takes_more_than_half():
    with pytest.raises(PoolTermsRefused, match="open pool"):
        found("p", SHARED, Entrance.OPEN, now_epoch=0)
    with pytest.raises(PoolTermsRefused, match="at most"):
        found("p", PoolTerms(5001, 0, 4999, "0x" + "99" * 20), Entrance.OWN, now_epoch=0)
