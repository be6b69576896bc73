"""The leaves of an epoch's three trees, and the ids in them: the one place that fixes their bytes.

A payout leaf says what a (GPU, holder) has earned since the beginning; an exit leaf what an account may have taken out
of its deposits since the beginning; a usage leaf says what a GPU did in one epoch and leads, by the root of its leases,
to each lease's last receipt and from there to every task.
"""

from collections.abc import Iterable

import sha3

from fabric.wire.leaves import USAGE_TAG, gpu_id_hex, gpu_public_id, lease_leaf, usage_leaf
from fabric.wire.merkle import leaf, tag

__all__ = [
    "address_bytes",
    "exit_leaf",
    "gpu_id_hex",
    "gpu_public_id",
    "id_bytes",
    "lease_leaf",
    "payout_leaf",
    "payout_leaf_batch",
    "usage_leaf",
    "usage_leaf_batch",
]

PAYOUT_TAG = tag("fabric.payout.v1")
EXIT_TAG = tag("fabric.exit.v1")

_PADDING = bytes(12)
_unhex = bytes.fromhex
_ADDRESS_BYTES = 20
_ID_BYTES = 32


def payout_leaf(gpu_id: bytes, holder: bytes, cumulative_wei: int) -> bytes:
    return leaf(PAYOUT_TAG, gpu_id, holder, cumulative_wei)


def payout_leaf_batch(payouts: Iterable[tuple[str, str, int]]) -> list[bytes]:
    """`payout_leaf` of many (GPU id, holder, cumulative wei), ids in 0x-hex: a third of the time for a million."""
    hashed = sha3.keccak_256
    leaves: list[bytes] = []
    for gpu_id, holder, cumulative_wei in payouts:
        words = PAYOUT_TAG + _unhex(gpu_id[2:]) + _PADDING + _unhex(holder[2:]) + cumulative_wei.to_bytes(32, "big")
        leaves.append(hashed(hashed(_expect_words(words, 4)).digest()).digest())
    return leaves


def usage_leaf_batch(epoch: int, usages: Iterable[tuple[str, int, int, bytes]]) -> list[bytes]:
    """`usage_leaf` of many (GPU id in 0x-hex, GPU-ms, DC, root of its leases) of one epoch."""
    hashed = sha3.keccak_256
    prefix = USAGE_TAG + epoch.to_bytes(32, "big")
    leaves: list[bytes] = []
    for gpu_id, gpu_ms, dc, leases_root in usages:
        words = prefix + _unhex(gpu_id[2:]) + gpu_ms.to_bytes(32, "big") + dc.to_bytes(32, "big") + leases_root
        leaves.append(hashed(hashed(_expect_words(words, 6)).digest()).digest())
    return leaves


def exit_leaf(account: bytes, cumulative_dc: int) -> bytes:
    """``account`` is the wallet that may claim, 20 bytes."""
    return leaf(EXIT_TAG, account, cumulative_dc)


def address_bytes(address: str) -> bytes:
    """The 20 bytes of a 0x-address in any case; the caller keeps one spelling (lower case).

    Raises:
        ValueError: not an address.
    """
    try:
        raw = bytes.fromhex(address.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != _ADDRESS_BYTES or not address.startswith("0x"):
        raise ValueError(f"{address!r} is not an address: 0x and 40 hexadecimal digits")
    return raw


def id_bytes(hex_id: str) -> bytes:
    """The 32 bytes of a 0x-hex id or hash.

    Raises:
        ValueError: another length or other characters.
    """
    try:
        raw = bytes.fromhex(hex_id.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != _ID_BYTES or not hex_id.startswith("0x"):
        raise ValueError(f"{hex_id!r} is not an id: 0x and 64 hexadecimal digits")
    return raw


def _expect_words(preimage: bytes, count: int) -> bytes:
    if len(preimage) != 32 * count:
        raise ValueError(
            f"a leaf of {len(preimage)} bytes, not {count} words: an id, address or root is too long or short"
        )
    return preimage
