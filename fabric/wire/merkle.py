"""Merkle trees whose proofs OpenZeppelin's ``MerkleProof`` accepts.

Pairs are hashed in sorted order; a node without a partner moves up unchanged. A leaf is hashed twice over a type tag
and whole 32-byte words, so an inner node (64 bytes) can never be passed off as a leaf, nor a leaf of one kind as
another's. The tree keeps the order it is given: whoever builds one sorts first.
"""

from collections.abc import Sequence

import sha3

EMPTY_ROOT = bytes(32)

_keccak = sha3.keccak_256


def tag(name: str) -> bytes:
    """The 32-byte type tag of a kind of leaf, for example ``tag("fabric.payout.v1")``."""
    return _keccak(name.encode()).digest()


def word(value: int | bytes) -> bytes:
    """One 32-byte ABI word: an unsigned integer, a bytes32, or an address (20 bytes, left-padded).

    Raises:
        ValueError: a negative or too large integer, or bytes of another length.
    """
    if isinstance(value, int):
        if not 0 <= value < 1 << 256:
            raise ValueError(f"{value} is not an unsigned 256-bit integer")
        return value.to_bytes(32, "big")
    if len(value) == 20:
        return bytes(12) + value
    if len(value) != 32:
        raise ValueError(f"{len(value)} bytes given; a word is 32 bytes, an address 20")
    return value


def leaf(type_tag: bytes, *fields: int | bytes) -> bytes:
    """``keccak(keccak(abi.encode(type_tag, *fields)))`` for static fields."""
    return _keccak(_keccak(b"".join((type_tag, *map(word, fields)))).digest()).digest()


def levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree, leaves first, root last; one level holding ``EMPTY_ROOT`` when there are no leaves."""
    level = list(leaves) or [EMPTY_ROOT]
    tree = [level]
    while len(level) > 1:
        level = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)] + level[len(level) & ~1 :]
        tree.append(level)
    return tree


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's root; ``EMPTY_ROOT`` for no leaves, the leaf itself for one."""
    return levels(leaves)[-1][0]


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The sibling path of ``leaves[index]``, bottom up."""
    return proof_in(levels(leaves), index)


def proof_in(tree: list[list[bytes]], index: int) -> list[bytes]:
    """The same from levels already built: many proofs of one tree."""
    if not 0 <= index < len(tree[0]):
        raise IndexError(f"leaf {index} of a tree of {len(tree[0])}")
    path: list[bytes] = []
    for level in tree[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index >>= 1
    return path


def verify(expected_root: bytes, of_leaf: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` leads from ``of_leaf`` to ``expected_root``."""
    node = of_leaf
    for sibling in path:
        node = _pair(node, sibling)
    return node == expected_root


def _pair(a: bytes, b: bytes) -> bytes:
    return _keccak(a + b if a < b else b + a).digest()
