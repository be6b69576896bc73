from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.merkle import proof, verify
from ledger.allocate import EpochInput, Exit, GpuUsage, allocate, exit_leaves, payout_leaves, usage_leaves
from ledger.emission import WEI_PER_BCT
from ledger.leaves import gpu_id_hex
from ledger.split import AvailableLine, PoolTerms, UsageLine

GPUS = [gpu_id_hex(f"GPU-{n}") for n in range(4)]
HOLDERS = ["0x" + f"{n:02x}" * 20 for n in range(1, 5)]
OPERATOR = "0x" + "99" * 20
TERMS = PoolTerms(1000, 3000, 6000, OPERATOR, {"A": 2, "B": 1})


def epoch_input(lines, available=(), **fields) -> EpochInput:
    by_gpu = {gpu: [line for line in lines if line.gpu_id == gpu] for gpu in {line.gpu_id for line in lines}}
    gpus = [
        GpuUsage(gpu, sum(line.gpu_ms for line in own), sum(line.dc for line in own), bytes(32))
        for gpu, own in by_gpu.items()
    ]
    given_fields = {
        "epoch": 3,
        "start_ms": 0,
        "end_ms": 1,
        "price_usd_e18": 10**17,
        "price_source": "test",
        "emission_wei": 10**6 * WEI_PER_BCT,
        "remintable_wei": 0,
        "stake_bps": 500,
        "pools": {"p": TERMS},
    }
    return EpochInput(lines=lines, gpus=gpus, available=available, **(given_fields | fields))


usage_lines = st.lists(
    st.builds(
        UsageLine,
        st.sampled_from(GPUS),
        st.sampled_from(HOLDERS),
        st.sampled_from(["p", "q", "r"]),
        st.just("op"),
        st.integers(1, 10**7),
        st.integers(0, 10**9),
    ),
    max_size=10,
    unique_by=lambda line: line[:3],
)
idle_lines = st.lists(
    st.builds(
        AvailableLine,
        st.sampled_from(GPUS),
        st.sampled_from(HOLDERS),
        st.just("p"),
        st.just("op"),
        st.sampled_from("AB"),
        st.integers(0, 10**7),
    ),
    max_size=4,
)
inputs = st.builds(
    epoch_input,
    usage_lines,
    idle_lines,
    emission_wei=st.integers(0, 10**25),
    remintable_wei=st.integers(0, 10**22),
    price_usd_e18=st.integers(1, 10**19),
    stake_bps=st.integers(200, 1000),
    previous=st.dictionaries(
        st.tuples(st.sampled_from(GPUS), st.sampled_from(HOLDERS)), st.integers(1, 10**24), max_size=4
    ),
)


@given(inputs)
def test_rewards_and_the_stakers_share_are_exactly_the_pay_and_the_pay_is_bounded(given_input):
    result = allocate(given_input)
    totals = result.totals
    assert sum(reward.wei for reward in result.rewards) + totals.staking_wei == totals.paid_wei
    assert sum(payout.wei for payout in result.payouts) + totals.staking_wei == totals.paid_wei
    assert totals.paid_wei <= min(totals.value_wei, totals.emission_wei + totals.remintable_wei)
    assert totals.burned_dc == sum(line.dc for line in given_input.lines)


@given(inputs, st.randoms())
def test_the_order_of_the_input_changes_no_bit(given_input, random):
    lines, gpus, available = list(given_input.lines), list(given_input.gpus), list(given_input.available)
    for part in (lines, gpus, available):
        random.shuffle(part)
    previous = dict(reversed(list(given_input.previous.items())))
    shuffled = replace(given_input, lines=lines, gpus=gpus, available=available, previous=previous)
    assert allocate(shuffled) == allocate(given_input)


@given(inputs)
def test_every_leaf_is_in_its_root_and_payouts_are_cumulative(given_input):
    result = allocate(given_input)
    for payout in result.payouts:
        assert payout.cumulative_wei == given_input.previous.get(payout[:2], 0) + payout.wei
    assert given_input.previous.keys() <= {payout[:2] for payout in result.payouts}
    for leaves, root in (
        (payout_leaves(result.payouts), result.payout_root),
        (usage_leaves(result.epoch, result.usages), result.usage_root),
    ):
        for index, leaf in enumerate(leaves):
            assert verify(root, leaf, proof(leaves, index))


def test_without_usage_nothing_is_paid():
    result = allocate(epoch_input([]))
    assert (result.totals.paid_wei, result.rewards, result.payouts) == (0, (), ())
    assert result.payout_root == result.usage_root == bytes(32)


def test_who_buys_from_oneself_gets_back_less_than_was_burned():
    line = UsageLine(GPUS[0], HOLDERS[0], "self", "op", 1000, 100_000)  # one dollar, ten BCT at ten cents
    result = allocate(epoch_input([line]))
    assert result.totals.value_wei == 10 * WEI_PER_BCT
    assert result.payouts[0].wei == 10 * WEI_PER_BCT * 9500 // 10_000


def test_what_was_burned_can_be_minted_again_beyond_emission():
    line = UsageLine(GPUS[0], HOLDERS[0], "self", "op", 1000, 100_000)
    scarce = {"emission_wei": 4 * WEI_PER_BCT, "remintable_wei": 3 * WEI_PER_BCT}
    assert allocate(epoch_input([line], **scarce)).totals.paid_wei == 7 * WEI_PER_BCT


def test_rewards_go_to_each_holder_by_the_usage_in_its_time():
    lines = [
        UsageLine(GPUS[0], HOLDERS[0], "self", "op", 1000, 30_000),
        UsageLine(GPUS[0], HOLDERS[1], "self", "op", 1000, 70_000),
    ]
    first, second = allocate(epoch_input(lines)).payouts
    assert (first.holder, second.holder) == (HOLDERS[0], HOLDERS[1])
    assert first.wei * 7 == second.wei * 3


def test_lines_and_gpus_that_disagree_are_refused():
    good = epoch_input([UsageLine(GPUS[0], HOLDERS[0], "p", "op", 10, 5)])
    allocate(good)
    with pytest.raises(ValueError, match="differ"):
        allocate(replace(good, gpus=[GpuUsage(GPUS[0], 10, 6, bytes(32))]))
    with pytest.raises(ValueError, match="twice"):
        allocate(replace(good, gpus=[*good.gpus, *good.gpus]))


def test_the_roots_of_a_fixed_input_never_change():
    lines = [
        UsageLine(GPUS[0], HOLDERS[0], "p", "op", 3_600_000, 200_000),
        UsageLine(GPUS[1], HOLDERS[1], "q", "op", 1_800_000, 90_000),
    ]
    result = allocate(epoch_input(lines, [AvailableLine(GPUS[2], HOLDERS[2], "p", "op", "A", 1000)]))
    assert result.payout_root.hex() == "694f5d32bc22a6f0f1d0c55fae08ab42f75fdbce1aa9491a05b858976afd00e4"
    assert result.usage_root.hex() == "66649f06e7ce254a28ac243b59e7f02f4db8f150e9ec999b618b38b00c7c04e1"


@given(st.dictionaries(st.sampled_from(HOLDERS), st.integers(1, 10**12), min_size=1), st.randoms())
def test_every_exit_is_a_leaf_of_the_exit_root_in_any_order(exits, random):
    listed = [Exit(*pair) for pair in exits.items()]
    result = allocate(epoch_input([], exits=listed))
    random.shuffle(listed)
    assert allocate(epoch_input([], exits=listed)) == result
    assert result.exited_total_dc == sum(exits.values())
    leaves = exit_leaves(result.exits)
    assert all(verify(result.exit_root, leaf, proof(leaves, at)) for at, leaf in enumerate(leaves))


def test_an_account_that_stands_twice_among_the_exits_is_refused():
    with pytest.raises(ValueError, match="twice among the exits"):
        allocate(epoch_input([], exits=[Exit(HOLDERS[0], 1), Exit(HOLDERS[0], 2)]))
