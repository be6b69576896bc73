"""The proof that a GPU has the memory and the speed that are claimed: what is computed, committed to, opened, checked.

The prover fills its memory with a product of matrices that nobody knew a moment ago, and shows that it still has all
of it. Four steps, each answered before the next is known:

1. `seed`: C = A·B mod 251. A (rows × edge) and B (edge × edge) grow from the seeds; C, one byte an element and as hard
   to compress, fills the memory. The answer is a Merkle root over digests of C's blocks: the commitment, timed.
2. `key`: the same over digests under a key that was unknown until now. Digests are not linear, so they need C itself;
   computing the missing half of C again takes longer than the time allowed. It is asked only when all GPUs of an
   operator have committed: one GPU cannot hold what several claim to have.
3. `indices`: the blocks to show, with their way into both roots.
4. The check: Freivalds' with vectors that are never told, so B is read once and no product is computed again; a wrong
   block passes with probability 251⁻⁴.

All numbers are small integers: A in -8…7, B in -125…125, so each sum of a product of edge ≤ 16384 stays below 2²⁴ and
float32 is exact in any order, tensor cores included. NumPy and CuPy therefore give the same bytes (`xp` is either).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabric.wire import merkle

MODULUS = 251
BLOCK_ROWS = 4
CHUNK_BLOCKS = 128
"""Digests of so many blocks are one leaf."""
MAX_EDGE = 16_384
OPENED = 24
"""Blocks to show: whoever lacks a tenth of the memory is caught with 92 %, who lacks half, always."""
VECTORS = 4

_GOLDEN, _ONE, _TWO = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_LEAF = merkle.tag("fabric.challenge.v1")
_TILE_ELEMENTS = 1 << 26


class ChallengeError(ValueError):
    """A plan that nobody can carry out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a challenge and how long each step may take, in ms.

    Attributes:
        edge: of B; a multiple of 16.
        blocks: of C, of `BLOCK_ROWS` rows each.
        fill_least_ms: a faster answer is not of the claimed model; 0 for any.
    """

    edge: int
    blocks: int
    fill_limit_ms: int
    digest_limit_ms: int
    open_limit_ms: int
    fill_least_ms: int = 0

    def __post_init__(self) -> None:
        if not (16 <= self.edge <= MAX_EDGE and self.edge % 16 == 0 and self.blocks >= 1):
            raise ChallengeError(f"a challenge of edge {self.edge} and {self.blocks} blocks; edges are 16, 32 … 16384")

    @property
    def block_bytes(self) -> int:
        return BLOCK_ROWS * self.edge

    @property
    def filled_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def operations(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.filled_bytes * self.edge


@dataclass(frozen=True, slots=True)
class Opening:
    """One block of C, and the chunks of digests it belongs to with their ways into the two roots."""

    index: int
    block: bytes
    digests: bytes
    path: tuple[bytes, ...]
    keyed: bytes
    keyed_path: tuple[bytes, ...]


class Prover:
    """Holds C. `fill` first, then `digest`, then `open`."""

    def __init__(self, plan: Plan, xp: Any = np) -> None:
        self._plan = plan
        self._xp = xp
        self._filled = xp.zeros((plan.blocks, plan.block_bytes), dtype=xp.uint8)
        self._digests: list[bytes] = []
        self._keyed: list[bytes] = []

    def fill(self, seed: bytes, shared: bytes) -> bytes:
        """Compute C; the root of its blocks' digests."""
        plan, xp = self._plan, self._xp
        right = right_rows(xp, shared, plan.edge, 0, plan.edge)
        tile = max(1, _TILE_ELEMENTS // plan.block_bytes)
        digests = xp.zeros(plan.blocks, dtype=xp.uint64)
        for first in range(0, plan.blocks, tile):
            count = min(tile, plan.blocks - first)
            product = left_rows(xp, seed, plan.edge, first * BLOCK_ROWS, count * BLOCK_ROWS) @ right
            reduced = xp.remainder(product.astype(xp.int32), MODULUS).astype(xp.uint8)
            self._filled[first : first + count] = reduced.reshape(count, plan.block_bytes)
            digests[first : first + count] = block_digests(xp, self._filled[first : first + count], seed)
        self._digests = _chunks(_host(digests))
        return merkle.root(_leaves(self._digests))

    def digest(self, key: bytes) -> bytes:
        """The root of the blocks' digests under the key."""
        plan, xp = self._plan, self._xp
        tile = max(1, _TILE_ELEMENTS // plan.block_bytes)
        digests = xp.zeros(plan.blocks, dtype=xp.uint64)
        for first in range(0, plan.blocks, tile):
            digests[first : first + tile] = block_digests(xp, self._filled[first : first + tile], key)
        self._keyed = _chunks(_host(digests))
        return merkle.root(_leaves(self._keyed))

    def open(self, indices: Sequence[int]) -> list[Opening]:
        """These blocks, with their ways into both roots."""
        tree, keyed = merkle.levels(_leaves(self._digests)), merkle.levels(_leaves(self._keyed))
        return [self._open(index, tree, keyed) for index in indices]

    def _open(self, index: int, tree: list[list[bytes]], keyed: list[list[bytes]]) -> Opening:
        chunk = index // CHUNK_BLOCKS
        return Opening(
            index,
            _host(self._filled[index]).tobytes(),
            self._digests[chunk],
            tuple(merkle.proof_in(tree, chunk)),
            self._keyed[chunk],
            tuple(merkle.proof_in(keyed, chunk)),
        )


class Referee:
    """Checks openings of one shared matrix; made with secret random bytes, which nobody may learn."""

    def __init__(self, shared: bytes, edge: int, secret: bytes) -> None:
        self._edge = edge
        drawn = _words(np, _stream(secret, b"vectors"), 0, edge * VECTORS)
        self._vectors = np.remainder(drawn, MODULUS).astype(np.float64).reshape(edge, VECTORS)
        parts = (right_rows(np, shared, edge, at, min(512, edge - at)) for at in range(0, edge, 512))
        self._right = np.concatenate([np.remainder(part.astype(np.float64) @ self._vectors, MODULUS) for part in parts])

    def problem(
        self, plan: Plan, seed: bytes, key: bytes, root: bytes, keyed_root: bytes, indices: Sequence[int],
        openings: Sequence[Opening],
    ) -> str:  # fmt: skip
        """What is wrong with an answer; empty when it is right."""
        if [opening.index for opening in openings] != list(indices):
            return "the blocks shown are not those asked for"
        for opening in openings:
            found = self._wrong(plan, seed, opening) or _unbound(plan, seed, key, root, keyed_root, opening)
            if found:
                return f"block {opening.index} {found}"
        return ""

    def _wrong(self, plan: Plan, seed: bytes, opening: Opening) -> str:
        if len(opening.block) != plan.block_bytes:
            return f"has {len(opening.block)} bytes, not {plan.block_bytes}"
        shown = np.frombuffer(opening.block, np.uint8).reshape(BLOCK_ROWS, plan.edge).astype(np.float64)
        left = left_rows(np, seed, plan.edge, opening.index * BLOCK_ROWS, BLOCK_ROWS).astype(np.float64)
        same = np.remainder(shown @ self._vectors, MODULUS) == np.remainder(left @ self._right, MODULUS)
        if shown.max() >= MODULUS or not same.all():
            return "is not the product that was asked for"
        return ""


def _unbound(plan: Plan, seed: bytes, key: bytes, root: bytes, keyed_root: bytes, opening: Opening) -> str:
    """Whether a right block was committed to in time, and was there when the key came."""
    block = np.frombuffer(opening.block, np.uint8).reshape(1, -1)
    chunk, at = divmod(opening.index, CHUNK_BLOCKS)
    length = 8 * min(CHUNK_BLOCKS, plan.blocks - chunk * CHUNK_BLOCKS)
    for words, path, of_root, under, what in (
        (opening.digests, opening.path, root, seed, "was not committed to"),
        (opening.keyed, opening.keyed_path, keyed_root, key, "was not in memory when the key came"),
    ):
        digest = block_digests(np, block, under).tobytes()
        in_root = merkle.verify(of_root, _leaf(chunk, words), path)
        if len(words) != length or words[8 * at : 8 * at + 8] != digest or not in_root:
            return what
    return ""


def left_rows(xp: Any, seed: bytes, edge: int, first: int, count: int) -> Any:
    """Rows of A as float32: sixteen elements, -8…7, from each word."""
    octets = _words(xp, _stream(seed, b"left"), first * edge // 16, count * edge // 16).view(xp.uint8)
    halves = xp.stack([octets & xp.uint8(15), octets >> xp.uint8(4)], axis=-1)
    return (halves.astype(xp.float32) - xp.float32(8)).reshape(count, edge)


def right_rows(xp: Any, shared: bytes, edge: int, first: int, count: int) -> Any:
    """Rows of B as float32: eight elements, -125…125, from each word."""
    octets = _words(xp, _stream(shared, b"right"), first * edge // 8, count * edge // 8).view(xp.uint8)
    return (xp.remainder(octets, MODULUS).astype(xp.float32) - xp.float32(125)).reshape(count, edge)


def block_digests(xp: Any, blocks: Any, key: bytes) -> Any:
    """One 64-bit number per row of `blocks` (uint8): a keyed sum that is linear in nothing."""
    words = blocks.view(xp.uint64)
    mixed = words ^ _words(xp, _stream(key, b"digest"), 0, words.shape[1])
    mixed *= xp.uint64(_ONE)
    mixed ^= mixed >> xp.uint64(32)
    mixed *= xp.uint64(_TWO)
    mixed ^= mixed >> xp.uint64(29)
    return mixed.sum(axis=1, dtype=xp.uint64)


def _words(xp: Any, stream: int, first: int, count: int) -> Any:
    """SplitMix64 by number: word `first` and those after it of a stream (Steele, Lea, Flood 2014)."""
    words = xp.arange(first + 1, first + count + 1, dtype=xp.uint64)
    words *= xp.uint64(_GOLDEN)
    words += xp.uint64(stream)
    for shift, factor in ((30, _ONE), (27, _TWO)):
        words ^= words >> xp.uint64(shift)
        words *= xp.uint64(factor)
    words ^= words >> xp.uint64(31)
    return words


def _stream(seed: bytes, name: bytes) -> int:
    return int.from_bytes(hashlib.sha256(name + b"\0" + seed).digest()[:8], "little") & _MASK


def _host(array: Any) -> Any:
    """The array in this process's own memory."""
    return array.get() if hasattr(array, "get") else array


def _chunks(digests: Any) -> list[bytes]:
    data = digests.tobytes()
    return [data[at : at + 8 * CHUNK_BLOCKS] for at in range(0, len(data), 8 * CHUNK_BLOCKS)]


def _leaves(chunks: Sequence[bytes]) -> list[bytes]:
    return [_leaf(number, chunk) for number, chunk in enumerate(chunks)]


def _leaf(number: int, chunk: bytes) -> bytes:
    return merkle.leaf(_LEAF, number, hashlib.sha256(chunk).digest())
