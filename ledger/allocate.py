"""The epoch's allocation: from its final usage to what every (GPU, holder) is paid, and the two roots.

Pure, integers only, independent of the order of its input: the same input gives the same roots bit for bit on every
machine. Reads no database and no chain; who calls it brings price, emission and what is remintable.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from fabric.wire.merkle import root
from ledger.emission import paid_wei, value_wei_down
from ledger.leaves import address_bytes, exit_leaf, payout_leaf_batch, usage_leaf_batch
from ledger.money import BPS, mul_div_down, split_by_weight
from ledger.split import POOL_OF_ONE, AvailableLine, Payee, PoolTerms, UsageLine, split_pool

Line = TypeVar("Line", UsageLine, AvailableLine)


class GpuUsage(NamedTuple):
    """One GPU's usage leaf, and how many customers paid for it lately (shown, not hashed into the leaf)."""

    gpu_id: str
    gpu_ms: int
    dc: int
    leases_root: bytes
    payers: int = 0
    largest_payer_bps: int = 0


class Reward(NamedTuple):
    """What a GPU earned for one holder in one pool, beside the usage it came from."""

    gpu_id: str
    holder: str
    pool: str
    operator: str
    gpu_ms: int
    dc: int
    wei: int


class Payout(NamedTuple):
    """A payout leaf: what a (GPU, holder) earned in this epoch and since the beginning."""

    gpu_id: str
    holder: str
    wei: int
    cumulative_wei: int


class Exit(NamedTuple):
    """An exit leaf: the DC that an account was ever given back, and may claim on chain; 0x-address in lower case."""

    account: str
    cumulative_dc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochInput:
    """All that an epoch's allocation depends on.

    Attributes:
        epoch: its number.
        start_ms, end_ms: its bounds; carried into the file, not used.
        lines: final usage; the weights are their DC.
        gpus: the same usage per GPU, with the root of its leases.
        available: for the shared part of pools that have one.
        pools: terms by pool; a pool that is missing is a pool of one.
        previous: cumulative wei of every (GPU, holder) ever paid.
        price_usd_e18: the oracle's price for the pay bound, USD per BCT × 10^18.
        price_source: where it comes from; ``test`` when it is a setting.
        emission_wei, remintable_wei: what may be minted.
        stake_bps: of what is paid, to stakers.
        exits: cumulative DC of every account that ever left with some.
    """

    epoch: int
    start_ms: int
    end_ms: int
    lines: Sequence[UsageLine]
    gpus: Sequence[GpuUsage]
    available: Sequence[AvailableLine] = ()
    pools: Mapping[str, PoolTerms] = field(default_factory=dict)
    previous: Mapping[Payee, int] = field(default_factory=dict)
    price_usd_e18: int
    price_source: str
    emission_wei: int
    remintable_wei: int
    stake_bps: int
    exits: Sequence[Exit] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """An epoch in one row. ``paid_wei`` = ``staking_wei`` + all rewards, at most emission + remintable."""

    gpu_ms: int
    burned_dc: int
    value_wei: int
    emission_wei: int
    remintable_wei: int
    paid_wei: int
    staking_wei: int


@dataclass(frozen=True, slots=True)
class EpochAllocation:
    """The result, in canonical order: by GPU, then holder, then pool.

    ``payouts`` has every (GPU, holder) ever paid, those without a share in this epoch too: they are leaves as well.
    """

    epoch: int
    rewards: tuple[Reward, ...]
    payouts: tuple[Payout, ...]
    usages: tuple[GpuUsage, ...]
    totals: Totals
    exits: tuple[Exit, ...]
    payout_root: bytes
    usage_root: bytes
    exit_root: bytes

    @property
    def exited_total_dc(self) -> int:
        """All that anybody was ever given back."""
        return sum(given_back.cumulative_dc for given_back in self.exits)


def allocate(given: EpochInput) -> EpochAllocation:
    """Allocate one epoch.

    Raises:
        ValueError: lines and GPUs disagree about GPU-ms or DC, or a GPU stands twice.
    """
    usages = tuple(sorted(given.gpus))
    _expect_agreement(given, usages)
    totals = _totals(given)
    rewards = _rewards(given, totals.paid_wei - totals.staking_wei)
    payouts = _payouts(given.previous, rewards)
    exits = tuple(sorted(given.exits))
    return EpochAllocation(
        epoch=given.epoch,
        rewards=rewards,
        payouts=payouts,
        usages=usages,
        totals=totals,
        exits=exits,
        payout_root=payout_root(payouts),
        usage_root=usage_root(given.epoch, usages),
        exit_root=root(exit_leaves(exits)),
    )


def payout_root(payouts: Sequence[Payout]) -> bytes:
    """The root over payouts in canonical order."""
    return root(payout_leaves(payouts))


def payout_leaves(payouts: Sequence[Payout]) -> list[bytes]:
    """Leaves in the order given."""
    return payout_leaf_batch((gpu, holder, cumulative) for gpu, holder, _, cumulative in payouts)


def usage_root(epoch: int, usages: Sequence[GpuUsage]) -> bytes:
    """The root over usages in canonical order."""
    return root(usage_leaves(epoch, usages))


def usage_leaves(epoch: int, usages: Sequence[GpuUsage]) -> list[bytes]:
    """Leaves in the order given."""
    return usage_leaf_batch(epoch, (usage[:4] for usage in usages))


def exit_leaves(exits: Sequence[Exit]) -> list[bytes]:
    """Leaves in the order given."""
    return [exit_leaf(address_bytes(account), cumulative_dc) for account, cumulative_dc in exits]


def _totals(given: EpochInput) -> Totals:
    dc = sum(line.dc for line in given.lines)
    value = value_wei_down(dc, given.price_usd_e18)
    paid = paid_wei(value, given.emission_wei, given.remintable_wei)
    return Totals(
        gpu_ms=sum(line.gpu_ms for line in given.lines),
        burned_dc=dc,
        value_wei=value,
        emission_wei=given.emission_wei,
        remintable_wei=given.remintable_wei,
        paid_wei=paid,
        staking_wei=mul_div_down(paid, given.stake_bps, BPS),
    )


def _rewards(given: EpochInput, to_pools_wei: int) -> tuple[Reward, ...]:
    lines, available = _by_pool(given.lines), _by_pool(given.available)
    pool_dc = {pool: sum(line.dc for line in pool_lines) for pool, pool_lines in lines.items()}
    shares = split_by_weight(to_pools_wei, pool_dc)
    rewards: list[Reward] = []
    for pool, pool_lines in lines.items():
        terms = given.pools.get(pool, POOL_OF_ONE)
        paid = split_pool(shares[pool], pool_lines, available.get(pool, ()), terms)
        rewards += _pool_rewards(pool, pool_lines, available.get(pool, ()), paid)
    return tuple(sorted(rewards))


def _pool_rewards(
    pool: str, lines: Sequence[UsageLine], available: Sequence[AvailableLine], paid: Mapping[Payee, int]
) -> list[Reward]:
    """Rewards with the usage they stand beside; usage that earned 0 keeps its row."""
    operators = dict(sorted((line.gpu_id, line.operator) for line in (*available, *lines)))
    used: dict[Payee, tuple[int, int]] = {}
    for line in lines:
        gpu_ms, dc = used.get((line.gpu_id, line.holder), (0, 0))
        used[line.gpu_id, line.holder] = (gpu_ms + line.gpu_ms, dc + line.dc)
    return [
        Reward(payee[0], payee[1], pool, operators[payee[0]], *used.get(payee, (0, 0)), paid.get(payee, 0))
        for payee in used.keys() | paid.keys()
    ]


def _payouts(previous: Mapping[Payee, int], rewards: Sequence[Reward]) -> tuple[Payout, ...]:
    earned: dict[Payee, int] = dict.fromkeys(previous, 0)
    for reward in rewards:
        payee = (reward.gpu_id, reward.holder)
        earned[payee] = earned.get(payee, 0) + reward.wei
    return tuple(
        Payout(*payee, wei, previous.get(payee, 0) + wei)
        for payee, wei in sorted(earned.items())
        if wei or payee in previous
    )


def _by_pool(lines: Sequence[Line]) -> dict[str, list[Line]]:
    pools: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        pools[line.pool].append(line)
    return pools


def _expect_agreement(given: EpochInput, usages: Sequence[GpuUsage]) -> None:
    from_lines: dict[str, tuple[int, int]] = {}
    for line in given.lines:
        gpu_ms, dc = from_lines.get(line.gpu_id, (0, 0))
        from_lines[line.gpu_id] = (gpu_ms + line.gpu_ms, dc + line.dc)
    if len({given_back.account for given_back in given.exits}) != len(given.exits):
        raise ValueError(f"epoch {given.epoch}: an account stands twice among the exits")
    if len({usage.gpu_id for usage in usages}) != len(usages):
        raise ValueError(f"epoch {given.epoch}: a GPU stands twice")
    if from_lines != {usage.gpu_id: (usage.gpu_ms, usage.dc) for usage in usages}:
        raise ValueError(f"epoch {given.epoch}: usage by line and usage by GPU differ")
