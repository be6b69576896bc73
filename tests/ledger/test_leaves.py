import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.hashing import keccak256
from ledger.leaves import (
    address_bytes,
    exit_leaf,
    gpu_id_hex,
    gpu_public_id,
    id_bytes,
    lease_leaf,
    payout_leaf,
    payout_leaf_batch,
    usage_leaf,
    usage_leaf_batch,
)

HOLDER = bytes.fromhex("11" * 20)


def test_a_gpus_public_id_hashes_a_prefix_and_its_uuid():
    assert gpu_public_id("GPU-1") == keccak256(b"fabric-gpu" + b"GPU-1")
    assert id_bytes(gpu_id_hex("GPU-1")) == gpu_public_id("GPU-1")


def test_a_payout_leaf_is_the_double_hash_of_four_words():
    gpu = gpu_public_id("GPU-1")
    encoded = keccak256(b"fabric.payout.v1") + gpu + bytes(12) + HOLDER + (5).to_bytes(32, "big")
    assert payout_leaf(gpu, HOLDER, 5) == keccak256(keccak256(encoded))


def test_an_exit_leaf_is_the_double_hash_of_three_words():
    encoded = keccak256(b"fabric.exit.v1") + bytes(12) + HOLDER + (5).to_bytes(32, "big")
    assert exit_leaf(HOLDER, 5) == keccak256(keccak256(encoded))


def test_leaves_of_different_kinds_or_values_differ():
    gpu = gpu_public_id("GPU-1")
    leaves = {
        payout_leaf(gpu, HOLDER, 5),
        payout_leaf(gpu, HOLDER, 6),
        usage_leaf(5, gpu, 5, 5, gpu),
        usage_leaf(6, gpu, 5, 5, gpu),
        lease_leaf("l", 5, 5, gpu),
        lease_leaf("m", 5, 5, gpu),
    }
    assert len(leaves) == 6


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 2**256 - 1)), max_size=5))
def test_a_batch_of_leaves_is_the_leaves_one_by_one(rows):
    gpus = [keccak256(name) for name, _ in rows]
    payouts = [("0x" + gpu.hex(), "0x" + HOLDER.hex(), wei) for gpu, (_, wei) in zip(gpus, rows, strict=True)]
    assert payout_leaf_batch(payouts) == [payout_leaf(gpu, HOLDER, p[2]) for gpu, p in zip(gpus, payouts, strict=True)]
    usages = [("0x" + gpu.hex(), wei % 2**60, wei % 2**50, gpu) for gpu, (_, wei) in zip(gpus, rows, strict=True)]
    assert usage_leaf_batch(7, usages) == [usage_leaf(7, gpu, *u[1:]) for gpu, u in zip(gpus, usages, strict=True)]


@pytest.mark.parametrize("bad", [("0x12", "0x" + "11" * 20, 1), ("0x" + "11" * 32, "0x11", 1)])
def test_a_batch_refuses_an_id_or_address_of_another_length(bad):
    payout_leaf_batch([("0x" + "11" * 32, "0x" + "11" * 20, 1)])
    with pytest.raises(ValueError, match="too long or short"):
        payout_leaf_batch([bad])


@pytest.mark.parametrize("bad", ["", "0x12", "11" * 20, "0x" + "zz" * 20, "0x" + "11" * 21])
def test_what_is_not_an_address_is_refused(bad):
    assert address_bytes("0x" + "aB" * 20) == b"\xab" * 20
    with pytest.raises(ValueError, match="not an address"):
        address_bytes(bad)


@pytest.mark.parametrize("bad", ["", "0x12", "11" * 32, "0x" + "zz" * 32])
def test_what_is_not_an_id_is_refused(bad):
    with pytest.raises(ValueError, match="not an id"):
        id_bytes(bad)
