"""What an operator orders with its session key: nodes out of service and back, other prices.

The session key is the operator's credential (its wallet delegated that): the same that its agent speaks with, so orders
can be given unattended. An order is bound to one fabric, one operator, one cluster and a moment; whether it is taken is
the control plane's business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WHOLE_CLUSTER = ""
"""Instead of a node: every node that the cluster has or gets."""
MAX_NOTICE_S = 7 * 86_400
"""No lease lives longer."""
MAX_PRICE_DC = 2**40
_MAX_MS = 2**63
_PREFIX = b"fabric-operator-order-v1\0"


class OrderError(ValueError):
    """An order that is not well formed; says which member and what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOrder:
    """A node gets no new leases, and those that it has end after the notice; or, not `draining`, it is back.

    Attributes:
        fabric: the fabric's id.
        operator: whose order it is.
        cluster: by the name that its agent says.
        node: by name or address; `WHOLE_CLUSTER` for all.
        draining: False takes the node back into service; leases that had their notice end all the same.
        notice_s: seconds from the order's arrival; a lease never gets less than its offer promised.
        issued_ms: when it was signed, Unix ms; of two orders about one node the newer counts.
    """

    fabric: str
    operator: str
    cluster: str
    node: str
    draining: bool
    notice_s: int
    issued_ms: int
    kind: str = "drain"

    def __post_init__(self) -> None:
        _expect_texts(self, ("fabric", "operator", "cluster", "node"))
        _expect_kind(self.kind, "drain")
        if not isinstance(self.draining, bool):
            raise OrderError(f"draining is {self.draining!r}; true or false")
        _expect_whole("notice_s", self.notice_s, 0, MAX_NOTICE_S)
        _expect_whole("issued_ms", self.issued_ms, 0, _MAX_MS - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOrder:
    """What GPUs of the named models and tiers cost from now on; running leases keep their price.

    `prices` is {model: {tier: DC per GPU-hour}}; None for a tier takes it out of the offer. Models and tiers that are
    not named stay as they are.
    """

    fabric: str
    operator: str
    cluster: str
    prices: Mapping[str, Mapping[str, int | None]]
    issued_ms: int
    kind: str = "price"

    def __post_init__(self) -> None:
        _expect_texts(self, ("fabric", "operator", "cluster"))
        _expect_kind(self.kind, "price")
        if not isinstance(self.prices, Mapping) or not self.prices:
            raise OrderError("prices must be an object {model: {tier: DC per GPU-hour}} with at least one price")
        for model, tiers in self.prices.items():
            if not isinstance(model, str) or not isinstance(tiers, Mapping) or not tiers:
                raise OrderError(f"prices of {model!r} must be an object {{tier: DC per GPU-hour}}, not empty")
            for tier, price in tiers.items():
                if price is not None:
                    _expect_whole(f"the price of {model} ({tier})", price, 1, MAX_PRICE_DC)
        _expect_whole("issued_ms", self.issued_ms, 0, _MAX_MS - 1)


Order = DrainOrder | PriceOrder
_KINDS: dict[str, type[DrainOrder | PriceOrder]] = {"drain": DrainOrder, "price": PriceOrder}


def to_json(order: Order) -> dict[str, Any]:
    """The members as JSON carries them."""
    return {name: getattr(order, name) for name in order.__dataclass_fields__}


def payload(order: Order) -> bytes:
    """What the session key signs."""
    return _PREFIX + json.dumps(to_json(order), sort_keys=True, separators=(",", ":")).encode()


def order_from_json(members: Mapping[str, Any]) -> Order:
    """The order in `members`.

    Raises:
        OrderError: a member is missing, unknown, or of the wrong kind.
    """
    kind = members.get("kind")
    made = _KINDS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise OrderError(f"kind is {kind!r}; allowed: {', '.join(_KINDS)}")
    names = set(made.__dataclass_fields__)
    if set(members) != names:
        raise OrderError(f"an order of this kind has exactly the members {', '.join(sorted(names))}")
    return made(**members)


def _expect_texts(order: Order, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(getattr(order, name), str):
            raise OrderError(f"{name} must be a string")


def _expect_kind(given: Any, wanted: str) -> None:
    if given != wanted:
        raise OrderError(f"kind is {given!r}; this order's is {wanted!r}")


def _expect_whole(name: str, given: Any, least: int, most: int) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most:
        raise OrderError(f"{name} is {given!r}; a whole number from {least} to {most}")
