"""Data Credits: bought by burning BCT at the worse price, deposited, burned for usage, taken out once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire import merkle

BCT = USD = 10**18
DAY = 86_400


@pytest.fixture
def single(new_world):
    return new_world(reporters=("reporter-1",), quorum=1, step_bps=5000, freshness=DAY)


@pytest.mark.parametrize(("moved", "price"), [(USD * 3 // 2, USD * 5 // 4), (USD // 2, USD // 2)])
def test_dc_are_minted_at_the_lower_of_price_and_average(single, moved, price):
    single.send("reporter-1", "PriceOracle", "report", USD)
    single.pass_time(1000)
    single.send("reporter-1", "PriceOracle", "report", moved)
    single.pass_time(1000)
    single.fund("alice", BCT)
    assert single.buy_dc("alice", BCT) == 100_000 * price // USD


@settings(max_examples=50, deadline=None)
@given(bct=st.integers(10**13, 1000 * BCT), price=st.integers(USD // 100, 100 * USD))
def test_minted_dc_are_rounded_down_and_exactly_the_bct_is_burned(new_world, bct, price):
    world = new_world(reporters=("reporter-1",), quorum=1)
    world.send("reporter-1", "PriceOracle", "report", price)
    world.fund("alice", bct)
    before = world.view("BCT", "totalSupply")
    expected = bct * price // 10**31
    if expected == 0:
        return
    assert world.buy_dc("alice", bct) == expected
    assert world.view("BCT", "totalSupply") == before - bct
    assert world.view("DataCredits", "bctBurned") == bct


def test_bct_that_buys_no_whole_credit_is_refused_and_not_burned(world, reverts):
    world.fund("alice", 10**13)
    with reverts("TooFewCredits", 0, 0):
        world.buy_dc("alice", 10**13 - 1)
    assert world.view("BCT", "balanceOf", world.address("alice")) == 10**13
    assert world.buy_dc("alice", 10**13) == 1


def test_a_halted_oracle_halts_minting(world, reverts):
    world.fund("alice", BCT)
    world.report(2 * USD)
    with reverts("OracleHalted"):
        world.buy_dc("alice", BCT)


@pytest.mark.parametrize("function", ["transfer", "approve"])
def test_dc_do_not_move_between_people(world, reverts, function):
    world.fund("alice", BCT)
    world.buy_dc("alice", BCT)
    with reverts("NotTransferable"):
        world.send("alice", "DataCredits", function, world.at["DataCredits"], 1)
    with reverts("NotTransferable"):
        world.send("alice", "DataCredits", "transferFrom", world.address("alice"), world.address("bob"), 1)


def test_a_deposit_moves_dc_into_the_contract_and_nobody_can_deposit_more_than_they_have(world, reverts):
    dc = world.deposit_dc("alice", BCT)
    assert world.view("DataCredits", "balanceOf", world.address("alice")) == 0
    assert world.view("DataCredits", "depositedTotal") == dc == 100_000
    with reverts("ERC20InsufficientBalance"):
        world.send("alice", "DataCredits", "deposit", 1)


def test_an_exit_waits_for_the_next_finalised_epoch_and_is_paid_once(world, reverts):
    world.deposit_dc("alice", BCT)
    world.send("alice", "DataCredits", "requestExit", 100)
    with reverts("ExitNotDue"):
        world.send("anybody", "DataCredits", "claimExit", world.address("alice"), 100, [])
    world.settle(world.closing(0, exit_root=world.exit_leaf("alice", 100), exited_total=100))
    world.send("anybody", "DataCredits", "claimExit", world.address("alice"), 100, [])
    assert world.view("DataCredits", "balanceOf", world.address("alice")) == 100
    with reverts("NothingToPay"):
        world.send("anybody", "DataCredits", "claimExit", world.address("alice"), 100, [])


def test_sums_are_cumulative_so_a_later_root_pays_only_the_difference(world):
    world.deposit_dc("alice", BCT)
    for epoch, cumulative in enumerate((100, 250)):
        world.send("alice", "DataCredits", "requestExit", 150)
        world.settle(world.closing(epoch, exit_root=world.exit_leaf("alice", cumulative), exited_total=cumulative))
        world.send("anybody", "DataCredits", "claimExit", world.address("alice"), cumulative, [])
        assert world.view("DataCredits", "balanceOf", world.address("alice")) == cumulative


def test_after_30_days_without_finalisation_the_last_root_pays(world, reverts):
    world.deposit_dc("alice", BCT)
    world.send("alice", "DataCredits", "requestExit", 100)
    world.settle(world.closing(0, exit_root=world.exit_leaf("alice", 100), exited_total=100))
    world.send("alice", "DataCredits", "requestExit", 100)
    world.pass_time(30 * DAY - 1)
    with reverts("ExitNotDue"):
        world.send("anybody", "DataCredits", "claimExit", world.address("alice"), 100, [])
    world.pass_time(1)
    world.send("anybody", "DataCredits", "claimExit", world.address("alice"), 100, [])
    assert world.view("DataCredits", "balanceOf", world.address("alice")) == 100


def test_an_exit_leaf_pays_nobody_else_and_no_other_amount(world, reverts):
    world.deposit_dc("alice", BCT)
    for person in ("alice", "bob"):
        world.send(person, "DataCredits", "requestExit", 100)
    leaves = [world.exit_leaf("alice", 100), world.exit_leaf("bob", 50)]
    world.settle(world.closing(0, exit_root=merkle.root(leaves), exited_total=150))
    for person, amount, proof in [("bob", 100, 0), ("alice", 99, 0), ("alice", 100, 1), ("bob", 51, 1)]:
        with reverts("WrongProof"):
            world.send("x", "DataCredits", "claimExit", world.address(person), amount, merkle.proof(leaves, proof))
    world.send("x", "DataCredits", "claimExit", world.address("bob"), 50, merkle.proof(leaves, 1))


@pytest.mark.parametrize(("burned", "exited"), [(100_001, 0), (0, 100_001), (60_000, 40_001)])
def test_an_epoch_cannot_burn_and_exit_more_than_was_deposited(world, reverts, burned, exited):
    world.deposit_dc("alice", BCT)
    world.wait_for(world.view("Settlement", "endOf", 0))
    with reverts("Refused", 2):
        world.send("poster", "Settlement", "post", world.closing(0, burned_dc=burned, exited_total=exited))
    world.settle(world.closing(0, burned_dc=60_000, exited_total=40_000))
    assert world.view("DataCredits", "totalSupply") == 40_000
