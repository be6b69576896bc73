import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.hashing import keccak256
from ledger.allocate import EpochInput, Exit, GpuUsage, allocate
from ledger.epoch import (
    TRANSITIONS,
    CloseFacts,
    EpochClock,
    EpochState,
    epoch_file,
    file_hash,
    next_state,
    not_carried,
    read_file,
    verify_file,
)
from ledger.leaves import gpu_id_hex
from ledger.split import AvailableLine, PoolTerms, UsageLine

CLOCK = EpochClock(genesis_ms=1000, epoch_ms=100)
GPU, OTHER = gpu_id_hex("GPU-1"), gpu_id_hex("GPU-2")
FACTS = CloseFacts(closed_ms=1900, head=b"\1" * 32, payers={"0xaa": 100}, settlement="not settled")
HOLDER, OPERATOR = "0x" + "11" * 20, "0x" + "99" * 20


def file() -> tuple[EpochInput, bytes]:
    given_input = EpochInput(
        epoch=7,
        start_ms=1700,
        end_ms=1800,
        lines=[UsageLine(GPU, HOLDER, 'pool "é"', "op", 10, 40), UsageLine(GPU, OPERATOR, "q", "op", 10, 60)],
        gpus=[GpuUsage(GPU, 20, 100, bytes(32), 2, 6000)],
        available=[AvailableLine(OTHER, HOLDER, 'pool "é"', "op", "A", 5)],
        pools={'pool "é"': PoolTerms(100, 900, 9000, OPERATOR, {"A": 1}, 500)},
        previous={(OTHER, OPERATOR): 77},
        price_usd_e18=10**17,
        price_source="test",
        emission_wei=10**24,
        remintable_wei=5,
        stake_bps=300,
        exits=[Exit(OPERATOR, 7), Exit(HOLDER, 5)],
    )
    return given_input, epoch_file(given_input, allocate(given_input), FACTS)


@given(st.integers(1000, 10**9))
def test_a_moment_is_in_exactly_the_epoch_between_whose_bounds_it_lies(ms):
    epoch = CLOCK.at(ms)
    assert CLOCK.start(epoch) <= ms < CLOCK.end(epoch) == CLOCK.start(epoch + 1)


def test_a_moment_before_epoch_zero_is_refused():
    assert CLOCK.at(1000) == 0
    with pytest.raises(ValueError, match="before epoch 0"):
        CLOCK.at(999)


@given(st.sampled_from(EpochState), st.sampled_from(EpochState))
def test_an_epoch_takes_listed_edges_only(state, target):
    assert set(TRANSITIONS) == set(EpochState)
    if target in TRANSITIONS[state]:
        assert next_state(state, target) is target
    else:
        with pytest.raises(ValueError, match="cannot become"):
            next_state(state, target)


def test_a_file_gives_back_its_input_and_the_same_allocation():
    given_input, body = file()
    again, _ = read_file(body)
    assert allocate(again) == allocate(given_input)
    assert verify_file(body).faults == ()
    assert file_hash(body) == keccak256(body)


def test_a_file_is_the_same_whatever_the_order_of_its_input():
    given_input, body = file()
    swapped = EpochInput(**{name: getattr(given_input, name) for name in given_input.__slots__})
    object.__setattr__(swapped, "lines", list(reversed(given_input.lines)))
    assert epoch_file(swapped, allocate(swapped), FACTS) == body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("payouts", 0, 2), "1"),
        (("payouts", 0, 3), "1"),
        (("payouts", 0, 1), "0x" + "22" * 20),
        (("rewards", 0, 6), "1"),
        (("rewards", 0, 5), "41"),
        (("usages", 0, 2), "99"),
        (("usages", 0, 3), "0x" + "22" * 32),
        (("payers", 0, 1), "99"),
        (("totals", "paid_wei"), "1"),
        (("totals", "staking_wei"), "1"),
        (("totals", "emission_wei"), "1"),
        (("price_usd_e18",), "1"),
        (("stake_bps",), 301),
        (("payout_root",), "0x" + "22" * 32),
        (("usage_root",), "0x" + "22" * 32),
        (("pools", 'pool "é"', "model_weights", "A"), 0),
    ],
)
def test_a_changed_number_in_a_file_is_found(path, value):
    _, body = file()
    content = json.loads(body)
    place = content
    for step in path[:-1]:
        place = place[step]
    assert place[path[-1]] != value
    place[path[-1]] = value
    changed = json.dumps(content).encode()
    faults = verify_file(changed).faults
    assert faults
    assert faults != ("the file is not in canonical form",)


def test_a_file_that_is_not_canonical_is_found():
    _, body = file()
    assert verify_file(json.dumps(json.loads(body)).encode()).faults == ("the file is not in canonical form",)


def test_a_file_of_another_version_is_refused():
    _, body = file()
    with pytest.raises(ValueError, match="version"):
        read_file(body.replace(b'"version":2', b'"version":1'))


def after(body: bytes, **changed: object) -> bytes:
    """The file of an epoch that goes on from another one's, with parts of it changed."""
    given_input, content = read_file(body)
    owed = {(gpu, who): int(total) for gpu, who, _, total in content["payouts"]}
    following = replace(given_input, epoch=given_input.epoch + 1, **({"previous": owed} | changed))  # type: ignore[arg-type]
    return epoch_file(following, allocate(following), FACTS)


def test_an_epoch_goes_on_from_the_sums_of_the_one_before():
    _, body = file()
    assert not list(not_carried(after(body), body))
    assert not list(
        not_carried(after(body, exits=[Exit(OPERATOR, 8), Exit(HOLDER, 5), Exit("0x" + "33" * 20, 1)]), body)
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"previous": {}},
        {"previous": {(OTHER, OPERATOR): 77}},
        {"exits": [Exit(OPERATOR, 6), Exit(HOLDER, 5)]},
        {"exits": [Exit(OPERATOR, 7)]},
    ],
)
def test_sums_that_begin_otherwise_and_exits_that_shrink_are_found(changed):
    _, body = file()
    assert list(not_carried(after(body, **changed), body))


def test_the_first_epoch_begins_with_nothing():
    given_input, body = file()
    assert [fault for fault in not_carried(body, None) if "77 wei" in fault]
    first = replace(given_input, previous={})
    assert not list(not_carried(epoch_file(first, allocate(first), FACTS), None))
