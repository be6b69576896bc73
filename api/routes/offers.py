"""What could be bought now, at what price."""

from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlmodel import select

from api import fleet as fleets
from api import schemas
from api.deps import PerhapsCaller, PlaneDep, ReadSession
from api.queueing import queue
from api.tables import OperatorRow
from fabric.placement.answer import Offer
from fabric.placement.place import offers as find_offers
from fabric.wire.surroundings import GANG, NONE

router = APIRouter(prefix="/v1/offers", tags=["offers"])


@router.get("", summary="Offers that fit, cheapest first; no account is needed")
def offers(
    plane: PlaneDep,
    session: ReadSession,
    account: PerhapsCaller,
    gpu: Annotated[
        list[str] | None,
        Query(max_length=schemas.MAX_GPUS, description="GPU grammar; several are an ordered preference"),
    ] = None,
    tier: Literal["spot", "on_demand", "reserved"] = "on_demand",
    nodes: Annotated[int, Query(ge=1, le=1024, description="of one cluster at once, reaching each other")] = 1,
    region: Annotated[list[str] | None, Query(description="any of these")] = None,
    near: Annotated[str, Query(max_length=200, description="a region, a gateway's host, or latitude,longitude")] = "",
    caller: Annotated[
        str, Query(max_length=80, description="the session whose measurements count without `near`")
    ] = "",
    max_rtt_ms: Annotated[float | None, Query(gt=0)] = None,
    max_price_dc: Annotated[int | None, Query(ge=0, description="DC per GPU-hour")] = None,
    python: Annotated[str, Query(pattern=r"^(3\.\d{1,2})?$", description="only where this minor runs: 3.11")] = "",
    any: Annotated[bool, Query(description="the `gpu` parameters are a set")] = False,  # noqa: A002 - the protocol's name
) -> schemas.Offers:
    now = plane.now_ms()
    fleet = plane.fleets.at(session, now, writes=False)
    wanted = _wanted(
        session=caller or "offers",
        gpu=gpu or [],
        gpu_any=any,
        tier=tier,
        nodes=nodes,
        network=GANG if nodes > 1 else NONE,
        region=region or [],
        near=near,
        max_rtt_ms=max_rtt_ms,
        max_price_dc=max_price_dc,
        python=python,
    )
    located = wanted.model_copy(update={"objective": "latency"} if caller else {})
    rtts = plane.distances.rtts_ms(session, located, now)
    allowed = plane.settings.allow_simulated
    kept = queue(plane, session).kept_clear(fleet)
    whose = None if account is None else account.customer
    request = fleets.request_of(wanted, fleet, exclude=kept, allow_simulated=allowed, rtt_ms=rtts, account=whose)
    names = {row.id: row.name for row in session.exec(select(OperatorRow))}
    found = find_offers(fleet, request)
    wanted_of = {offer.cluster for offer in found}
    totals = Counter(
        (node.cluster, gpu.vendor, gpu.model, gpu.memory_bytes)
        for node in fleet.nodes.values()
        if node.cluster in wanted_of
        for gpu in node.gpus
    )
    return schemas.Offers(offers=[_view(offer, totals, names) for offer in found])


def _wanted(**given: Any) -> schemas.RunRequest:
    """The request of a run that would want this; what a run may not ask, nobody may ask offers for."""
    try:
        return schemas.RunRequest(id="offers", **given)
    except ValidationError as error:
        asked = {"session": "caller"}
        wrong = [
            one | {"loc": ("query", *(asked.get(str(part), part) for part in one["loc"]))} for one in error.errors()
        ]
        raise RequestValidationError(wrong) from None


def _view(offer: Offer, totals: Counter[tuple[str, str, str, int]], names: dict[str, str]) -> schemas.Offer:
    return schemas.Offer(
        operator=offer.operator,
        operator_name=names.get(offer.operator, offer.operator),
        region=offer.region,
        vendor=offer.vendor,
        model=offer.model,
        memory_bytes=offer.memory_bytes,
        count_free=offer.available * offer.nodes * offer.gpus_per_node,
        count_total=totals[offer.cluster, offer.vendor, offer.model, offer.memory_bytes],
        per_node=offer.gpus_per_node,
        tier=offer.tier,
        price_dc_per_gpu_hour=offer.price_dc_per_gpu_hour,
        reputation=offer.reputation,
        verification=offer.verification,
        simulated=offer.simulated,
        rtt_ms=None if offer.rtt_ms is None else round(offer.rtt_ms, 3),
        ends_at_ms=offer.ends_at_ms,
    )
