"""Whose a stretch of GPU time is: a usage is cut where its GPU's NFT changed hands, and where its pool did. Pure.

The time of use is the control plane's: what a receipt adds was used in the milliseconds up to its acceptance.
"""

from collections.abc import Sequence
from dataclasses import replace

from ledger.epoch import EpochClock
from ledger.pools import Membership, as_of, pool_at
from ledger.usage import Usage

Holders = Sequence[tuple[int, str]]
"""(from when in Unix ms, holder) of one GPU's NFT, in order; each until the next begins. Empty: who has none earns."""


def holder_at(holders: Holders, at_ms: int) -> str | None:
    """Who held it in that millisecond; None before the NFT was minted."""
    return next((holder for from_ms, holder in reversed(holders) if from_ms <= at_ms), None)


def by_holder(usage: Usage, added_gpu_ms: int, holders: Holders) -> list[Usage]:
    """The usage in parts, each with the holder of its time; a part before the first mint keeps the usage's holder.

    Times sum to the whole: each change of hands within the last ``added_gpu_ms`` up to and with ``usage.at_ms`` ends a
    part in the millisecond before it. What is shown and never billed stays with the last part.
    """
    start_ms = usage.at_ms - added_gpu_ms
    ends = sorted({from_ms - 1 for from_ms, _ in holders if start_ms < from_ms - 1 < usage.at_ms})
    before = usage.cumulative_gpu_ms - added_gpu_ms
    parts = [
        replace(
            usage,
            part=usage.part + i,
            cumulative_gpu_ms=before + end - start_ms,
            at_ms=end,
            holder=holder_at(holders, end) or usage.holder,
            utilised_gpu_ms=0,
            energy_mj=0,
        )
        for i, end in enumerate(ends)
    ]
    last = replace(usage, part=usage.part + len(ends), holder=holder_at(holders, usage.at_ms) or usage.holder)
    return [*parts, last]


def by_pool(usage: Usage, added_gpu_ms: int, stays: Sequence[Membership], epochs: EpochClock) -> list[Usage]:
    """The usage in parts, each with the pool of its time as it stood in that epoch; alone it keeps the usage's pool.

    Membership changes only between epochs, so the usage of a GPU that was ever in a pool is cut where an epoch ended.
    Times sum to the whole; what is shown and never billed stays with the last part.
    """
    if not stays:
        return [usage]
    start_ms = max(usage.at_ms - added_gpu_ms, epochs.genesis_ms)
    first, last = epochs.at(min(start_ms + 1, usage.at_ms)), epochs.at(usage.at_ms)
    before = usage.cumulative_gpu_ms - added_gpu_ms
    parts = [
        replace(
            usage,
            part=usage.part + i,
            cumulative_gpu_ms=before + max(0, epochs.end(epoch) - 1 - (usage.at_ms - added_gpu_ms)),
            at_ms=epochs.end(epoch) - 1,
            pool=_pool_in(stays, epoch, usage.pool),
            utilised_gpu_ms=0,
            energy_mj=0,
        )
        for i, epoch in enumerate(range(first, last))
    ]
    return [*parts, replace(usage, part=usage.part + len(parts), pool=_pool_in(stays, last, usage.pool))]


def by_pool_and_holder(
    usage: Usage, added_gpu_ms: int, stays: Sequence[Membership], epochs: EpochClock, holders: Holders
) -> list[Usage]:
    """The usage in parts by pool and, within each, by holder; numbered in their order."""
    parts: list[Usage] = []
    done = usage.cumulative_gpu_ms - added_gpu_ms
    for part in by_pool(usage, added_gpu_ms, stays, epochs):
        parts += by_holder(part, part.cumulative_gpu_ms - done, holders)
        done = part.cumulative_gpu_ms
    return in_order(parts, first=usage.part)


def in_order(parts: Sequence[Usage], *, first: int = 0) -> list[Usage]:
    """The parts of one receipt, numbered from ``first`` on."""
    return [part if part.part == number else replace(part, part=number) for number, part in enumerate(parts, first)]


def _pool_in(stays: Sequence[Membership], epoch: int, alone: str) -> str:
    pool = pool_at(stays, epoch)
    return alone if pool is None else as_of(pool, epoch)
