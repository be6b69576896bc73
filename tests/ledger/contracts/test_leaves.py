"""Leaves and roots are the same bytes in Python and in Solidity; nothing but a leaf passes for one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.wire import merkle
from fabric.wire.hashing import keccak256

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text("utf-8"))
BCT = USD = 10**18


def _leaves(vector) -> list[bytes]:
    tag = merkle.tag(vector["tag"])
    return [merkle.leaf(tag, *map(_field, fields)) for fields in vector["fields"]]


def _field(text: str) -> int | bytes:
    return bytes.fromhex(text[2:]) if text.startswith("0x") else int(text)


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: f"{v['tag']}-{len(v['leaves'])}")
def test_python_gives_the_golden_leaves_and_roots(vector):
    leaves = _leaves(vector)
    assert [leaf.hex() for leaf in leaves] == vector["leaves"]
    assert merkle.root(leaves).hex() == vector["root"]


@pytest.mark.parametrize(
    "vector", [v for v in GOLDEN if v["tag"] == "fabric.payout.v1"], ids=lambda v: len(v["leaves"])
)
def test_solidity_pays_every_golden_payout_leaf(world, vector):
    world.deposit_dc("customer", BCT)
    total = sum(int(amount) for _, _, amount in vector["fields"])
    root = bytes.fromhex(vector["root"])
    world.settle(world.closing(0, rewards=total, stake=total // 9, burned_dc=100_000, payout_root=root))
    leaves = _leaves(vector)
    for i, (gpu, holder, amount) in enumerate(vector["fields"]):
        payout = (bytes.fromhex(gpu[2:]), int(amount), merkle.proof(leaves, i))
        world.send("x", "Settlement", "claim", holder, [payout])
    assert world.view("Settlement", "claimedTotal") == total


@pytest.mark.parametrize("vector", [v for v in GOLDEN if v["tag"] == "fabric.exit.v1"], ids=lambda v: len(v["leaves"]))
def test_solidity_pays_every_golden_exit_leaf(world, vector):
    world.deposit_dc("customer", BCT)
    accounts = [(account, int(amount)) for account, amount in vector["fields"]]
    for account, amount in accounts:
        world.send(account, "DataCredits", "requestExit", amount)
    total = sum(amount for _, amount in accounts)
    world.settle(world.closing(0, exited_total=total, exit_root=bytes.fromhex(vector["root"])))
    for i, (account, amount) in enumerate(accounts):
        world.send("x", "DataCredits", "claimExit", account, amount, merkle.proof(_leaves(vector), i))
        assert world.view("DataCredits", "balanceOf", account) == amount


@settings(max_examples=25, deadline=None)
@given(amounts=st.lists(st.integers(1, 10**15), min_size=1, max_size=40))
def test_every_leaf_of_any_tree_is_paid_exactly_once(new_world, amounts):
    world = new_world()
    world.report(USD)
    world.deposit_dc("customer", BCT)
    gpus = [keccak256(i.to_bytes(2, "big")) for i in range(len(amounts))]
    leaves = [world.payout_leaf(gpu, "alice", amount) for gpu, amount in zip(gpus, amounts, strict=True)]
    total = sum(amounts)
    world.settle(world.closing(0, rewards=total, stake=total // 9, burned_dc=100_000, payout_root=merkle.root(leaves)))
    payouts = [(gpus[i], amounts[i], merkle.proof(leaves, i)) for i in range(len(leaves))]
    world.send("x", "Settlement", "claim", world.address("alice"), payouts + payouts)
    assert world.view("BCT", "balanceOf", world.address("alice")) == total


def test_a_leaf_of_another_kind_is_no_payout(world, reverts):
    world.deposit_dc("customer", BCT)
    gpu, alice = b"\x01" * 32, world.address("alice")
    usage = merkle.leaf(merkle.tag("fabric.usage.v1"), gpu, bytes.fromhex(alice[2:]), 9)
    world.settle(world.closing(0, rewards=9, stake=1, burned_dc=100, payout_root=usage))
    with reverts("WrongProof"):
        world.send("x", "Settlement", "claim", alice, [(gpu, 9, [])])


def test_a_leaf_hashed_once_is_no_payout(world, reverts):
    world.deposit_dc("customer", BCT)
    gpu, alice = b"\x01" * 32, world.address("alice")
    once = keccak256(merkle.tag("fabric.payout.v1"), gpu, merkle.word(bytes.fromhex(alice[2:])), merkle.word(9))
    world.settle(world.closing(0, rewards=9, stake=1, burned_dc=100, payout_root=once))
    with reverts("WrongProof"):
        world.send("x", "Settlement", "claim", alice, [(gpu, 9, [])])
