"""Settlement: the schedule, the bound on pay, the queue, disputes and claims."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire import merkle
from ledger.emission import Schedule, value_wei_down

BCT = USD = 10**18
EPOCH_0 = 391_006_827_668_998_228_730_658  # emission(0) for P = 500 million BCT, N = 2557


@settings(max_examples=60, deadline=None)
@given(supply=st.integers(1, 2**96 - 1), n=st.integers(1, 100_000), data=st.data())
def test_emission_is_what_the_ledger_computes_and_sums_to_the_supply(new_world, supply, n, data):
    world = new_world(supply=supply, epochs=n)
    epoch = data.draw(st.integers(0, 2 * n))
    ours = Schedule(supply, n)
    assert world.view("Settlement", "scheduled", epoch) == ours.minted_before_wei(epoch)
    assert world.view("Settlement", "emission", epoch) == ours.emission_wei(epoch)
    assert world.view("Settlement", "scheduled", n) == supply


@settings(max_examples=40, deadline=None)
@given(price=st.integers(USD // 1000, 1000 * USD), dc=st.integers(0, 2**63 - 1))
def test_burned_dc_are_worth_to_the_wei_what_the_ledger_says(new_world, price, dc):
    world = new_world(reporters=("reporter-1",), quorum=1)
    world.send("reporter-1", "PriceOracle", "report", price)
    world.pass_time(600)
    assert world.view("Settlement", "valueOf", 0, dc) == value_wei_down(dc, price)


def test_the_first_days_of_the_real_schedule(world):
    assert world.view("Settlement", "emission", 0) == EPOCH_0
    assert world.view("Settlement", "emission", 2557) == 0


def _paid_epoch(world, paid: int, burned: int, **fields):
    return world.closing(0, paid=paid, burned_dc=burned, **fields)


def test_an_epoch_pays_at_most_what_its_burned_dc_are_worth_at_the_higher_price(new_world, reverts):
    world = new_world(reporters=("reporter-1",), quorum=1, step_bps=5000)
    world.send("reporter-1", "PriceOracle", "report", USD)
    world.deposit_dc("alice", BCT)
    world.pass_time(300)
    world.send("reporter-1", "PriceOracle", "report", USD // 2)
    world.pass_time(300)
    average = (300 * USD + 299 * USD // 2) // 599
    value = 1000 * 10**31 // average
    assert world.view("Settlement", "valueOf", 0, 1000) == value
    with reverts("AboveValue", value + 1, value):
        world.send("poster", "Settlement", "post", _paid_epoch(world, value + 1, 1000))
    world.send("poster", "Settlement", "post", _paid_epoch(world, value, 1000))


def test_the_price_counts_at_the_last_second_of_the_epoch_not_after(new_world):
    world = new_world(reporters=("reporter-1",), quorum=1)
    world.send("reporter-1", "PriceOracle", "report", USD)
    world.pass_time(600)
    world.send("reporter-1", "PriceOracle", "report", USD * 11 // 10)
    assert world.view("Settlement", "valueOf", 0, 1000) == BCT // 100


def test_an_epoch_pays_at_most_its_emission_and_what_was_burned_however_much_its_dc_are_worth(new_world, reverts):
    world = new_world(supply=BCT, epochs=1, epoch_seconds=2 * 86_400)
    world.report(USD)
    world.deposit_dc("alice", 10 * BCT)
    world.pass_time(2 * 86_400 - 1)
    world.report(USD * 85 // 100)
    world.pass_time(86_400)
    world.report(USD * 85 // 100)
    world.pass_time(86_400)
    world.report(USD * 85 // 100)
    world.pass_time(1)
    closings = [world.closing(e, paid=p, burned_dc=b) for e, p, b in [(0, 0, 0), (1, 10 * BCT + 1, 10**6)]]
    world.send("poster", "Settlement", "post", closings[0])
    with reverts("Refused", 1):
        world.send("poster", "Settlement", "post", closings[1])
    world.send("poster", "Settlement", "post", world.closing(1, paid=10 * BCT, burned_dc=10**6))


def test_what_is_paid_beyond_emission_leaves_remintable(new_world):
    world = new_world(supply=BCT, epochs=1)
    world.report(USD)
    world.deposit_dc("alice", 10 * BCT)
    world.settle(_paid_epoch(world, 4 * BCT, 400_000))
    assert world.view("Settlement", "reminted") == 3 * BCT
    assert world.view("Settlement", "remintable") == 7 * BCT


def test_unpaid_emission_is_never_minted_and_does_not_roll_over(world):
    world.settle(world.closing(0))
    assert world.view("Settlement", "remintable") == 0
    assert world.view("BCT", "totalSupply") == 1_000_000 * BCT
    assert world.view("Settlement", "emission", 1) < EPOCH_0


def test_paid_is_minted_at_finalisation_the_stakers_share_to_the_stakers(world):
    world.deposit_dc("alice", BCT)
    before = world.view("BCT", "totalSupply")
    world.settle(_paid_epoch(world, BCT, 100_000))
    assert world.view("BCT", "totalSupply") == before + BCT
    assert world.view("BCT", "balanceOf", world.address("stakers")) == BCT // 10
    assert world.view("BCT", "balanceOf", world.at["Settlement"]) == BCT * 9 // 10


def test_an_epoch_without_usage_closes_without_a_price(world):
    world.pass_time(601 + 86_400)
    world.send("poster", "Settlement", "post", world.closing(0))


def test_a_halted_oracle_halts_the_close_of_usage_until_it_resumes(world, reverts):
    world.deposit_dc("alice", BCT)
    world.wait_for(world.view("Settlement", "endOf", 0))
    world.report(2 * USD)
    closing = world.closing(0, burned_dc=1)
    with reverts("OracleHalted"):
        world.send("poster", "Settlement", "post", closing)
    world.send("owner", "PriceOracle", "resume")
    world.send("poster", "Settlement", "post", closing)


def test_the_stakers_share_changes_from_the_next_epoch_on(world, reverts):
    world.deposit_dc("alice", BCT)
    world.send("owner", "Settlement", "setStakeBps", 200)
    world.wait_for(world.view("Settlement", "endOf", 1))
    with reverts("WrongStake", 100, 20):
        world.send("poster", "Settlement", "post", _paid_epoch(world, 1000, 100, rewards=980, stake=20))
    world.send("poster", "Settlement", "post", _paid_epoch(world, 1000, 100))
    with reverts("WrongStake", 20, 100):
        world.send("poster", "Settlement", "post", world.closing(1, paid=1000, burned_dc=100))
    world.send("poster", "Settlement", "post", world.closing(1, paid=1000, burned_dc=100, stake_bps=200))


def test_an_epoch_that_promises_too_much_is_refused_at_its_turn_and_the_queue_rewinds_to_it(new_world):
    world = new_world(supply=BCT, epochs=1)
    world.report(USD)
    world.deposit_dc("alice", 10 * BCT)
    first = _paid_epoch(world, 8 * BCT, 800_000)
    greedy = world.closing(1, paid=9 * BCT, burned_dc=900_000)
    for closing in (first, greedy, world.closing(2)):
        world.wait_for(world.view("Settlement", "endOf", closing[0]))
        world.send("poster", "Settlement", "post", closing)
    world.pass_time(60)
    assert world.send("anybody", "Settlement", "finalise", first) is True
    assert world.send("anybody", "Settlement", "finalise", greedy) is False
    assert world.events("Settlement") == ["Rewound"]
    assert (world.view("Settlement", "finalised"), world.view("Settlement", "posted")) == (1, 1)
    world.settle(world.closing(1, paid=BCT, burned_dc=100_000), world.closing(2))


def test_a_dropped_post_cannot_be_finalised_and_a_new_one_has_its_own_window(world, reverts):
    world.wait_for(world.view("Settlement", "endOf", 1))
    for epoch in (0, 1):
        world.send("poster", "Settlement", "post", world.closing(epoch))
    _dispute(world, 0)
    world.send("owner", "Settlement", "resolve", 0, True)
    world.pass_time(60)
    with reverts("NotPosted", 0):
        world.send("anybody", "Settlement", "finalise", world.closing(0))
    world.send("poster", "Settlement", "post", world.closing(0))
    with reverts("WindowOpen"):
        world.send("anybody", "Settlement", "finalise", world.closing(0))


def _dispute(world, epoch: int) -> None:
    world.fund("auditor", 10 * BCT)
    world.send("auditor", "BCT", "approve", world.at["Settlement"], 10 * BCT)
    world.send("auditor", "Settlement", "dispute", epoch)


def _wealth(world, person: str) -> int:
    return world.view("BCT", "balanceOf", world.address(person))


def test_an_upheld_dispute_returns_the_bond(world):
    world.wait_for(world.view("Settlement", "endOf", 0))
    world.send("poster", "Settlement", "post", world.closing(0))
    _dispute(world, 0)
    assert _wealth(world, "auditor") == 0
    world.send("owner", "Settlement", "resolve", 0, True)
    assert _wealth(world, "auditor") == 10 * BCT
    assert world.view("Settlement", "posted") == 0


def test_a_rejected_dispute_burns_the_bond_and_the_epoch_goes_on(world):
    world.wait_for(world.view("Settlement", "endOf", 0))
    world.send("poster", "Settlement", "post", world.closing(0))
    _dispute(world, 0)
    supply = world.view("BCT", "totalSupply")
    world.send("owner", "Settlement", "resolve", 0, False)
    assert world.view("BCT", "totalSupply") == supply - 10 * BCT
    assert world.view("Settlement", "remintable") == 0
    world.pass_time(60)
    assert world.send("anybody", "Settlement", "finalise", world.closing(0))


def test_a_dispute_of_a_dropped_post_gives_its_bond_back_once(world, reverts):
    world.wait_for(world.view("Settlement", "endOf", 1))
    for epoch in (0, 1):
        world.send("poster", "Settlement", "post", world.closing(epoch))
        _dispute(world, epoch)
    with reverts("UnderDispute"):
        world.send("anybody", "Settlement", "reclaimBond", 2)
    world.send("owner", "Settlement", "resolve", 0, True)
    for epoch in (0, 1):
        world.send("poster", "Settlement", "post", world.closing(epoch))
    world.send("anybody", "Settlement", "reclaimBond", 2)
    assert _wealth(world, "auditor") == 20 * BCT
    with reverts("NoDispute"):
        world.send("anybody", "Settlement", "reclaimBond", 2)


GPUS = [bytes([i]) * 32 for i in range(1, 6)]


def _paid(world, amounts: list[int], holder: str = "alice") -> list[bytes]:
    """Finalises an epoch that pays ``amounts`` to the first GPUs' holder; returns the leaves."""
    world.deposit_dc("customer", BCT)
    leaves = [world.payout_leaf(gpu, holder, amount) for gpu, amount in zip(GPUS, amounts, strict=False)]
    rewards = sum(amounts)
    stake = rewards // 9
    world.settle(world.closing(0, burned_dc=1000, rewards=rewards, stake=stake, payout_root=merkle.root(leaves)))
    return leaves


def _payouts(leaves: list[bytes], amounts: list[int]):
    return [(gpu, amount, merkle.proof(leaves, i)) for i, (gpu, amount) in enumerate(zip(GPUS, amounts, strict=False))]


def test_a_claim_of_many_gpus_pays_their_sum_to_the_holder_whoever_sends_it(world):
    amounts = [9, 18, 27, 36, 9]
    leaves = _paid(world, amounts)
    world.send("stranger", "Settlement", "claim", world.address("alice"), _payouts(leaves, amounts))
    assert _wealth(world, "alice") == 99
    assert _wealth(world, "stranger") == 0


def test_a_replay_pays_nothing_also_within_one_claim(world, reverts):
    leaves = _paid(world, [9, 9])
    one = _payouts(leaves, [9, 9])[:1]
    world.send("x", "Settlement", "claim", world.address("alice"), one * 3)
    assert _wealth(world, "alice") == 9
    with reverts("NothingToClaim"):
        world.send("x", "Settlement", "claim", world.address("alice"), one)
    with reverts("NothingToClaim"):
        world.send("x", "Settlement", "claim", world.address("alice"), [])


def test_a_claim_with_another_holder_gpu_amount_or_proof_is_refused(world, reverts):
    amounts = [9, 18, 27]
    leaves = _paid(world, amounts)
    alice, path = world.address("alice"), merkle.proof(leaves, 0)
    wrong = [
        (world.address("bob"), (GPUS[0], 9, path)),
        (alice, (GPUS[1], 9, path)),
        (alice, (GPUS[0], 10, path)),
        (alice, (GPUS[0], 9, path[:1])),
        (alice, (GPUS[0], 9, merkle.proof(leaves, 1))),
        (alice, (GPUS[0], 9, [*path, bytes(32)])),
    ]
    for holder, payout in wrong:
        with reverts("WrongProof"):
            world.send("x", "Settlement", "claim", holder, [payout])
    world.send("x", "Settlement", "claim", alice, [(GPUS[0], 9, path)])


def test_the_nft_changing_hands_moves_no_reward(world):
    hosting = (bytes(32), bytes(32), world.address("operator"), 0)
    gpu = int.from_bytes(GPUS[0], "big")
    world.send("registrar", "GpuNFT", "register", world.address("alice"), gpu, b"\x09" * 32, hosting)
    leaves = _paid(world, [9])
    world.send("alice", "GpuNFT", "transferFrom", world.address("alice"), world.address("bob"), gpu)
    world.send("bob", "Settlement", "claim", world.address("alice"), _payouts(leaves, [9]))
    assert (_wealth(world, "alice"), _wealth(world, "bob")) == (9, 0)


def test_leaves_that_grant_more_than_was_promised_never_take_other_peoples_money(world, reverts):
    world.deposit_dc("customer", BCT)
    leaf = world.payout_leaf(GPUS[0], "thief", BCT)
    world.settle(world.closing(0, paid=BCT // 2, burned_dc=100_000, payout_root=leaf))
    world.fund("auditor", 10 * BCT)
    world.send("auditor", "BCT", "transfer", world.at["Settlement"], 10 * BCT)
    with reverts("AbovePromised"):
        world.send("x", "Settlement", "claim", world.address("thief"), [(GPUS[0], BCT, [])])


def test_a_newer_root_pays_the_difference_and_an_older_proof_nothing(world, reverts):
    _paid(world, [9])
    world.send("x", "Settlement", "claim", world.address("alice"), [(GPUS[0], 9, [])])
    newer = world.payout_leaf(GPUS[0], "alice", 27)
    world.settle(world.closing(1, paid=20, burned_dc=100, payout_root=newer))
    with reverts("WrongProof"):
        world.send("x", "Settlement", "claim", world.address("alice"), [(GPUS[0], 9, [])])
    world.send("x", "Settlement", "claim", world.address("alice"), [(GPUS[0], 27, [])])
    assert _wealth(world, "alice") == 27


@pytest.mark.parametrize("broken", ["minter", "settlement", "token"])
def test_contracts_that_do_not_name_each_other_are_not_deployed_together(world, broken, reverts):
    person = world.address("somebody")
    here = world._future_address(2)
    world.deploy("BCT", person, BCT, person if broken == "minter" else here)
    token = person if broken == "token" else world.at["BCT"]
    world.deploy("DataCredits", token, world.at["PriceOracle"], person if broken == "settlement" else here)
    with reverts("WrongDeployment"):
        world.deploy(
            "Settlement",
            person,
            world.at["BCT"],
            world.at["DataCredits"],
            (world.now, 600, 60, 1, 1),
            person,
            person,
            1000,
            BCT,
        )
