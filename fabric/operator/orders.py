"""What an operator orders, signed with the session key and sent: drain, undrain, prices; also before `ray down`.

The key is the one in the operator's folder, or on the head: whoever has it speaks for the operator, as the agent does.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from nacl.signing import SigningKey

from fabric.operator.cluster_file import TIERS, ClusterFile
from fabric.operator.enrol import ControlPlane
from fabric.wire.amounts import usd_to_dc_down
from fabric.wire.clock import Clock
from fabric.wire.errors import InvalidRequest
from fabric.wire.operator_orders import (
    MAX_NOTICE_S,
    MAX_PRICE_DC,
    WHOLE_CLUSTER,
    DrainOrder,
    Order,
    PriceOrder,
    payload,
    to_json,
)

OFF = "off"
"""Instead of a price: not offered."""
_SLACK_S = 60
_POLL_S = 1.0
_PRICES = re.compile(r"^(?P<key>[ ]+prices:[ ]*)(?P<value>\{[^#\n]*\})[ ]*(#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Orders:
    """Gives orders for one cluster with one key.

    Every method raises fabric's own errors: what the control plane refused with its reason, or ServiceError when it
    does not answer.
    """

    cluster: ClusterFile
    key: SigningKey
    clock: Clock

    def drain(self, node: str, *, draining: bool, notice_s: int = 0) -> dict[str, Any]:
        """Take a node (or `WHOLE_CLUSTER`) out of service with notice, or back; the leases that are still leaving."""
        if not 0 <= notice_s <= MAX_NOTICE_S:
            raise InvalidRequest(f"a notice of {notice_s} s; 0 to {MAX_NOTICE_S} s are possible")
        order = DrainOrder(**self._about(), node=node, draining=draining, notice_s=notice_s)
        return self._send(order)

    def set_prices(self, prices: Mapping[str, Mapping[str, int | None]]) -> dict[str, Any]:
        """Other prices from now on, DC per GPU-hour; None takes a tier out of the offer."""
        return self._send(PriceOrder(**self._about(), prices=prices))

    def empty(self, node: str, notice_s: int, *, wait: Callable[[float], None] = time.sleep) -> list[dict[str, Any]]:
        """Drain, and wait until no lease is left there; those that are left when the time is up.

        Nobody is waited for whom nobody can tell: where the agent is not heard, it returns at once.
        """
        deadline = self.clock.monotonic_ns() + (notice_s + _SLACK_S) * 1_000_000_000
        while (done := self.drain(node, draining=True, notice_s=notice_s))["leases"]:
            if not done["agent_heard"] or self.clock.monotonic_ns() > deadline:
                break
            wait(_POLL_S)
        return done["leases"]

    def _about(self) -> dict[str, Any]:
        fabric = ControlPlane(self.cluster.url).fabric_id()
        now = self.clock.now_ms()
        return {
            "fabric": fabric,
            "operator": self.cluster.operator,
            "cluster": self.cluster.name,
            "issued_ms": now,
        }

    def _send(self, order: Order) -> dict[str, Any]:
        signature = self.key.sign(payload(order)).signature
        key = bytes(self.key.verify_key).hex()
        body = {"order": to_json(order), "session_key": key, "signature": signature.hex()}
        return ControlPlane(self.cluster.url).order(order.kind, body)


def drained_for_stop(orders: Orders, notice_s: int, mark: Path) -> list[dict[str, Any]]:
    """Before Ray is stopped: drain the whole cluster, and note that it was for that. What is left of leases."""
    mark.touch(mode=0o600)
    return orders.empty(WHOLE_CLUSTER, notice_s)


def back_after_stop(orders: Orders, mark: Path) -> None:
    """When Ray starts again: undo the drain that stopping it made, and no other."""
    if mark.exists():
        orders.drain(WHOLE_CLUSTER, draining=False)
        mark.unlink()


def read_prices(texts: list[str]) -> dict[str, dict[str, int | None]]:
    """{model: {tier: DC per GPU-hour, None for `off`}} of texts such as `H100:on_demand=2.49`.

    Raises:
        InvalidRequest: says which text and what would be right.
    """
    prices: dict[str, dict[str, int | None]] = {}
    for text in texts:
        offer, _, usd = text.rpartition("=")
        model, _, tier = offer.rpartition(":")
        if not (model and tier and usd):
            raise InvalidRequest(f"{text!r} is not a price; write MODEL:TIER=USD, such as H100:on_demand=2.49")
        if tier not in TIERS:
            raise InvalidRequest(f"{text!r}: the tier {tier!r} does not exist; there are {', '.join(TIERS)}")
        if tier in prices.setdefault(model, {}):
            raise InvalidRequest(f"{text!r}: {model} ({tier}) has a price already; give one")
        prices[model][tier] = None if usd == OFF else _dc(text, usd)
    if not prices:
        raise InvalidRequest("no price; write MODEL:TIER=USD, such as H100:on_demand=2.49")
    return prices


def write_prices(cluster_file: Path, texts: list[str]) -> bool:
    """Keep the prices in `cluster.yaml` as well, so that the next `up` says the same; the rest of it stays as it is.

    False where its `prices` do not stand on one line, as `init` writes them: then nothing is changed.
    """
    document = cluster_file.read_text(encoding="utf-8")
    found = list(_PRICES.finditer(document))
    if len(found) != 1:
        return False
    prices: dict[str, dict[str, str]] = yaml.safe_load(found[0]["value"])
    for text in texts:
        offer, _, usd = text.rpartition("=")
        model, _, tier = offer.rpartition(":")
        known = next((one for one in prices if one.upper() == model.upper()), model)
        tiers = prices.setdefault(known, {})
        tiers.pop(tier, None)
        if usd != OFF:
            tiers[tier] = usd
    value = _flow({model: tiers for model, tiers in prices.items() if tiers})
    start, end = found[0].span("value")
    cluster_file.write_text(document[:start] + value + document[end:], encoding="utf-8")
    return True


def _flow(prices: dict[str, dict[str, str]]) -> str:
    return yaml.safe_dump(prices, default_flow_style=True, width=10_000, sort_keys=False).strip()


def _dc(text: str, usd: str) -> int:
    try:
        dc = usd_to_dc_down(usd)
    except ValueError as error:
        raise InvalidRequest(f"{text!r}: {error}") from None
    if not 1 <= dc <= MAX_PRICE_DC:
        raise InvalidRequest(
            f"{text!r}: a price is more than nothing, at least USD 0.00001 per GPU-hour and at most "
            f"USD {MAX_PRICE_DC // 100_000}; `{OFF}` takes the tier out of the offer"
        )
    return dc
