"""Blobs of customers, and of agents on behalf of runs they work on."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import or_
from sqlmodel import Session, col, select

from api import schemas
from api.deps import AgentOperator, CallerDep, PlaneDep
from api.errors import NotFound
from api.plane import Plane
from api.tables import BlobRow, LeaseRow, LeaseRunRow, RunRow
from fabric.wire.machines import ACTIVE_LEASE_STATES

router = APIRouter(prefix="/v1", tags=["blobs"])
_TYPE = "application/octet-stream"
Digest = schemas.Sha256

JUST_ENDED_MS = 600_000
"""How long after its lease an agent may still fetch and store for a run."""


@router.put("/blobs/{sha256}", summary="Store bytes under their SHA-256, for seven days from now")
async def put(plane: PlaneDep, caller: CallerDep, sha256: Digest, request: Request) -> schemas.BlobOut:
    return _view(await plane.blobs.put(caller.customer, sha256, request.stream(), _announced(request)))


@router.get(
    "/blobs/{sha256}", summary="The bytes; counted, as many a day as may be stored", response_class=FileResponse
)
def get(plane: PlaneDep, caller: CallerDep, sha256: Digest) -> FileResponse:
    return FileResponse(plane.blobs.begin_download(caller.customer, sha256), media_type=_TYPE)


@router.head("/blobs/{sha256}", summary="Whether they are there", response_class=Response)
def head(plane: PlaneDep, caller: CallerDep, sha256: Digest) -> Response:
    with plane.database.read() as session:
        row = plane.blobs.find(session, caller.customer, sha256)
    return Response(headers={"Content-Length": str(row.size_bytes)}, media_type=_TYPE)


@router.get("/agent/blobs/{sha256}", summary="An agent fetches code or arguments of a run it has a lease for")
def agent_get(plane: PlaneDep, operator: AgentOperator, sha256: Digest) -> FileResponse:
    with plane.database.read() as session:
        customer = _customer_of_blob(session, operator, sha256, plane.now_ms())
    return _file(plane, customer, sha256)


@router.put("/agent/blobs/{sha256}", summary="An agent stores the result of a run it has a lease for")
async def agent_put(
    plane: PlaneDep,
    operator: AgentOperator,
    sha256: Digest,
    run: Annotated[str, Query(description="whose result it is")],
    request: Request,
) -> schemas.BlobOut:
    customer = await to_thread.run_sync(_customer_of_run, plane, operator, run)
    return _view(await plane.blobs.put(customer, sha256, request.stream(), _announced(request)))


def _announced(request: Request) -> int:
    """How long the body is to be, as far as it says."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def _view(row: BlobRow) -> schemas.BlobOut:
    return schemas.BlobOut(sha256=row.sha256, size_bytes=row.size_bytes, expires_ms=row.expires_ms)


def _file(plane: Plane, customer: str, sha256: str) -> FileResponse:
    with plane.database.read() as session:
        plane.blobs.find(session, customer, sha256)
    return FileResponse(plane.blobs.path(customer, sha256), media_type=_TYPE)


def _customer_of_blob(session: Session, operator: str, sha256: str, now_ms: int) -> str:
    """Whose run with a lease of this operator names the blob."""
    query = _runs_at(operator, now_ms).where(or_(col(RunRow.code) == sha256, col(RunRow.args) == sha256)).limit(1)
    found = session.exec(query).first()
    if found is None:
        raise NotFound(f"no run with a lease of {operator} uses blob {sha256}")
    return found


def _customer_of_run(plane: Plane, operator: str, run: str) -> str:
    with plane.database.read() as session:
        found = session.exec(_runs_at(operator, plane.now_ms()).where(col(RunRow.id) == run).limit(1)).first()
    if found is None:
        raise NotFound(f"{operator} has no lease for run {run}")
    return found


def _runs_at(operator: str, now_ms: int):  # noqa: ANN202 - the query's type is the library's affair
    """Of customers for whose runs its agent works under a lease that is active, or was until just now.

    Detached ones, and gangs whose process waits: nobody else's quota and code are its affair.
    """
    current = or_(
        col(LeaseRow.state).in_([state.value for state in ACTIVE_LEASE_STATES]),
        col(LeaseRow.closed_ms) > now_ms - JUST_ENDED_MS,
    )
    return (
        select(RunRow.customer)
        .join(LeaseRunRow, col(LeaseRunRow.run) == col(RunRow.id))
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseRunRow.lease))
        .where(col(LeaseRow.operator) == operator, col(RunRow.code) != "", current)
    )
