"""Takes what operators order with their session keys: who signed is checked here, then it is written.

Works inside the caller's transaction. An order is taken near the time it was signed, and not after a newer one about
the same, so that nothing that was recorded on its way moves anything again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from sqlalchemy import select
from sqlmodel import Session, col

from api import enrolment, inventory, notices
from api.database import say
from api.errors import Conflict, NotFound
from api.fleet import cluster_id
from api.fleets import note_change
from api.lifecycle import NEAR_SILENT_MS
from api.notice_tables import DrainRow, NoticeRow
from api.order_tables import PriceOrderRow
from api.plane import Plane
from api.signals import CAPACITY
from api.tables import ClusterRow, GpuRow, LeaseRow, NodeRow, PriceRow, SessionKeyRow
from fabric.placement.request import TIERS
from fabric.wire.errors import AuthError, InvalidRequest, PermissionDenied
from fabric.wire.machines import ACTIVE_LEASE_STATES
from fabric.wire.operator_orders import WHOLE_CLUSTER, DrainOrder, Order, PriceOrder, payload
from fabric.wire.reasons import Reason

_log = structlog.get_logger(__name__)

TAKEN_WITHIN_MS = 600_000
CLOCK_SLACK_MS = 300_000
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Leaving:
    """A lease on a drained node, and when it ends at the latest."""

    lease: str
    node: str
    until_ms: int


def drain(
    plane: Plane, session: Session, order: DrainOrder, key: bytes, signature: bytes
) -> tuple[list[Leaving], bool]:
    """Take a node out of service, or back.

    Returns:
        The leases that are still on it, the last to leave last; and whether the agent, who tells them, is heard.

    Raises:
        AuthError, PermissionDenied, InvalidRequest: as `_expect_signed`.
        NotFound: the operator has no such cluster or node. Conflict: a newer order about the node is known.
    """
    _expect_signed(plane, session, order, key, signature)
    cluster = _cluster(session, order)
    node = _node(session, cluster, order.node)
    known = session.get(DrainRow, (cluster.id, node))
    if known is not None and known.issued_ms >= order.issued_ms:
        raise Conflict(f"an order about {node or 'the whole cluster'} that was signed later is known; sign a new one")
    session.merge(DrainRow(cluster=cluster.id, node=node, draining=order.draining, issued_ms=order.issued_ms))
    session.flush()
    note_change(session, plane.now_ms(), cluster.id, [node])
    say(session, CAPACITY)
    _log.info("drain", cluster=cluster.id, node=node or "all", draining=order.draining, notice_s=order.notice_s)
    if order.draining:
        _give_notices(plane, session, cluster.id, node, order.notice_s * 1000)
    heard = cluster.connected and plane.now_ms() - cluster.last_heard_ms < NEAR_SILENT_MS
    return _leaving(session, cluster.id, node), heard


def set_prices(
    plane: Plane, session: Session, order: PriceOrder, key: bytes, signature: bytes
) -> dict[str, dict[str, int]]:
    """Other prices from now on; all that the cluster asks then. Running leases keep theirs.

    Raises:
        AuthError, PermissionDenied, InvalidRequest: as `_expect_signed`; or a model or tier that is not there.
        NotFound: the operator has no such cluster. Conflict: a newer price order of the same is known.
    """
    _expect_signed(plane, session, order, key, signature)
    cluster = _cluster(session, order)
    prices = current_prices(session, cluster.id)
    for model, tier, wanted in _wanted(session, cluster.id, order):
        known = session.get(PriceOrderRow, (cluster.id, model, tier))
        if known is not None and known.issued_ms >= order.issued_ms:
            raise Conflict(f"a price of {model} ({tier}) that was signed later is known; sign a new order")
        said = known.instead_of_dc if known is not None else prices.get(model, {}).get(tier, 0)
        row = PriceOrderRow(
            cluster=cluster.id,
            model=model,
            tier=tier,
            price_dc_per_gpu_hour=wanted or 0,
            instead_of_dc=said,
            issued_ms=order.issued_ms,
        )
        session.merge(row)
        _put(prices, model, tier, wanted or 0)
    inventory.write_prices(session, cluster.id, prices, plane.now_ms())
    note_change(session, plane.now_ms(), cluster.id)
    say(session, CAPACITY)
    _log.info("prices", cluster=cluster.id, models=sorted(order.prices))
    return current_prices(session, cluster.id)


def with_orders(session: Session, cluster: str, said: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """What a cluster asks when its agent says these prices: orders given since it was configured so count."""
    prices = {model: dict(tiers) for model, tiers in said.items()}
    for row in list(session.scalars(select(PriceOrderRow).where(col(PriceOrderRow.cluster) == cluster))):
        if said.get(row.model, {}).get(row.tier, 0) == row.instead_of_dc:
            _put(prices, row.model, row.tier, row.price_dc_per_gpu_hour)
        else:
            session.delete(row)
    session.flush()
    return prices


def current_prices(session: Session, cluster: str) -> dict[str, dict[str, int]]:
    """{model: {tier: DC per GPU-hour}} of the cluster now."""
    prices: dict[str, dict[str, int]] = {}
    for row in session.scalars(select(PriceRow).where(col(PriceRow.cluster) == cluster)):
        prices.setdefault(row.model, {})[row.tier] = row.price_dc_per_gpu_hour
    return prices


def _expect_signed(plane: Plane, session: Session, order: Order, key: bytes, signature: bytes) -> None:
    """The order is this fabric's, of now, and signed by a key that speaks for its operator now.

    Raises:
        InvalidRequest: for another fabric, or signed too long ago or ahead.
        AuthError: not signed by that key, or a key that speaks for nobody (any more).
        PermissionDenied: another operator's key.
    """
    now = plane.now_ms()
    if order.fabric != plane.fabric_id:
        raise InvalidRequest(f"the order is for fabric {order.fabric}, this is {plane.fabric_id}")
    if not now - TAKEN_WITHIN_MS <= order.issued_ms <= now + CLOCK_SLACK_MS:
        raise InvalidRequest(
            f"the order was signed at {order.issued_ms} ms and it is {now} ms; sign it anew, with a clock that is right"
        )
    try:
        VerifyKey(key).verify(payload(order), signature)
    except (BadSignatureError, ValueError, TypeError):
        raise AuthError("the order is not signed by the session key that it names") from None
    row = session.get(SessionKeyRow, key.hex())
    if row is None or row.revoked_ms is not None:
        raise AuthError("this session key is not known here, or was revoked; `fabric operator renew` makes one known")
    problem = enrolment.problem_of_key(session, key, now)
    if problem:
        raise AuthError(problem)
    if row.operator != order.operator:
        raise PermissionDenied(f"this key speaks for operator {row.operator}; the order is about {order.operator}")


def _cluster(session: Session, order: Order) -> ClusterRow:
    row = session.get(ClusterRow, cluster_id(order.operator, order.cluster))
    if row is None:
        names = session.scalars(select(ClusterRow).where(col(ClusterRow.operator) == order.operator))
        raise NotFound(
            f"operator {order.operator} has no cluster {order.cluster!r}; {_there(one.name for one in names)}"
        )
    return row


def _node(session: Session, cluster: ClusterRow, wanted: str) -> str:
    """The name of the node with this name, or else with this address."""
    if wanted == WHOLE_CLUSTER:
        return wanted
    rows = list(session.scalars(select(NodeRow).where(col(NodeRow.cluster) == cluster.id)))
    found = [row.name for row in rows if row.name == wanted] or [
        row.name for row in rows if row.address == wanted and row.present
    ]
    if len(found) != 1:
        what = f"{len(found)} nodes with the address" if found else "no node"
        raise NotFound(
            f"cluster {cluster.name} has {what} {wanted!r}; {_there(row.name for row in rows if row.present)}"
        )
    return found[0]


def _there(names: Iterator[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"there is {', '.join(listed[:_SHOWN])}{more}" if listed else "there is none"


def _give_notices(plane: Plane, session: Session, cluster: str, node: str, notice_ms: int) -> None:
    for lease in list(_leases(session, cluster, node)):
        notices.give(plane, session, lease, Reason.OPERATOR_DRAIN, max(notice_ms, lease.notice_ms))


def _leaving(session: Session, cluster: str, node: str) -> list[Leaving]:
    """Active leases there that have their notice, or are closing."""
    found = [
        Leaving(lease.id, lease.node, notice.until_ms if notice is not None else lease.release_ms or lease.granted_ms)
        for lease in list(_leases(session, cluster, node))
        if (notice := session.get(NoticeRow, lease.id)) is not None or lease.release_ms is not None
    ]
    return sorted(found, key=lambda one: (one.until_ms, one.lease))


def _leases(session: Session, cluster: str, node: str) -> Iterator[LeaseRow]:
    active = [state.value for state in ACTIVE_LEASE_STATES]
    query = select(LeaseRow).where(col(LeaseRow.cluster) == cluster, col(LeaseRow.state).in_(active))
    if node != WHOLE_CLUSTER:
        query = query.where(col(LeaseRow.node) == node)
    yield from session.scalars(query.order_by(col(LeaseRow.id)))


def _wanted(session: Session, cluster: str, order: PriceOrder) -> Iterator[tuple[str, str, int | None]]:
    """(model as the inventory writes it, tier, DC or None)."""
    query = select(GpuRow.model).where(col(GpuRow.cluster) == cluster)  # type: ignore[call-overload]
    models = {model.upper(): model for model in session.scalars(query.distinct())}
    models |= {model.upper(): model for model in current_prices(session, cluster)}
    for given, tiers in order.prices.items():
        model = models.get(given.upper())
        if model is None:
            raise InvalidRequest(f"cluster {order.cluster} has no {given}; {_there(iter(models.values()))}")
        for tier, price in tiers.items():
            if tier not in TIERS:
                raise InvalidRequest(f"price of {model}: tier {tier!r} does not exist; there are {', '.join(TIERS)}")
            yield model, tier, price


def _put(prices: dict[str, dict[str, int]], model: str, tier: str, dc: int) -> None:
    tiers = prices.setdefault(model, {})
    if dc:
        tiers[tier] = dc
    else:
        tiers.pop(tier, None)
