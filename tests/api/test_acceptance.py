"""Whether a receipt is accepted and how much of it is billed, without a database."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from api.acceptance import (
    GRACE_AFTER_RELEASE_MS,
    MINIMUM_MS,
    TOO_LATE_MS,
    Chain,
    Verdict,
    billable_ms,
    judge,
    window_ms,
)
from fabric.wire.receipts import GENESIS_HASH, GpuLine, Receipt, ReceiptKind, RunLine

times = st.integers(0, 10**9)
OPEN = Receipt(
    fabric_id="f",
    operator="op",
    lease="l",
    generation=2,
    seq=0,
    kind=ReceiptKind.OPEN,
    nonce_seq=1,
    nonce=b"n",
    previous=GENESIS_HASH,
    gpus=(GpuLine("GPU-1", 1000, 0),),
    runs=(RunLine("r", 0),),
    task_count=0,
    task_root=bytes(32),
)
EMPTY = Chain("f", "op", "l", 2, -1, b"", False, frozenset({("GPU-1", 1000)}), False, {})
AFTER = replace(EMPTY, last_seq=0, last_hash=OPEN.hash, gpu_ms={"GPU-1": 500})
TICK = replace(
    OPEN,
    seq=1,
    kind=ReceiptKind.TICK,
    previous=OPEN.hash,
    gpus=(GpuLine("GPU-1", 1000, 700),),
    runs=(RunLine("r", 700),),
)


def verdict(chain, receipt, accepted=None, age=0):
    return judge(chain, receipt, accepted, age).verdict


def test_the_next_receipt_of_a_chain_is_accepted():
    assert verdict(EMPTY, OPEN) is Verdict.ACCEPT
    assert verdict(AFTER, TICK) is Verdict.ACCEPT


def test_the_same_receipt_again_is_a_duplicate_and_another_body_is_proof_of_a_lie():
    assert verdict(AFTER, OPEN, accepted=OPEN.hash) is Verdict.DUPLICATE
    assert verdict(AFTER, replace(OPEN, reason="x"), accepted=OPEN.hash) is Verdict.EQUIVOCATION


def test_a_gap_is_early_and_not_wrong():
    assert verdict(AFTER, replace(TICK, seq=2)) is Verdict.EARLY


def test_a_duplicate_is_acknowledged_even_after_the_close():
    closed = replace(AFTER, closed=True)
    assert verdict(closed, OPEN, accepted=OPEN.hash) is Verdict.DUPLICATE
    assert verdict(closed, TICK) is Verdict.REJECT


def test_what_cannot_be_the_next_receipt_is_rejected():
    for wrong in (
        replace(TICK, generation=1),
        replace(TICK, fabric_id="g"),
        replace(TICK, operator="other"),
        replace(TICK, simulated=True),
        replace(TICK, previous=bytes(32)),
        replace(TICK, kind=ReceiptKind.OPEN),
        replace(TICK, gpus=(GpuLine("GPU-2", 1000, 700),)),
        replace(TICK, gpus=(GpuLine("GPU-1", 500, 700),)),
        replace(TICK, gpus=(GpuLine("GPU-1", 1000, 499),), runs=(RunLine("r", 499),)),
    ):
        assert verdict(AFTER, wrong) is Verdict.REJECT, wrong


def test_a_receipt_of_an_unknown_nonce_or_later_than_ten_minutes_is_rejected():
    assert verdict(AFTER, TICK, age=TOO_LATE_MS) is Verdict.ACCEPT
    assert verdict(AFTER, TICK, age=TOO_LATE_MS + 1) is Verdict.REJECT
    assert verdict(AFTER, TICK, age=None) is Verdict.REJECT


@given(times, times, times, st.none() | times)
def test_the_window_never_passes_arrival_nor_five_seconds_after_release(start, following, arrival, release):
    window = window_ms(start_ms=start, next_nonce_ms=following, arrival_ms=arrival, release_ms=release)
    assert 0 <= window <= max(0, arrival - start)
    assert window <= max(0, following - start)
    if release is not None:
        assert window <= max(0, release + GRACE_AFTER_RELEASE_MS - start)


def test_without_a_following_nonce_the_arrival_ends_the_window():
    assert window_ms(start_ms=100, next_nonce_ms=None, arrival_ms=350, release_ms=None) == 250


@given(times, times, times)
def test_billed_is_bounded_by_claim_and_window_and_never_shrinks(claim, window, billed):
    now = billable_ms(claim, window, billed, ReceiptKind.TICK)
    assert now >= billed
    assert now <= max(billed, min(claim, window))


def test_a_closed_lease_costs_at_least_a_second():
    assert billable_ms(0, 0, 0, ReceiptKind.CLOSE) == MINIMUM_MS
    assert billable_ms(0, 0, 0, ReceiptKind.TICK) == 0
    assert billable_ms(5000, 6000, 0, ReceiptKind.CLOSE) == 5000
