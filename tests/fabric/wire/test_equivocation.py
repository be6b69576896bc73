"""Proofs of equivocation: what proves a lie, and what does not."""

from dataclasses import replace

import pytest
from nacl.signing import SigningKey

from fabric.client.verification import verify_equivocation
from fabric.wire.equivocation import Equivocation, Statement
from fabric.wire.receipts import GENESIS_HASH, GpuLine, Receipt, ReceiptError, ReceiptKind, RunLine, sign, task_root

KEY, NEW_KEY = SigningKey(b"k" * 32), SigningKey(b"n" * 32)


def receipt(gpu_ms=1_000, **override):
    values = {
        "fabric_id": "f",
        "operator": "op-1",
        "lease": "lease-1",
        "generation": 1,
        "seq": 1,
        "kind": ReceiptKind.TICK,
        "nonce_seq": 1,
        "nonce": bytes(32),
        "previous": GENESIS_HASH,
        "gpus": (GpuLine("GPU-1", 1000, gpu_ms),),
        "runs": (RunLine("run-1", gpu_ms),),
        "task_count": 0,
        "task_root": task_root(()),
    }
    return Receipt(**values | override)


def said(body, key=KEY):
    return Statement.of(sign(body, (), key), bytes(key.verify_key))


def test_two_bodies_under_one_number_are_a_proof_also_under_two_keys():
    for key in (KEY, NEW_KEY):
        proof = Equivocation(said(receipt(1_000)), said(receipt(2_000), key))
        assert Equivocation.from_json(proof.to_json()) == proof
        assert [one.gpus[0].gpu_ms for one in proof.verify()] == [1_000, 2_000]
        verify_equivocation("f", proof, {"op-1": [bytes(KEY.verify_key), bytes(NEW_KEY.verify_key)]})


@pytest.mark.parametrize(
    "other",
    [{"seq": 2}, {"lease": "lease-2"}, {"generation": 2}, {"operator": "op-2"}, {"fabric_id": "g"}, {"gpu_ms": 1_000}],
    ids=lambda other: next(iter(other)),
)
def test_what_does_not_contradict_is_no_proof(other):
    proof = Equivocation(said(receipt()), said(receipt(**{"gpu_ms": 2_000} | other)))
    with pytest.raises(ReceiptError, match="no equivocation"):
        proof.verify()


def test_a_forged_half_is_no_proof():
    honest, lie = said(receipt()), said(receipt(2_000))
    with pytest.raises(ReceiptError, match="signature"):
        Equivocation(honest, replace(lie, signature=honest.signature)).verify()
    with pytest.raises(ReceiptError, match="signature"):
        Equivocation(honest, replace(lie, key=bytes(NEW_KEY.verify_key))).verify()


def test_a_proof_by_a_strangers_key_or_of_another_fabric_accuses_nobody():
    proof = Equivocation(said(receipt()), said(receipt(2_000), NEW_KEY))
    with pytest.raises(ReceiptError, match="not signed by keys of operator op-1"):
        verify_equivocation("f", proof, {"op-1": [bytes(KEY.verify_key)]})
    with pytest.raises(ReceiptError, match="is of fabric f"):
        verify_equivocation("g", proof, {"op-1": [bytes(KEY.verify_key), bytes(NEW_KEY.verify_key)]})


@pytest.mark.parametrize("members", [{}, {"first": 1, "second": 2}, {"first": {"body": "!"}, "second": {}}])
def test_what_is_no_proof_is_refused(members):
    with pytest.raises(ReceiptError, match="not a proof of equivocation"):
        Equivocation.from_json(members)
