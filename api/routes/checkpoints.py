"""Checkpoints: what agents store and fetch for runs that they have leases for; pieces are the customer's blobs."""

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import or_
from sqlmodel import Session, col, select

from api import schemas, transitions
from api.deps import AgentOperator, PlaneDep, WriteSession
from api.errors import NotFound
from api.fleets import note_change
from api.notice_tables import CheckpointRow
from api.plane import Plane
from api.tables import LeaseRow, LeaseRunRow, RunRow
from fabric.wire.machines import ACTIVE_LEASE_STATES

router = APIRouter(prefix="/v1/agent/checkpoints", tags=["blobs"])
Digest = schemas.Sha256

JUST_ENDED_MS = 60_000
"""What a job saved in its last moment may arrive so much later."""


class CheckpointIn(BaseModel):
    """The manifest's digest, and those of the pieces that it names: all must be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    manifest: Digest
    pieces: list[Digest] = Field(max_length=65_536)


@router.put("/{run}/{task}/pieces/{sha256}", summary="An agent stores a piece")
async def put_piece(
    plane: PlaneDep, operator: AgentOperator, run: str, task: int, sha256: Digest, request: Request
) -> schemas.BlobOut:
    del task
    customer = await to_thread.run_sync(_customer, plane, operator, run)
    length = request.headers.get("content-length", "")
    row = await plane.blobs.put(customer, sha256, request.stream(), int(length) if length.isdecimal() else 0)
    return schemas.BlobOut(sha256=row.sha256, size_bytes=row.size_bytes, expires_ms=row.expires_ms)


@router.put("/{run}/{task}", summary="An agent makes what it stored the task's newest checkpoint")
def put(
    plane: PlaneDep, session: WriteSession, operator: AgentOperator, run: str, task: int, body: CheckpointIn
) -> dict[str, str]:
    customer = _customer_in(session, operator, run, plane.now_ms())
    for sha256 in (body.manifest, *body.pieces):
        plane.blobs.find(session, customer, sha256)
    row = CheckpointRow(run=run, task=task, manifest=body.manifest, pieces=body.pieces, stored_ms=plane.now_ms())
    session.merge(row)
    _safer(session, run, plane.now_ms())
    return {"manifest": body.manifest}


@router.get("/{run}/{task}", summary="The digest of the newest checkpoint's manifest; empty when there is none")
def get(plane: PlaneDep, operator: AgentOperator, run: str, task: int) -> dict[str, str]:
    with plane.database.read() as session:
        _customer_in(session, operator, run, plane.now_ms())
        row = session.get(CheckpointRow, (run, task))
        return {"manifest": row.manifest if row is not None else ""}


@router.get("/{run}/{task}/pieces/{sha256}", summary="A piece of the newest checkpoint, or its manifest")
def get_piece(plane: PlaneDep, operator: AgentOperator, run: str, task: int, sha256: Digest) -> FileResponse:
    with plane.database.read() as session:
        customer = _customer_in(session, operator, run, plane.now_ms())
        row = session.get(CheckpointRow, (run, task))
        if row is None or sha256 not in (row.manifest, *row.pieces):
            raise NotFound(f"the newest checkpoint of {run} has no piece {sha256}")
        plane.blobs.find(session, customer, sha256)
    return FileResponse(plane.blobs.path(customer, sha256), media_type="application/octet-stream")


def _safer(session: Session, run: str, now_ms: int) -> None:
    """Tell the fleets: evicting the run's spot leases would lose less than before."""
    for lease in transitions.leases_of(session, run, active=True):
        if lease.tier == "spot":
            note_change(session, now_ms, lease.cluster, [lease.node])


def _customer(plane: Plane, operator: str, run: str) -> str:
    with plane.database.read() as session:
        return _customer_in(session, operator, run, plane.now_ms())


def _customer_in(session: Session, operator: str, run: str, now_ms: int) -> str:
    """Whose run it is, which has a lease of this operator now, or had one until just now."""
    current = or_(
        col(LeaseRow.state).in_([state.value for state in ACTIVE_LEASE_STATES]),
        col(LeaseRow.closed_ms) > now_ms - JUST_ENDED_MS,
    )
    query = (
        select(RunRow.customer)
        .join(LeaseRunRow, col(LeaseRunRow.run) == col(RunRow.id))
        .join(LeaseRow, col(LeaseRow.id) == col(LeaseRunRow.lease))
        .where(col(LeaseRow.operator) == operator, col(RunRow.id) == run, current)
    )
    found = session.exec(query.limit(1)).first()
    if found is None:
        raise NotFound(f"{operator} has no lease for run {run}")
    return found
