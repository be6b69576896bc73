"""Orders of operators: nodes out of service, other prices; the session key's signature is the credential."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api import orders
from api.deps import PlaneDep, WriteSession
from api.schemas import Dc
from fabric.wire.delegation import DelegationError, unhex
from fabric.wire.errors import InvalidRequest
from fabric.wire.operator_orders import DrainOrder, Order, OrderError, PriceOrder, order_from_json

router = APIRouter(prefix="/v1/operators/orders", tags=["operators"])


class SignedOrder(BaseModel):
    """An order (`fabric/wire/operator_orders.py`), the session key that signed it and its signature, both in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: dict[str, Any]
    session_key: str = Field(max_length=66)
    signature: str = Field(max_length=130)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class LeavingLease(_Out):
    """Ends at `until_ms` at the latest."""

    lease: str
    node: str
    until_ms: int


class Drained(_Out):
    """`leases` are those that are still there and leave; none: the node, or the cluster, is empty.

    While its agent is not heard, nobody tells them.
    """

    cluster: str
    node: str
    draining: bool
    leases: list[LeavingLease]
    agent_heard: bool


class Prices(_Out):
    """All that the cluster asks, DC per GPU-hour by model and tier."""

    cluster: str
    prices: dict[str, dict[str, Dc]]


@router.post("/drain", status_code=201, summary="Take a node out of service with notice, or back")
def drain(plane: PlaneDep, session: WriteSession, body: SignedOrder) -> Drained:
    order, key, signature = _read(body)
    if not isinstance(order, DrainOrder):
        raise _misplaced(order)
    leaving, heard = orders.drain(plane, session, order, key, signature)
    leases = [LeavingLease(lease=one.lease, node=one.node, until_ms=one.until_ms) for one in leaving]
    about = {"cluster": order.cluster, "node": order.node, "draining": order.draining}
    return Drained(**about, leases=leases, agent_heard=heard)


@router.post("/price", status_code=201, summary="Other prices, from now on")
def price(plane: PlaneDep, session: WriteSession, body: SignedOrder) -> Prices:
    order, key, signature = _read(body)
    if not isinstance(order, PriceOrder):
        raise _misplaced(order)
    return Prices(cluster=order.cluster, prices=orders.set_prices(plane, session, order, key, signature))


def _read(body: SignedOrder) -> tuple[Order, bytes, bytes]:
    try:
        return order_from_json(body.order), unhex(body.session_key, "session_key"), unhex(body.signature, "signature")
    except (OrderError, DelegationError) as error:
        raise InvalidRequest(str(error)) from None


def _misplaced(order: Order) -> InvalidRequest:
    return InvalidRequest(f"an order {order.kind!r} goes to /v1/operators/orders/{order.kind}")
