"""The economy in numbers: supply over the schedule's years, income pooled and not, and what each attack earns.

All by the product's own `allocate()`, schedule and charging code; demand and utilisation are made up and seeded.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence

from benchmarks.attacks import ATTACKS, PRICE_E18, Profit
from ledger.allocate import EpochInput, GpuUsage, allocate
from ledger.emission import DEFAULT_SCHEDULE, WEI_PER_BCT, paid_wei, value_wei_down
from ledger.leaves import gpu_id_hex
from ledger.split import POOL_OF_ONE, AvailableLine, PoolTerms, UsageLine

_DAY_MS = 86_400_000
_FULL_DAY_DC = 4_800_000  # 24 hours at USD 2
_POOL = "pool"
_ELSEWHERE_DC = 100 * _FULL_DAY_DC


def supply(growth_bps_per_epoch: int = 20, first_dc: int = 10_000_000) -> dict[str, float]:
    """BCT minted over the whole schedule when demand grows steadily, and by which bound it was held."""
    minted = remintable = burned = 0
    by_value = 0
    demand = first_dc * 10_000
    for epoch in range(DEFAULT_SCHEDULE.epochs):
        dc = demand // 10_000
        demand += demand * growth_bps_per_epoch // 10_000
        value, emission = value_wei_down(dc, PRICE_E18), DEFAULT_SCHEDULE.emission_wei(epoch)
        burned += value
        remintable += value
        paid = paid_wei(value, emission, remintable)
        remintable -= max(0, paid - emission)
        by_value += paid == value
        minted += paid
    return {
        "supply_minted_bct": minted // WEI_PER_BCT,
        "supply_burned_bct": burned // WEI_PER_BCT,
        "supply_schedule_bct": DEFAULT_SCHEDULE.total_wei // WEI_PER_BCT,
        "supply_bound_by_value_pct": round(100 * by_value / DEFAULT_SCHEDULE.epochs, 1),
    }


def smoothness(gpus: int, epochs: int, seed: int) -> dict[str, float]:
    """Variance of a GPU's income over epochs, in a pool with a shared half ÷ alone, same usage."""
    alone, pooled = _incomes(POOL_OF_ONE, gpus, epochs, seed), _incomes(_shared_half(), gpus, epochs, seed)
    variance_alone, variance_pooled = _variance(alone), _variance(pooled)
    return {
        "variance_ratio": round(variance_pooled / variance_alone, 4),
        "income_cv_alone": round(_variation(alone), 4),
        "income_cv_pooled": round(_variation(pooled), 4),
    }


def _shared_half() -> PoolTerms:
    return PoolTerms(0, 5000, 5000, model_weights={"H100": 1})


def _incomes(terms: PoolTerms, gpus: int, epochs: int, seed: int) -> list[list[int]]:
    """Income in wei per GPU and epoch."""
    draw = random.Random(seed)
    return [list(series) for series in zip(*(_epoch_incomes(terms, gpus, draw) for _ in range(epochs)), strict=True)]


def _epoch_incomes(terms: PoolTerms, gpus: int, draw: random.Random) -> list[int]:
    """One day: each GPU is busy for a random part of it, half of them not at all."""
    busy = [max(0, draw.randrange(-10_000, 10_001)) for _ in range(gpus)]
    lines = [_line(n, part) for n, part in enumerate(busy) if part]
    rest = UsageLine(gpu_id_hex("elsewhere"), _holder(10**6), "rest", "rest", 1, _ELSEWHERE_DC)
    given = EpochInput(
        epoch=0,
        start_ms=0,
        end_ms=_DAY_MS,
        lines=[*lines, rest],
        gpus=[GpuUsage(line.gpu_id, line.gpu_ms, line.dc, bytes(32)) for line in (*lines, rest)],
        available=[AvailableLine(_gpu(n), _holder(n), _POOL, "op", "H100", _DAY_MS) for n in range(gpus)],
        pools={_POOL: terms},
        price_usd_e18=PRICE_E18,
        price_source="benchmark",
        emission_wei=DEFAULT_SCHEDULE.emission_wei(0),
        remintable_wei=0,
        stake_bps=500,
    )
    return _by_gpu(given, gpus)


def _by_gpu(given: EpochInput, gpus: int) -> list[int]:
    earned = {_gpu(n): 0 for n in range(gpus)}
    for reward in allocate(given).rewards:
        if reward.pool == _POOL:
            earned[reward.gpu_id] += reward.wei
    return list(earned.values())


def _line(number: int, part: int) -> UsageLine:
    return UsageLine(
        _gpu(number), _holder(number), _POOL, "op", _DAY_MS * part // 10_000, _FULL_DAY_DC * part // 10_000
    )


def _gpu(number: int) -> str:
    return gpu_id_hex(f"GPU-{number}")


def _holder(number: int) -> str:
    return "0x" + f"{number + 1:040x}"


def _variance(incomes: Sequence[Sequence[int]]) -> float:
    return statistics.fmean(statistics.pvariance([wei / WEI_PER_BCT for wei in series]) for series in incomes)


def _variation(incomes: Sequence[Sequence[int]]) -> float:
    """Standard deviation ÷ mean, averaged over GPUs."""
    return statistics.fmean(statistics.pstdev(series) / statistics.fmean(series) for series in incomes)


def attack_figures(profits: dict[str, Profit]) -> dict[str, float]:
    """USD per day; wash trading under its own names too."""
    figures: dict[str, float] = {}
    for name, profit in profits.items():
        figures[f"{name}_without_usd"] = profit.without_rule_dc / 100_000
        figures[f"{name}_with_usd"] = profit.with_rule_dc / 100_000
    figures["wash_profit_plain_usd"] = figures["wash_trading_without_usd"]
    figures["wash_profit_ours_usd"] = figures["wash_trading_with_usd"]
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.economy", description=__doc__)
    parser.add_argument("--gpus", type=int, default=32, help="GPUs in the pool (default 32)")
    parser.add_argument("--epochs", type=int, default=60, help="days of usage (default 60)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    profits = {attack.name: attack.profit() for attack in ATTACKS}
    figures = supply() | smoothness(given.gpus, given.epochs, given.seed) | attack_figures(profits)
    if given.json:
        config = {"gpus": given.gpus, "epochs": given.epochs, "seed": given.seed}
        print(json.dumps({"name": "economy", "config": config, "figures": figures}))
        return
    for name, value in figures.items():
        print(f"{name:36} {value:>16,}")


if __name__ == "__main__":
    main()
