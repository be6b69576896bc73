"""Integer arithmetic for amounts: every rounding direction is in a name, and every part finds its whole.

Knows nothing of assets or accounts.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...


Key = TypeVar("Key", bound=_Ordered)

BPS = 10_000


def mul_div_down(a: int, b: int, divisor: int) -> int:
    """``a × b ÷ divisor`` of non-negative integers, rounded down."""
    _refuse_negative(a, b, divisor)
    return a * b // divisor


def mul_div_up(a: int, b: int, divisor: int) -> int:
    """``a × b ÷ divisor`` of non-negative integers, rounded up."""
    _refuse_negative(a, b, divisor)
    return -(-a * b // divisor)


def split_by_weight(total: int, weights: Mapping[Key, int]) -> dict[Key, int]:
    """Parts of ``total`` in proportion to ``weights``, by largest remainder; they sum to ``total`` exactly.

    Each part is its exact share rounded down or up. The units left over by rounding down go to the largest
    remainders, on a tie to the smallest key; so neither the order of ``weights`` nor who asks changes a part.

    Raises:
        ValueError: a negative total or weight, or a total above 0 with no weight to bear it.
    """
    whole = sum(weights.values())
    if total < 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("a total and its weights are 0 or more")
    if whole == 0:
        if total:
            raise ValueError(f"{total} cannot be split: all weights are 0")
        return dict.fromkeys(weights, 0)
    parts: dict[Key, int] = {}
    remainders: list[tuple[int, Key]] = []
    for key, weight in weights.items():
        parts[key], remainder = divmod(total * weight, whole)
        if remainder:
            remainders.append((-remainder, key))
    left = total - sum(parts.values())
    for _, key in sorted(remainders)[:left]:
        parts[key] += 1
    return parts


def _refuse_negative(a: int, b: int, divisor: int) -> None:
    if a < 0 or b < 0 or divisor <= 0:
        raise ValueError(f"{a} × {b} ÷ {divisor}: factors are 0 or more and the divisor is above 0")
