"""Endpoints: made, listed and stopped by their customer; read and reported on by the serving router."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from api import router_tokens, schemas, transitions
from api.blobs import KEPT_MS
from api.deps import CallerDep, PlaneDep, ReadSession, Token, WriteSession
from api.endpoint_tables import EndpointRow
from api.errors import Conflict, NotFound
from api.plane import Plane
from api.tables import BlobRow, RunRow
from fabric.wire.channel import MAX_AT_ONCE
from fabric.wire.errors import AuthError, InvalidRequest
from fabric.wire.machines import RUN_EDGES, RunState, is_terminal

router = APIRouter(prefix="/v1", tags=["endpoints"])

ACTIVE, STOPPED = "ACTIVE", "STOPPED"
MAX_REPLICAS = 256
MAX_ENDPOINTS = 100
"""Of one customer at a time."""


class EndpointIn(BaseModel):
    """`request` is the RunRequest of its runs, of kind `serve`; `code` the blob of the packed object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: schemas.Name
    name: str = Field(min_length=1, max_length=200)
    request: schemas.RunRequest
    code: schemas.Sha256
    methods: list[str] = Field(max_length=1000)
    min_replicas: int = Field(ge=0, le=MAX_REPLICAS)
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    at_once: int = Field(ge=1, le=MAX_AT_ONCE)


class _Endpoint(BaseModel):
    """`url` is where it answers; `report` what its router last said."""

    id: str
    name: str
    state: str
    url: str
    methods: list[str]
    min_replicas: int
    max_replicas: int
    budget_dc: schemas.Dc | None
    runs: list[str]
    report: dict[str, Any]
    created_at_ms: int
    stopped_at_ms: int | None


class EndpointOut(_Endpoint):
    """An endpoint as its customer sees it. `spent_dc` is what its runs were charged and hold."""

    spent_dc: schemas.Dc


class EndpointsOut(BaseModel):
    endpoints: list[EndpointOut]


class ServedOut(_Endpoint):
    """An endpoint as its router needs it, every second: without the sum of what it spent."""

    customer: str
    request: dict[str, Any]
    code: str
    at_once: int


class ServedsOut(BaseModel):
    endpoints: list[ServedOut]


class ReportIn(BaseModel):
    """`run` is one that the router is about to submit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    report: dict[str, Any] = {}
    run: schemas.Name | None = None


def _router(plane: PlaneDep, token: Token) -> None:
    secret = router_tokens.load_secret(plane.settings.state_dir)
    if router_tokens.read(secret, token or "", plane.now_ms()) != router_tokens.ROUTER:
        raise AuthError("this is for the serving router")


RouterDep = Depends(_router)


@router.post("/endpoints", status_code=201, summary="Serve an object behind a URL, until it is stopped")
def create(plane: PlaneDep, session: WriteSession, caller: CallerDep, given: EndpointIn) -> EndpointOut:
    if not plane.settings.serving_url:
        raise Conflict("this control plane has no serving router; its operator sets FABRIC_SERVING_URL")
    if given.request.kind != "serve" or given.min_replicas > given.max_replicas:
        raise InvalidRequest("an endpoint's request is of kind `serve`, and its replicas are (least, most)")
    row = session.get(EndpointRow, given.id)
    if row is None:
        plane.blobs.find(session, caller.customer, given.code)
        _check_count(session, caller.customer)
        row = _new(plane, caller.customer, given)
        session.add(row)
        session.flush()
    if row.customer != caller.customer or row.code != given.code:
        raise Conflict(f"endpoint {given.id} exists and is another one; make a fresh id")
    return _view(plane, session, row)


@router.get("/endpoints", summary="The account's endpoints, newest first")
def list_endpoints(plane: PlaneDep, session: ReadSession, caller: CallerDep, all: bool = False) -> EndpointsOut:  # noqa: A002
    query = select(EndpointRow).where(col(EndpointRow.customer) == caller.customer)
    query = query if all else query.where(col(EndpointRow.state) == ACTIVE)
    rows = session.exec(query.order_by(col(EndpointRow.created_ms).desc()).limit(MAX_ENDPOINTS))
    return EndpointsOut(endpoints=[_view(plane, session, row) for row in rows])


@router.get("/endpoints/{endpoint_id}", summary="One endpoint")
def get(plane: PlaneDep, session: ReadSession, caller: CallerDep, endpoint_id: str) -> EndpointOut:
    return _view(plane, session, _find(session, caller.customer, endpoint_id))


@router.post("/endpoints/{endpoint_id}/stop", summary="End it and release its replicas; stopping again changes nothing")
def stop(plane: PlaneDep, session: WriteSession, caller: CallerDep, endpoint_id: str) -> EndpointOut:
    row = _find(session, caller.customer, endpoint_id)
    if row.state == ACTIVE:
        row.state, row.stopped_ms = STOPPED, plane.now_ms()
        session.add(row)
        for run in _runs(session, row):
            if not is_terminal(RUN_EDGES, RunState(run.state)):
                transitions.cancel(plane, session, run)
    return _view(plane, session, row)


@router.get("/serving/endpoints", dependencies=[RouterDep], summary="For the router: all endpoints that are served")
def served(plane: PlaneDep, session: ReadSession) -> ServedsOut:
    rows = session.exec(select(EndpointRow).where(col(EndpointRow.state) == ACTIVE))
    return ServedsOut(endpoints=[_served(plane, row) for row in rows])


@router.put("/serving/endpoints/{endpoint_id}", dependencies=[RouterDep], summary="For the router: how it stands")
def report(plane: PlaneDep, session: WriteSession, endpoint_id: str, said: ReportIn) -> ServedOut:
    row = session.get(EndpointRow, endpoint_id)
    if row is None:
        raise NotFound(f"there is no endpoint {endpoint_id}")
    if said.run is not None:
        if row.state != ACTIVE:
            raise Conflict(f"endpoint {endpoint_id} is stopped")
        row.runs = [*row.runs, said.run]
    row.report, row.reported_ms = said.report or row.report, plane.now_ms()
    session.add(row)
    _keep_code(plane, session, row)
    return _served(plane, row)


def _new(plane: Plane, customer: str, given: EndpointIn) -> EndpointRow:
    return EndpointRow(
        id=given.id,
        customer=customer,
        name=given.name,
        state=ACTIVE,
        request=given.request.model_dump(mode="json"),
        methods=given.methods,
        code=given.code,
        min_replicas=given.min_replicas,
        max_replicas=given.max_replicas,
        at_once=given.at_once,
        budget_dc=given.request.budget_dc,
        created_ms=plane.now_ms(),
    )


def _check_count(session: Session, customer: str) -> None:
    query = select(EndpointRow.id).where(col(EndpointRow.customer) == customer, col(EndpointRow.state) == ACTIVE)
    if len(session.exec(query).all()) >= MAX_ENDPOINTS:
        raise Conflict(f"an account serves at most {MAX_ENDPOINTS} endpoints; stop one first")


def _keep_code(plane: Plane, session: Session, row: EndpointRow) -> None:
    """What an endpoint is made of lives as long as it does."""
    blob, now = session.get(BlobRow, (row.customer, row.code)), plane.now_ms()
    if blob is not None and row.state == ACTIVE and blob.expires_ms < now + KEPT_MS // 2:
        blob.expires_ms = now + KEPT_MS
        session.add(blob)


def _find(session: Session, customer: str, endpoint_id: str) -> EndpointRow:
    row = session.get(EndpointRow, endpoint_id)
    if row is None or row.customer != customer:
        raise NotFound(f"there is no endpoint {endpoint_id} in this account")
    return row


def _runs(session: Session, row: EndpointRow) -> Sequence[RunRow]:
    return session.exec(select(RunRow).where(col(RunRow.id).in_(row.runs), col(RunRow.customer) == row.customer)).all()


def _view(plane: Plane, session: Session, row: EndpointRow) -> EndpointOut:
    runs = select(RunRow.id).where(col(RunRow.id).in_(row.runs), col(RunRow.customer) == row.customer)
    return EndpointOut(**_members(plane, row), spent_dc=plane.ledger(session).committed_dc(*session.exec(runs)))


def _served(plane: Plane, row: EndpointRow) -> ServedOut:
    return ServedOut(
        **_members(plane, row), customer=row.customer, request=row.request, code=row.code, at_once=row.at_once
    )


def _members(plane: Plane, row: EndpointRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "url": f"{plane.settings.serving_url.rstrip('/')}/serve/{row.id}/v1",
        "methods": row.methods,
        "min_replicas": row.min_replicas,
        "max_replicas": row.max_replicas,
        "budget_dc": row.budget_dc,
        "runs": row.runs,
        "report": row.report,
        "created_at_ms": row.created_ms,
        "stopped_at_ms": row.stopped_ms,
    }
