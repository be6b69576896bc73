"""Whose a stretch of GPU time is: a usage is cut where its GPU's NFT changed hands. Pure.

The time of use is the control plane's: what a receipt adds was used in the milliseconds up to its acceptance.
"""

from collections.abc import Sequence
from dataclasses import replace

from ledger.usage import Usage

Holders = Sequence[tuple[int, str]]
"""(from when in Unix ms, holder) of one GPU's NFT, in order; each until the next begins."""


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
