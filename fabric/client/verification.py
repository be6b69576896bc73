"""Checks a run's receipts without asking anybody: signatures, task lists, and each lease's unbroken chain."""

from collections.abc import Mapping, Sequence

from fabric.wire.equivocation import Equivocation
from fabric.wire.receipts import GENESIS_HASH, Receipt, ReceiptError, ReceiptKind, SignedReceipt


def verify_chain(
    fabric_id: str, receipts: Sequence[SignedReceipt], session_keys: Mapping[str, Sequence[bytes]]
) -> tuple[Receipt, ...]:
    """The statements of `receipts`, by lease and number.

    Args:
        fabric_id: the fabric they must be of.
        receipts: in any order; all of a lease's, from its OPEN on.
        session_keys: Ed25519 public keys by operator.

    Raises:
        ReceiptError: a forged, foreign, missing or decreasing one.
    """
    checked = sorted(
        (_signed_by_one_of(signed, session_keys) for signed in receipts), key=lambda r: (r.lease, r.generation, r.seq)
    )
    previous: Receipt | None = None
    for receipt in checked:
        if receipt.fabric_id != fabric_id:
            raise ReceiptError(f"receipt {receipt.seq} of {receipt.lease} is of fabric {receipt.fabric_id}")
        _check_link(previous, receipt)
        previous = receipt
    return tuple(checked)


def verify_equivocation(fabric_id: str, proof: Equivocation, session_keys: Mapping[str, Sequence[bytes]]) -> None:
    """Whether an operator of this fabric said two things under one number.

    Raises:
        ReceiptError: the two do not contradict each other, or they are not signed by the operator's keys.
    """
    receipt, _ = proof.verify()
    name = f"the equivocation about receipt {receipt.seq} of {receipt.lease}"
    if receipt.fabric_id != fabric_id:
        raise ReceiptError(f"{name} is of fabric {receipt.fabric_id}")
    if not {proof.first.key, proof.second.key} <= set(session_keys.get(receipt.operator, ())):
        raise ReceiptError(f"{name} is not signed by keys of operator {receipt.operator}")


def _signed_by_one_of(signed: SignedReceipt, session_keys: Mapping[str, Sequence[bytes]]) -> Receipt:
    receipt = signed.receipt
    keys = session_keys.get(receipt.operator, ())
    for key in keys:
        try:
            return signed.verify(key)
        except ReceiptError:
            if key == keys[-1]:
                raise
    raise ReceiptError(f"no session key of operator {receipt.operator} is known")


def _check_link(previous: Receipt | None, receipt: Receipt) -> None:
    name = f"receipt {receipt.seq} of {receipt.lease}"
    if previous is None or (previous.lease, previous.generation) != (receipt.lease, receipt.generation):
        if receipt.seq != 0 or receipt.previous != GENESIS_HASH or receipt.kind is not ReceiptKind.OPEN:
            raise ReceiptError(f"{name} is the first that is there, and no OPEN")
        return
    if receipt.seq != previous.seq + 1 or receipt.previous != previous.hash:
        raise ReceiptError(f"{name} does not follow receipt {previous.seq}: one is missing or was changed")
    used = {line.uuid: line.gpu_ms for line in receipt.gpus}
    if any(used.get(line.uuid, -1) < line.gpu_ms for line in previous.gpus):
        raise ReceiptError(f"{name} states less GPU time than the one before it")
