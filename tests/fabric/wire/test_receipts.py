from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from fabric.wire.receipts import (
    GENESIS_HASH,
    MAX_NUMBER,
    GpuLine,
    Receipt,
    ReceiptError,
    ReceiptKind,
    RunLine,
    SignedReceipt,
    TaskLine,
    sign,
    task_root,
)

KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)

task_lines = st.builds(
    TaskLine,
    run=st.just("run_a"),
    task=st.integers(0, 10**6),
    attempt=st.integers(1, 9),
    gpus=st.just(("GPU-1",)),
    start_ms=st.integers(0, 1000),
    end_ms=st.integers(1000, 5000),
    gpu_ms=st.integers(0, 5000),
    energy_mj=st.integers(0, 10**9),
    reason=st.sampled_from(["done", "user_error"]),
    result_digest=st.binary(max_size=32),
    counters=st.lists(st.tuples(st.text(max_size=5), st.integers(0, 99)), max_size=2).map(tuple),
)


def make(tasks=(), **changes):
    fields = {
        "fabric_id": "fab_test",
        "operator": "op_a",
        "lease": "lease_a",
        "generation": 1,
        "seq": 0,
        "kind": ReceiptKind.OPEN,
        "nonce_seq": 7,
        "nonce": b"n" * 16,
        "previous": GENESIS_HASH,
        "gpus": (GpuLine("GPU-1", 1000, 1500, 200),),
        "runs": (RunLine("run_a", 1500, 100, 200),),
        "task_count": len(tasks),
        "task_root": task_root(tasks),
        "simulated": True,
    }
    return Receipt(**{**fields, **changes})


@given(st.lists(task_lines, max_size=5))
def test_a_signed_receipt_travels_unchanged(tasks):
    receipt = make(tasks)
    arrived = SignedReceipt.from_bytes(sign(receipt, tasks, KEY).to_bytes())
    assert arrived.verify(PUBLIC) == receipt
    assert list(arrived.tasks) == tasks


def test_a_receipt_may_name_some_runs_and_the_rest_as_one_sum():
    receipt = make(runs=(RunLine("run_a", 500),), others_ms=1000)
    assert Receipt.from_body(receipt.body) == receipt
    assert msgpack.unpackb(receipt.body)[0] == 2
    assert msgpack.unpackb(make().body)[0] == 1


@pytest.mark.parametrize("version", [0, 3, True, "1", [1], None])
def test_a_receipt_of_another_version_is_refused(version):
    fields = msgpack.unpackb(make().body)
    with pytest.raises(ReceiptError, match="versions 1 and 2 are understood"):
        Receipt.from_body(msgpack.packb([version, *fields[1:]]))


def test_a_sum_of_none_is_not_written_down():
    fields = msgpack.unpackb(make().body)
    with pytest.raises(ReceiptError, match="canonical"):
        Receipt.from_body(msgpack.packb([2, *fields[1:], 0]))


def test_another_key_does_not_verify():
    signed = sign(make(), (), KEY)
    with pytest.raises(ReceiptError, match="signature"):
        signed.verify(bytes(SigningKey.generate().verify_key))


@given(st.data())
def test_no_byte_of_a_signed_receipt_can_be_changed(data):
    tasks = [TaskLine("run_a", 0, 1, ("GPU-1",), 0, 5, 5, 0, "done")]
    raw = bytearray(sign(make(tasks), tasks, KEY).to_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ReceiptError):
        SignedReceipt.from_bytes(bytes(raw)).verify(PUBLIC)


@pytest.mark.parametrize(
    "alter",
    [
        lambda t: replace(t, gpu_ms=t.gpu_ms + 1),
        lambda t: replace(t, run="run_b"),
        lambda t: replace(t, result_digest=b"y" * 32),
        lambda t: replace(t, reason="user_error"),
    ],
)
def test_the_tasks_beside_a_receipt_are_bound_to_it(alter):
    task = TaskLine("run_a", 0, 1, ("GPU-1",), 0, 5, 5, 0, "done", b"x" * 32)
    signed = sign(make([task]), [task], KEY)
    forged = replace(signed, tasks=(alter(task),))
    with pytest.raises(ReceiptError, match="tasks beside"):
        forged.verify(PUBLIC)
    with pytest.raises(ReceiptError, match="tasks beside"):
        replace(signed, tasks=()).verify(PUBLIC)


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": ()},
        {"generation": 0},
        {"seq": -1},
        {"gpus": (GpuLine("GPU-1", 0, 1),)},
        {"gpus": (GpuLine("GPU-1", 1001, 1500),)},
        {"gpus": (GpuLine("GPU-1", 1000, -1),)},
        {"gpus": (GpuLine("GPU-1", 1000, 1500, 1501),)},
        {"runs": (RunLine("run_a", 1499),)},
        {"runs": (RunLine("run_a", 1500, 1400, 200),)},
        {"runs": ()},
        {"others_ms": 1},
        {"others_ms": -1, "runs": (RunLine("run_a", 1501),)},
        {"others_ms": 1000, "runs": (RunLine("run_a", 501),)},
    ],
)
def test_impossible_numbers_are_refused(change):
    with pytest.raises(ReceiptError):
        Receipt.from_body(make(**change).body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, MAX_NUMBER + 1),
        (3, ["GPU-1", 7]),
        (5, MAX_NUMBER + 1),
        (7, -MAX_NUMBER - 1),
        (10, [1]),
        (10, [["tokens", "9"]]),
        (10, [["tokens", 1, 2]]),
        (10, [["tokens", float("inf")]]),
        (10, [["tokens", MAX_NUMBER + 1]]),
    ],
)
def test_a_task_line_with_anything_else_inside_is_a_malformed_receipt(field, value):
    line = TaskLine("run_a", 0, 1, ("GPU-1",), 0, 5, 5, 1, "done", counters=(("tokens", MAX_NUMBER),)).to_list()
    assert TaskLine.from_list(line).to_list() == line
    line[field] = value
    with pytest.raises(ReceiptError):
        SignedReceipt.from_bytes(bytes(msgpack.packb([b"", b"", [line]]) or b""))


def test_a_number_beyond_what_rows_can_add_up_is_refused():
    largest = make(gpus=(GpuLine("GPU-1", 1000, 1500, 0, MAX_NUMBER, MAX_NUMBER),))
    assert Receipt.from_body(largest.body) == largest
    for line in (GpuLine("GPU-1", 1000, 1500, 0, MAX_NUMBER + 1), GpuLine("GPU-1", 1000, 1500, 0, 0, MAX_NUMBER + 1)):
        with pytest.raises(ReceiptError, match="at most"):
            Receipt.from_body(make(gpus=(line,)).body)
    with pytest.raises(ReceiptError, match="at most"):
        Receipt.from_body(make(nonce_seq=2**64 - 1).body)


def test_only_the_canonical_form_is_a_receipt():
    body = make().body
    assert Receipt.from_body(body) == make()
    assert body[3:4] == b"\x01"
    wide = body[:3] + b"\xcc\x01" + body[4:]
    assert msgpack.unpackb(wide) == msgpack.unpackb(body)
    with pytest.raises(ReceiptError, match="canonical"):
        Receipt.from_body(wide)


@given(st.binary(max_size=80))
def test_noise_is_refused(noise):
    with pytest.raises(ReceiptError):
        SignedReceipt.from_bytes(noise).verify(PUBLIC)


def test_the_hash_chain_sees_every_field():
    base = make()
    for change in ({"seq": 1}, {"lease": "lease_b"}, {"fabric_id": "other"}, {"simulated": False}, {"nonce_seq": 8}):
        assert make(**change).hash != base.hash
