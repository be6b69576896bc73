"""The challenge of a GPU: who has the memory and the product passes; every shortcut is found."""

import secrets
from dataclasses import replace

import numpy as np
import pytest

from fabric.wire.bands import band_of, plan_for
from fabric.wire.challenge import (
    BLOCK_ROWS,
    MAX_EDGE,
    MODULUS,
    OPENED,
    ChallengeError,
    Plan,
    Prover,
    Referee,
    left_rows,
    right_rows,
)

SEED, SHARED, KEY = b"seed", b"shared", b"key"
PLAN = Plan(edge=64, blocks=300, fill_limit_ms=1, digest_limit_ms=1, open_limit_ms=1)
INDICES = [0, 17, 127, 128, 299]


@pytest.fixture(scope="module")
def referee() -> Referee:
    return Referee(SHARED, PLAN.edge, secrets.token_bytes(32))


class Exam:
    """An honest answer, to be tampered with."""

    def __init__(self, *, seed: bytes = SEED, shared: bytes = SHARED, key: bytes = KEY) -> None:
        self.prover = Prover(PLAN)
        self.root = self.prover.fill(seed, shared)
        self.spoil()
        self.keyed_root = self.prover.digest(key)
        self.openings = self.prover.open(INDICES)

    def spoil(self) -> None:
        """What a liar does between commitment and key."""

    def problem(self, referee: Referee) -> str:
        return referee.problem(PLAN, SEED, KEY, self.root, self.keyed_root, INDICES, self.openings)


def test_an_honest_answer_is_right(referee):
    assert Exam().problem(referee) == ""


def test_the_product_is_the_one_that_integers_give():
    prover = Prover(PLAN)
    prover.fill(SEED, SHARED)
    prover.digest(KEY)
    left = left_rows(np, SEED, PLAN.edge, 0, PLAN.blocks * BLOCK_ROWS).astype(np.int64)
    right = right_rows(np, SHARED, PLAN.edge, 0, PLAN.edge).astype(np.int64)
    block = np.frombuffer(prover.open([17])[0].block, np.uint8).reshape(BLOCK_ROWS, PLAN.edge)
    rows = slice(17 * BLOCK_ROWS, 18 * BLOCK_ROWS)
    assert np.array_equal(block, np.remainder(left[rows] @ right, MODULUS))
    assert (left.min(), left.max()) == (-8, 7)
    assert (right.min(), right.max()) == (-125, 125)


def test_no_sum_leaves_what_float32_holds_exactly():
    assert MAX_EDGE * 8 * 125 < 2**24


def test_precomputed_answers_of_another_seed_are_wrong(referee):
    assert "is not the product" in Exam(seed=b"yesterday").problem(referee)
    assert "is not the product" in Exam(shared=b"yesterday").problem(referee)


def test_a_key_that_was_guessed_before_it_came_is_wrong(referee):
    assert "was not in memory" in Exam(key=b"guess").problem(referee)


def test_a_right_block_that_was_not_committed_to_is_wrong(referee):
    late, honest = Exam(seed=b"nothing yet"), Exam()
    late.openings, late.keyed_root = honest.openings, honest.keyed_root
    assert "was not committed to" in late.problem(referee)


class HalfTheMemory(Exam):
    """Keeps every other block, and computes those it is asked for again when it must show them."""

    def spoil(self) -> None:
        held = self.prover._filled.copy()
        self.prover._filled[1::2] = 0
        self.prover_full = held


def test_who_kept_half_of_it_is_found_even_when_what_it_shows_is_right(referee):
    liar = HalfTheMemory()
    assert "is not the product" in liar.problem(referee)
    right = [replace(one, block=liar.prover_full[one.index].tobytes()) for one in liar.openings]
    liar.openings = right
    assert "was not in memory when the key came" in liar.problem(referee)


def test_a_single_wrong_number_is_found(referee):
    exam = Exam()
    block = bytearray(exam.openings[1].block)
    block[3] = (block[3] + 1) % MODULUS
    exam.openings[1] = replace(exam.openings[1], block=bytes(block))
    assert "is not the product" in exam.problem(referee)


def test_a_number_beyond_the_modulus_hides_nothing(referee):
    exam = Exam()
    block = bytearray(exam.openings[0].block)
    at = next(i for i, value in enumerate(block) if value < 256 - MODULUS)
    block[at] += MODULUS
    exam.openings[0] = replace(exam.openings[0], block=bytes(block))
    assert "is not the product" in exam.problem(referee)


@pytest.mark.parametrize("change", ["order", "missing", "short"])
def test_other_blocks_than_those_asked_for_are_refused(referee, change):
    exam = Exam()
    if change == "order":
        exam.openings.reverse()
    elif change == "missing":
        exam.openings.pop()
    else:
        exam.openings[0] = replace(exam.openings[0], block=exam.openings[0].block[:-1])
    assert exam.problem(referee)


@pytest.mark.parametrize(("edge", "blocks"), [(0, 1), (24, 1), (MAX_EDGE + 16, 1), (64, 0)])
def test_an_impossible_plan_is_refused(edge, blocks):
    with pytest.raises(ChallengeError, match=f"edge {edge}"):
        replace(PLAN, edge=edge, blocks=blocks)


def test_a_plan_fills_most_of_the_claimed_memory_and_little_of_a_simulated_one():
    gib = 1 << 30
    assert 0.8 < plan_for("H100", 80 * gib).filled_bytes / (80 * gib) < 0.9
    assert 0.8 < plan_for("T4", 16 * gib).filled_bytes / (16 * gib) < 0.9
    assert plan_for("H100", 80 * gib, simulated=True).filled_bytes < 4 << 20


@pytest.mark.parametrize(("slow", "reached"), [("L4", 1), ("T4", 1), ("V100", 1), ("RTX 4090", 1), ("A100", 0.9)])
def test_a_slower_model_is_late_for_an_h100(slow, reached):
    plan = plan_for("H100", 80 << 30)
    assert plan.operations / (reached * band_of(slow).honest_tflops * 1e9) > plan.fill_limit_ms
    assert plan.operations / (0.5 * band_of("H100").honest_tflops * 1e9) < plan.fill_limit_ms


def test_two_gpus_cannot_be_one_that_answers_for_both_in_turns():
    for model in ("H100", "A100", "L4"):
        plan = plan_for(model, 24 << 30)
        honest_ms = plan.operations / (band_of(model).honest_tflops * 1e9)
        assert 3 * honest_ms > plan.fill_limit_ms


def test_enough_blocks_are_shown():
    assert (1 - 0.1) ** OPENED < 0.1
