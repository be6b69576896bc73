"""Following a chain that may change its mind: blocks seen go in, one instruction comes out. Pure; nothing is read here.

What is kept is a trail: the last final block and all after it, each the parent of the next. `follow` compares it with
the blocks that the chain has now, as far as the shell has looked them up, and answers with the next thing to do: look
at another height, append a block, go back to the common ancestor, rest, or halt. It decides nothing about events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Block:
    """A block: its place in the chain and its time in seconds."""

    number: int
    hash: bytes
    parent: bytes
    time_s: int


@dataclass(frozen=True, slots=True)
class Trail:
    """What is kept of the chain.

    Attributes:
        start: number of the first block to read.
        final: number of the last block that can no longer be undone; below ``start`` while none is.
        blocks: in order, each the parent of the next; from the final block on when there is one.
    """

    start: int
    final: int
    blocks: tuple[Block, ...] = ()

    @property
    def tip(self) -> Block | None:
        return self.blocks[-1] if self.blocks else None

    @property
    def next(self) -> int:
        return self.start if self.tip is None else self.tip.number + 1

    def append(self, block: Block, final: int) -> Self:
        """The trail with one more block; what lies below the new final block is forgotten."""
        blocks = (*self.blocks, block)
        return type(self)(self.start, final, tuple(kept for kept in blocks if kept.number >= final))

    def undo(self, to: int) -> Self:
        return type(self)(self.start, self.final, tuple(block for block in self.blocks if block.number <= to))


@dataclass(frozen=True, slots=True)
class Look:
    """Look up the chain's block at this height, and ask again."""

    number: int


@dataclass(frozen=True, slots=True)
class Append:
    """Take this block in, and make all up to ``final`` final."""

    block: Block
    final: int


@dataclass(frozen=True, slots=True)
class Undo:
    """Take back all blocks above ``to``: they are no longer on the chain, block ``to`` is."""

    to: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do now; ``why`` says what the chain lacks."""

    why: str


@dataclass(frozen=True, slots=True)
class Halt:
    """The chain no longer has a block that was final: a person must look."""

    reason: str


Instruction = Look | Append | Undo | Rest | Halt


def follow(trail: Trail, seen: Mapping[int, Block | None], confirmations: int) -> Instruction:
    """The next thing to do.

    Args:
        trail: what is kept.
        seen: the chain's blocks by height as looked up since the trail last changed; None where it has none.
        confirmations: a block is final when so many blocks stand on it.
    """
    number, tip = trail.next, trail.tip
    if number not in seen:
        return Look(number)
    block = seen[number]
    if block is not None and (tip is None or block.parent == tip.hash):
        return Append(block, max(trail.final, block.number - confirmations))
    if tip is None:
        return Rest(f"the chain has no block {number} yet")
    return _ancestor(trail, seen)


def _ancestor(trail: Trail, seen: Mapping[int, Block | None]) -> Instruction:
    """Walks back from the tip to the last block that the chain still has."""
    for block in reversed(trail.blocks):
        if block.number not in seen:
            return Look(block.number)
        found = seen[block.number]
        if found is not None and found.hash == block.hash:
            return Rest("the chain has no further block") if block == trail.tip else Undo(block.number)
        if block.number <= trail.final:
            return _lost(block, found)
    return Undo(trail.start - 1)


def _lost(final: Block, found: Block | None) -> Instruction:
    if found is None:
        return Rest(f"the chain's RPC has no block {final.number}, which was final: it is behind, or another chain")
    return Halt(
        f"block {final.number} was final as 0x{final.hash.hex()} and the chain now has 0x{found.hash.hex()}: a reorg "
        "below finality. What the ledger booked from it may be wrong; compare, correct by reversal, and wait for more "
        "confirmations (FABRIC_CHAIN_CONFIRMATIONS)"
    )
