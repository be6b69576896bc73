"""The ledger's few numbers that are settings, with the product's defaults. The process passes them in."""

from dataclasses import dataclass

from ledger.emission import DEFAULT_SCHEDULE, PRICE_SCALE, Schedule

NOT_SETTLED = "not settled: no chain configured"


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How long usage can be undone, how long an epoch is, and what is paid while no chain says so.

    Attributes:
        final_after_ms: usage is final this long after its receipt was accepted.
        epoch_ms: length of an epoch.
        genesis_ms: start of epoch 0, Unix ms.
        stake_bps: of an epoch's pay, to stakers; 200 to 1000.
        schedule: the emission schedule.
        test_price_usd_e18: USD per BCT × 10^18, used and marked ``test`` while no oracle gives one.
        payer_epochs: over how many epochs a GPU's payers are counted.
    """

    final_after_ms: int = 600_000
    epoch_ms: int = 86_400_000
    genesis_ms: int = 1_767_225_600_000  # 2026-01-01T00:00:00Z
    stake_bps: int = 500
    schedule: Schedule = DEFAULT_SCHEDULE
    test_price_usd_e18: int = PRICE_SCALE // 10
    payer_epochs: int = 30

    def __post_init__(self) -> None:
        if self.final_after_ms < 0 or self.epoch_ms <= 0 or self.test_price_usd_e18 <= 0:
            raise ValueError("final_after_ms is 0 or more; epoch_ms and test_price_usd_e18 are above 0")
        if not 200 <= self.stake_bps <= 1000:
            raise ValueError(f"stake_bps is 200 to 1000, not {self.stake_bps}")
