"""Data Credits (DC) as everybody writes and reads them: integers; 1 DC = USD 0.00001.

Floats never reach an amount: a USD argument goes through ``Decimal(str(x))`` and is rounded down.
"""

from decimal import ROUND_DOWN, Decimal, InvalidOperation, localcontext

DC_PER_USD = 100_000
MAX_DC = 2**63 - 1


def usd_to_dc_down(usd: float | str | Decimal) -> int:
    """DC for a USD amount of 0 or more, rounded down to whole DC.

    Raises:
        ValueError: not a finite number, negative, or beyond 2^63 - 1 DC.
    """
    if isinstance(usd, bool):
        raise ValueError(f"{usd} is not an amount in USD")
    try:
        exact = Decimal(str(usd))
    except InvalidOperation:
        raise ValueError(f"{usd!r} is not an amount in USD; give a number such as 2.5 or '2.50'") from None
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{usd} is not an amount in USD; it must be finite and 0 or more")
    with localcontext(prec=40, rounding=ROUND_DOWN):
        dc = int(exact * DC_PER_USD)
    if dc > MAX_DC:
        raise ValueError(f"USD {usd} is more than the largest amount, USD {MAX_DC // DC_PER_USD}")
    return dc


def dc_to_usd(dc: int) -> Decimal:
    """The exact USD value of an amount in DC."""
    return Decimal(dc) / DC_PER_USD


def format_dc(dc: int) -> str:
    """For people: ``$1.25`` when whole cents, else up to five decimals, for example ``$0.00342``."""
    sign = "-" if dc < 0 else ""
    whole, rest = divmod(abs(dc), DC_PER_USD)
    decimals = f"{rest:05d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{decimals}"
