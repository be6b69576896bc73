"""The leaves that lead from a lease's receipts to an epoch: the one place that fixes their bytes.

A usage leaf says what a GPU did in one epoch and names the root of its leases; a lease leaf what one lease used of it,
and the hash of its last receipt counted there, which chains back to all before it and binds every task.
"""

from collections.abc import Iterable
from functools import lru_cache

from fabric.wire.hashing import keccak256
from fabric.wire.merkle import leaf, root, tag

USAGE_TAG = tag("fabric.usage.v1")
LEASE_TAG = tag("fabric.lease.v1")
RESERVED_TAG = tag("fabric.reserved.v1")


@lru_cache(maxsize=65_536)
def gpu_public_id(gpu_uuid: str) -> bytes:
    """``keccak256("fabric-gpu" ‖ UUID)``: lets a GPU be followed in public without showing its UUID."""
    return keccak256(b"fabric-gpu", gpu_uuid.encode())


def gpu_id_hex(gpu_uuid: str) -> str:
    """The public id as the ledger, the API and the epoch file write it: 0x and 64 lower-case digits."""
    return "0x" + gpu_public_id(gpu_uuid).hex()


def usage_leaf(epoch: int, gpu_id: bytes, gpu_ms: int, dc: int, leases_root: bytes) -> bytes:
    return leaf(USAGE_TAG, epoch, gpu_id, gpu_ms, dc, leases_root)


def lease_leaf(lease_id: str, gpu_ms: int, dc: int, receipt_hash: bytes) -> bytes:
    """``receipt_hash`` is that of the lease's last receipt counted in the epoch."""
    return leaf(LEASE_TAG, keccak256(lease_id.encode()), gpu_ms, dc, receipt_hash)


def reserved_root(bound: Iterable[tuple[str, bytes]]) -> bytes:
    """Root over (lease, hash of its last receipt), by lease: a slot's leaf has it in place of a receipt's hash."""
    return root([leaf(RESERVED_TAG, keccak256(lease.encode()), digest) for lease, digest in sorted(bound)])
