"""Receipts verify offline, and any change to them shows."""

from dataclasses import replace

import pytest
from nacl.signing import SigningKey

from fabric.client.runs import RunReceipt
from fabric.wire.receipts import (
    GENESIS_HASH,
    GpuLine,
    Receipt,
    ReceiptError,
    ReceiptKind,
    RunLine,
    TaskLine,
    sign,
    task_root,
)

KEY = SigningKey(b"k" * 32)
KINDS = (ReceiptKind.OPEN, ReceiptKind.TICK, ReceiptKind.CLOSE)


def chain(lease="lease_1", used=(0, 1000, 1500), key=KEY, fabric_id="f"):
    previous, signed = GENESIS_HASH, []
    for seq, (kind, ms) in enumerate(zip(KINDS, used, strict=True)):
        tasks = (TaskLine("run_1", seq, 1, ("GPU-1",), 0, ms, ms, 0, "done"),)
        receipt = Receipt(
            fabric_id, "op_1", lease, 1, seq, kind, seq, b"n", previous, (GpuLine("GPU-1", 1000, ms),),
            (RunLine("run_1", ms),), 1, task_root(tasks),
        )  # fmt: skip
        signed.append(sign(receipt, tasks, key))
        previous = receipt.hash
    return signed


def receipts(*signed):
    return RunReceipt("f", tuple(signed), {"op_1": (bytes(KEY.verify_key),)})


def test_whole_chains_verify_in_any_order():
    both = receipts(*reversed(chain()), *chain("lease_2"))
    assert [(r.lease, r.seq) for r in both.verify()] == [(x, n) for x in ("lease_1", "lease_2") for n in range(3)]
    assert both.gpu_ms == 3000


def test_receipts_survive_being_saved_and_read_again():
    saved = receipts(*chain()).to_answer()
    assert len(RunReceipt.from_answer(saved).verify()) == 3


@pytest.mark.parametrize("bad", [{}, {"operators": {}}, {"operators": 1, "receipts": [], "fabric_id": "f"}])
def test_what_is_no_receipt_is_refused(bad):
    with pytest.raises(ReceiptError, match="not a run's receipts"):
        RunReceipt.from_answer(bad)


def test_a_missing_receipt_shows():
    first, _, last = chain()
    with pytest.raises(ReceiptError, match="one is missing"):
        receipts(first, last).verify()
    with pytest.raises(ReceiptError, match="no OPEN"):
        receipts(last).verify()


def test_another_key_another_fabric_and_an_unknown_operator_show():
    with pytest.raises(ReceiptError, match="signature"):
        receipts(*chain(key=SigningKey(b"x" * 32))).verify()
    with pytest.raises(ReceiptError, match="fabric g"):
        receipts(*chain(fabric_id="g")).verify()
    with pytest.raises(ReceiptError, match="no session key"):
        RunReceipt("f", tuple(chain()), {}).verify()


def test_a_changed_task_list_shows():
    first, middle, last = chain()
    with pytest.raises(ReceiptError, match="not the ones it signs"):
        receipts(first, replace(middle, tasks=()), last).verify()


def test_gpu_time_that_goes_back_shows():
    with pytest.raises(ReceiptError, match="less GPU time"):
        receipts(*chain(used=(0, 1000, 900))).verify()


def test_one_of_several_session_keys_suffices():
    both = {"op_1": (bytes(SigningKey(b"o" * 32).verify_key), bytes(KEY.verify_key))}
    assert len(RunReceipt("f", tuple(chain()), both).verify()) == 3
