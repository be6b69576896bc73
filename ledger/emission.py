"""How many BCT an epoch may mint, exact to the wei, and how many of them it pays.

The bound of `paid_wei` is what makes self-dealing worthless: nobody earns more BCT than the DC they burned would buy.
"""

from dataclasses import dataclass

from ledger.money import mul_div_down

WEI_PER_BCT = 10**18
DC_PER_USD = 100_000
PRICE_SCALE = 10**18


@dataclass(frozen=True, slots=True)
class Schedule:
    """``S(e) = P·x·(2N−x) // N²`` with ``x = min(e, N)``: falls linearly to zero and sums to P exactly."""

    total_wei: int
    epochs: int

    def __post_init__(self) -> None:
        if self.total_wei < 0 or self.epochs < 1:
            raise ValueError(
                f"a schedule pays 0 or more wei in 1 or more epochs, not {self.total_wei} in {self.epochs}"
            )

    def minted_before_wei(self, epoch: int) -> int:
        """S(e): what the epochs before ``epoch`` may mint together."""
        if epoch < 0:
            raise ValueError(f"epochs count from 0, not {epoch}")
        x = min(epoch, self.epochs)
        return self.total_wei * x * (2 * self.epochs - x) // self.epochs**2

    def emission_wei(self, epoch: int) -> int:
        return self.minted_before_wei(epoch + 1) - self.minted_before_wei(epoch)


DEFAULT_SCHEDULE = Schedule(500_000_000 * WEI_PER_BCT, 2557)


def value_wei_down(dc: int, price_usd_e18: int) -> int:
    """The BCT that ``dc`` buy at a price of ``price_usd_e18`` / 10^18 USD per BCT, in wei, rounded down."""
    return mul_div_down(dc * WEI_PER_BCT, PRICE_SCALE, DC_PER_USD * price_usd_e18)


def paid_wei(value_wei: int, emission_wei: int, remintable_wei: int) -> int:
    """``min(value, emission + remintable)``; what is not paid is never minted and does not roll over."""
    return min(value_wei, emission_wei + remintable_wei)
