"""What of a GPU's time counts as available for the shared part of its pool. Pure.

Available = there and answering heartbeats, priced at no more than the terms' ceiling, of a GPU that was verified in the
epoch and refused no lease in it: time that somebody could have bought at a price that somebody would have paid.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ledger.holding import Holders, holder_at
from ledger.split import AvailableLine, PoolTerms
from ledger.uptime import Stretch


def available_lines(
    pool: str,
    terms: PoolTerms,
    stretches: Iterable[Stretch],
    *,
    members: Collection[str],
    verified: Collection[str],
    refused: Collection[str],
    holders: Mapping[str, Holders],
    payouts: Mapping[str, str],
) -> list[AvailableLine]:
    """The lines of one pool in one epoch, by GPU and holder; none for a pool that shares nothing.

    Args:
        pool: the pool as it stood in the epoch, as usage names it.
        terms: its terms then.
        stretches: uptime, cut to the epoch.
        members: GPUs that were in the pool.
        verified: GPUs that passed a challenge in the epoch.
        refused: GPUs that let a lease down in the epoch.
        holders: of GPUs with an NFT.
        payouts: of operators, for GPUs without one.
    """
    if not terms.shared_bps:
        return []
    counted = (set(members) & set(verified)) - set(refused)
    sums: dict[tuple[str, str, str, str], int] = {}
    for stretch in stretches:
        if stretch.gpu_id in counted and _is_priced(stretch, terms):
            for holder, ms in _by_holder(stretch, holders.get(stretch.gpu_id, ()), payouts[stretch.operator]):
                key = (stretch.gpu_id, holder, stretch.operator, stretch.model)
                sums[key] = sums.get(key, 0) + ms
    return [
        AvailableLine(gpu, who, pool, operator, model, ms) for (gpu, who, operator, model), ms in sorted(sums.items())
    ]


def _is_priced(stretch: Stretch, terms: PoolTerms) -> bool:
    return stretch.price_dc > 0 and (terms.price_ceiling_dc is None or stretch.price_dc <= terms.price_ceiling_dc)


def _by_holder(stretch: Stretch, holders: Holders, payout: str) -> Sequence[tuple[str, int]]:
    """The stretch cut where the NFT changed hands."""
    cuts = sorted({at for at, _ in holders if stretch.from_ms < at < stretch.until_ms})
    ends = [*cuts, stretch.until_ms]
    starts = [stretch.from_ms, *cuts]
    return [
        ((holder_at(holders, start) or payout).lower(), end - start) for start, end in zip(starts, ends, strict=True)
    ]
