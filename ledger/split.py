"""How one pool's reward is split among its GPUs' holders and its operator. Pure, exact to the wei.

Self, single-source and distributed pools are terms, not code paths; a pool of one is the terms `POOL_OF_ONE`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger.errors import PoolTermsRefused
from ledger.money import BPS, mul_div_down, split_by_weight

USED_BPS_FLOOR = 1250

Payee = tuple[str, str]
"""(GPU, holder)."""


class UsageLine(NamedTuple):
    """Final usage of one GPU in an epoch, under the pool and holder of the time of use."""

    gpu_id: str
    holder: str
    pool: str
    operator: str
    gpu_ms: int
    dc: int


class AvailableLine(NamedTuple):
    """Time in which a GPU was verified, priced within the terms, and refused no lease."""

    gpu_id: str
    holder: str
    pool: str
    operator: str
    model: str
    gpu_ms: int


@dataclass(frozen=True, slots=True)
class PoolTerms:
    """What a pool pays for; the three parts sum to 10,000.

    Attributes:
        operator_bps: to the operator's payout address.
        shared_bps: by available GPU-ms × the model's weight.
        used_bps: by the DC that each GPU's usage brought; at least 1250, so that work always earns more than idling.
        operator_payout: 0x-address; needed when ``operator_bps`` is above 0.
        model_weights: weight per model of an available GPU-ms; a model that is missing weighs 0.
        price_ceiling_dc: DC per GPU-hour above which a GPU does not count as available; none = no ceiling.
    """

    operator_bps: int
    shared_bps: int
    used_bps: int
    operator_payout: str = ""
    model_weights: Mapping[str, int] = field(default_factory=dict)
    price_ceiling_dc: int | None = None

    def __post_init__(self) -> None:
        parts = (self.operator_bps, self.shared_bps, self.used_bps)
        if any(part < 0 for part in parts) or sum(parts) != BPS:
            raise PoolTermsRefused(f"operator, shared and used bps are {parts}; they are 0 or more and sum to {BPS}")
        if self.used_bps < USED_BPS_FLOOR:
            raise PoolTermsRefused(f"used bps are {self.used_bps}; at least {USED_BPS_FLOOR}, so that work pays")
        if self.operator_bps and not self.operator_payout:
            raise PoolTermsRefused("an operator's part needs an operator's payout address")


POOL_OF_ONE = PoolTerms(operator_bps=0, shared_bps=0, used_bps=BPS)


def split_pool(
    reward_wei: int, lines: Sequence[UsageLine], available: Sequence[AvailableLine], terms: PoolTerms
) -> dict[Payee, int]:
    """Wei per (GPU, holder); they sum to ``reward_wei``. The operator's part is paid per GPU, by its DC.

    With nothing available the shared part goes by usage too. Parts of the terms round down, the used part takes the
    rest; inside a part, largest remainder.
    """
    operator_wei = mul_div_down(reward_wei, terms.operator_bps, BPS)
    shared_wei = mul_div_down(reward_wei, terms.shared_bps, BPS)
    by_availability = _availability(available, terms)
    if not any(by_availability.values()):
        shared_wei = 0
    used_wei = reward_wei - operator_wei - shared_wei
    paid: dict[Payee, int] = {}
    _add(paid, used_wei, _weights((line.gpu_id, line.holder, line.dc) for line in lines))
    _add(paid, shared_wei, by_availability)
    _add(paid, operator_wei, _weights((line.gpu_id, terms.operator_payout, line.dc) for line in lines))
    return paid


def _availability(available: Sequence[AvailableLine], terms: PoolTerms) -> dict[Payee, int]:
    return _weights(
        (line.gpu_id, line.holder, line.gpu_ms * terms.model_weights.get(line.model, 0)) for line in available
    )


def _weights(lines: Iterable[tuple[str, str, int]]) -> dict[Payee, int]:
    weights: dict[Payee, int] = {}
    for gpu_id, holder, weight in lines:
        weights[gpu_id, holder] = weights.get((gpu_id, holder), 0) + weight
    return weights


def _add(paid: dict[Payee, int], total_wei: int, weights: Mapping[Payee, int]) -> None:
    if total_wei == 0:
        return
    for payee, wei in split_by_weight(total_wei, weights).items():
        paid[payee] = paid.get(payee, 0) + wei
