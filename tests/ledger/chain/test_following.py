"""Following a chain that changes its mind, on chains made up by hypothesis."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.chain.following import Append, Block, Halt, Instruction, Look, Rest, Trail, Undo, follow

START = 5
Chain = tuple[Block, ...]


def block(number: int, salt: int, parent: bytes = b"") -> Block:
    return Block(number, bytes([number, salt]) + parent[:30], parent, 1000 + number)


def chain_of(salts: list[int], start: int = START) -> Chain:
    blocks: list[Block] = []
    for i, salt in enumerate(salts):
        blocks.append(block(start + i, salt, blocks[-1].hash if blocks else b"before"))
    return tuple(blocks)


def reorganised(chain: Chain, depth: int, salts: list[int]) -> Chain:
    kept = chain[: max(0, len(chain) - depth)]
    blocks = list(kept)
    for salt in salts:
        parent = blocks[-1].hash if blocks else b"before"
        blocks.append(block(START + len(blocks), 100 + salt, parent))
    return tuple(blocks)


def decide(trail: Trail, chain: Chain, confirmations: int) -> Instruction:
    """Answers each look from the chain as it is."""
    seen: dict[int, Block | None] = {}
    by_number: Mapping[int, Block] = {one.number: one for one in chain}
    while isinstance(made := follow(trail, seen, confirmations), Look):
        assert made.number not in seen, "it never looks at a height twice"
        seen[made.number] = by_number.get(made.number)
    return made


def settle(trail: Trail, chain: Chain, confirmations: int) -> tuple[Trail, Instruction]:
    """Follows until there is nothing more to do."""
    while True:
        made = decide(trail, chain, confirmations)
        if isinstance(made, Append):
            assert made.final >= trail.final
            trail = trail.append(made.block, made.final)
        elif isinstance(made, Undo):
            trail = trail.undo(made.to)
        else:
            return trail, made


EMPTY = Trail(START, START - 1)
salts = st.lists(st.integers(0, 3), max_size=8)


@given(salts, st.integers(0, 4))
def test_a_chain_is_read_to_its_end_and_only_confirmed_blocks_are_final(made, confirmations):
    chain = chain_of(made)
    trail, last = settle(EMPTY, chain, confirmations)
    assert isinstance(last, Rest)
    assert trail.tip == (chain[-1] if chain else None)
    assert trail.final == max(START - 1, START + len(chain) - 1 - confirmations)
    assert trail.blocks == tuple(one for one in chain if one.number >= trail.final)


@given(salts, st.lists(st.tuples(st.integers(0, 5), salts), max_size=5), st.integers(0, 4))
def test_after_any_reorg_above_finality_the_trail_is_that_of_a_new_reading(made, changes, confirmations):
    chain = chain_of(made)
    trail, _ = settle(EMPTY, chain, confirmations)
    for depth, more in changes:
        chain = reorganised(chain, depth, more)
        before, final = trail, next((one for one in trail.blocks if one.number == trail.final), None)
        trail, last = settle(trail, chain, confirmations)
        if final is not None and final not in chain:
            assert isinstance(last, Rest | Halt)
            assert trail == before
            return
        fresh, _ = settle(EMPTY, chain, confirmations)
        assert trail.tip == fresh.tip
        assert [one for one in trail.blocks if one.number >= fresh.final] == [
            one for one in fresh.blocks if one.number >= trail.final
        ]
        assert trail.final >= fresh.final


@pytest.mark.parametrize("depth", range(1, 7))
def test_a_reorg_is_undone_down_to_finality_and_halts_below_it(depth):
    chain, confirmations = chain_of([0] * 10), 3
    trail, _ = settle(EMPTY, chain, confirmations)
    made = decide(trail, reorganised(chain, depth, [1] * (depth + 1)), confirmations)
    if depth <= confirmations:
        assert made == Undo(START + 9 - depth)
    else:
        assert isinstance(made, Halt)
        assert f"block {START + 6} was final" in made.reason


def test_a_chain_that_became_shorter_is_undone_and_a_final_block_that_is_only_missing_is_waited_for():
    chain = chain_of([0] * 10)
    trail, _ = settle(EMPTY, chain, 3)
    assert decide(trail, chain[:8], 3) == Undo(START + 7)
    waiting = decide(trail, chain[:4], 3)
    assert isinstance(waiting, Rest)
    assert "behind" in waiting.why


def test_before_anything_is_final_everything_may_be_replaced():
    chain = chain_of([0, 0])
    trail, _ = settle(EMPTY, chain, 3)
    other = reorganised(chain, 2, [1, 1, 1])
    assert decide(trail, other, 3) == Undo(START - 1)
    assert settle(trail, other, 3)[0].tip == other[-1]


def test_fewer_confirmations_never_take_finality_back_and_more_only_wait():
    chain = chain_of([0] * 6)
    trail, _ = settle(EMPTY, chain, 1)
    longer = chain_of([0] * 8)
    after, _ = settle(trail, longer, 5)
    assert after.final == trail.final
    assert settle(after, chain_of([0] * 9), 0)[0].final == START + 8
