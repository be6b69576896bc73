"""The way of a run's leases into closed epochs, checked without asking anybody.

A task is bound by its receipt's task root, a receipt by the hash of a later one, the last of them by the lease's leaf,
the lease by its GPU's usage leaf, that by the epoch's usage root. What the root itself is worth, the epoch's file and
the chain say: `fabric ledger epoch N --verify`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fabric.wire.leaves import gpu_public_id, lease_leaf, reserved_root, usage_leaf
from fabric.wire.merkle import verify
from fabric.wire.receipts import Receipt, ReceiptError, SignedReceipt, TaskLine


@dataclass(frozen=True, slots=True)
class LeaseInEpoch:
    """One lease on one GPU in one closed epoch: both leaves' values, and their paths bottom up.

    Attributes:
        gpu: public id.
        gpu_ms, dc: the lease's, in this epoch.
        receipt_hash: of its last receipt counted there.
        usage_gpu_ms, usage_dc: the GPU's, of all leases.
        settlement: how the epoch is settled, in words.
        bound: empty, or the lease is a slot's: (lease, hash of its last receipt) of what ran on it, and `receipt_hash`
            their root.
    """

    epoch: int
    lease: str
    gpu: bytes
    gpu_ms: int
    dc: int
    receipt_hash: bytes
    lease_path: tuple[bytes, ...]
    usage_gpu_ms: int
    usage_dc: int
    leases_root: bytes
    usage_path: tuple[bytes, ...]
    usage_root: bytes
    file_hash: bytes
    settlement: str
    bound: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> "LeaseInEpoch":
        """Raises KeyError, TypeError or ValueError on anything else than such an answer."""
        read = {name: _read(name, answer[name]) for name in cls.__dataclass_fields__ if name != "bound"}
        bound = tuple((str(lease), _bytes(digest)) for lease, digest in answer.get("bound", ()))
        return cls(**read, bound=bound)

    def to_answer(self) -> dict[str, Any]:
        shown = {name: _shown(value) for name, value in asdict(self).items() if name != "bound"}
        return shown | {"bound": [[lease, _shown(digest)] for lease, digest in self.bound]}


@dataclass(frozen=True, slots=True)
class RunProof:
    """What `RunReceipt.proof` checked: the run's way into closed epochs.

    Attributes:
        epochs: by epoch, lease and GPU; the GPUs' roots are those of these epochs.
        tasks: all tasks that the epochs bind; those of other runs on the same leases too.
        open_tasks: those in receipts that no closed epoch counts yet.
    """

    epochs: tuple[LeaseInEpoch, ...]
    tasks: tuple[TaskLine, ...]
    open_tasks: tuple[TaskLine, ...]


def prove(links: Sequence[LeaseInEpoch], signed: Sequence[SignedReceipt]) -> RunProof:
    """The proof, after every step of it was computed again.

    Args:
        links: as the control plane told them.
        signed: verified, with unbroken chains.

    Raises:
        ReceiptError: a path does not lead where it says, or starts at no receipt of these.
    """
    receipts = [one.receipt for one in signed]
    by_hash = {receipt.hash: receipt for receipt in receipts}
    counted: dict[tuple[str, int], int] = {}
    used: dict[tuple[str, bytes], int] = {}
    for link in sorted(links, key=lambda one: (one.epoch, one.lease, one.gpu)):
        lasts = _last_receipts(link, by_hash)
        _check_paths(link)
        if not link.bound:  # a slot's time is paid used or not
            used[link.lease, link.gpu] = used.get((link.lease, link.gpu), 0) + link.gpu_ms
            _check_time(link, used[link.lease, link.gpu], receipts)
        for last in lasts:
            key = (last.lease, last.generation)
            counted[key] = max(counted.get(key, -1), last.seq)
    tasks: dict[bool, list[TaskLine]] = {True: [], False: []}
    for one in signed:
        last_seq = counted.get((one.receipt.lease, one.receipt.generation), -1)
        tasks[one.receipt.seq <= last_seq] += one.tasks
    return RunProof(tuple(links), tuple(tasks[True]), tuple(tasks[False]))


def _last_receipts(link: LeaseInEpoch, by_hash: Mapping[bytes, Receipt]) -> list[Receipt]:
    """Those of these receipts which the epoch counts last, of the lease or of what ran on the slot."""
    bound = link.bound or ((link.lease, link.receipt_hash),)
    if link.bound and reserved_root(bound) != link.receipt_hash:
        raise ReceiptError(f"epoch {link.epoch}: the receipts said to be bound by {link.lease} are not those it binds")
    found = [by_hash[digest] for lease, digest in bound if digest in by_hash and by_hash[digest].lease == lease]
    if not found:
        raise ReceiptError(f"epoch {link.epoch} counts lease {link.lease} by a receipt that is not there")
    if link.bound and not any(gpu_public_id(line.uuid) == link.gpu for one in found for line in one.gpus):
        raise ReceiptError(f"epoch {link.epoch}: {link.lease} is of another GPU than the receipts it binds")
    return found


def _check_paths(link: LeaseInEpoch) -> None:
    name = f"lease {link.lease} in epoch {link.epoch}"
    leaf = lease_leaf(link.lease, link.gpu_ms, link.dc, link.receipt_hash)
    if not verify(link.leases_root, leaf, link.lease_path):
        raise ReceiptError(f"{name}: its path does not lead to the root of its GPU's leases")
    leaf = usage_leaf(link.epoch, link.gpu, link.usage_gpu_ms, link.usage_dc, link.leases_root)
    if not verify(link.usage_root, leaf, link.usage_path):
        raise ReceiptError(f"{name}: its GPU's path does not lead to the usage root")


def _check_time(link: LeaseInEpoch, gpu_ms: int, receipts: Sequence[Receipt]) -> None:
    """What the epochs count so far is no more than the operator signed."""
    signed: dict[int, int] = {}
    for receipt in receipts:
        for line in receipt.gpus:
            if receipt.lease == link.lease and gpu_public_id(line.uuid) == link.gpu:
                signed[receipt.generation] = max(signed.get(receipt.generation, 0), line.gpu_ms)
    if not signed or gpu_ms > sum(signed.values()) + _LEAST_MS:
        raise ReceiptError(
            f"lease {link.lease} counts with {gpu_ms} ms up to epoch {link.epoch}; its receipts say "
            f"{sum(signed.values())} ms of that GPU"
        )


_LEAST_MS = 1000
"""A lease is billed for at least a second per GPU, however short it was."""

_BYTES = frozenset({"gpu", "receipt_hash", "leases_root", "usage_root", "file_hash"})
_PATHS = frozenset({"lease_path", "usage_path"})
_WORDS = frozenset({"lease", "settlement"})


def _read(name: str, value: Any) -> Any:
    if name in _BYTES:
        return _bytes(value)
    if name in _PATHS:
        return tuple(bytes.fromhex(node.removeprefix("0x")) for node in value)
    return str(value) if name in _WORDS else int(value)


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return ["0x" + node.hex() for node in value] if isinstance(value, tuple) else value
