"""Is it alive, is it ready, what does it count."""

from fastapi import APIRouter, Response
from sqlalchemy import text

from api import schemas
from api.deps import PlaneDep, ReadSession
from api.metrics import CONTENT_TYPE
from api.plane import Plane
from fabric.wire.channel import PING_PATH
from ledger.chain.index import Index

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers")
def healthz(plane: PlaneDep) -> schemas.Health:
    return _health(plane)


@router.get(PING_PATH, status_code=204, summary="Nothing: round trips are timed by it")
def ping() -> None:
    return None


@router.get("/readyz", summary="The database answers too; how far the chain was read")
def readyz(plane: PlaneDep, session: ReadSession) -> schemas.Health:
    session.connection().execute(text("SELECT 1"))
    found = Index(session).status()
    if found is None:
        return _health(plane)
    chain = schemas.ChainHealth(chain_id=found.chain_id, tip=found.tip, final=found.final, halted=found.halted)
    return _health(plane).model_copy(update={"chain": chain})


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
def metrics(plane: PlaneDep) -> Response:
    return Response(plane.metrics.text(), media_type=CONTENT_TYPE)


def _health(plane: Plane) -> schemas.Health:
    return schemas.Health(status="ok", fabric_id=plane.fabric_id, version=plane.version)
