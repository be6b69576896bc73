"""Is it alive, is it ready, what does it count."""

from fastapi import APIRouter, Response
from sqlalchemy import text

from api import schemas
from api.deps import PlaneDep, ReadSession
from api.metrics import CONTENT_TYPE
from api.plane import Plane

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers")
def healthz(plane: PlaneDep) -> schemas.Health:
    return _health(plane)


@router.get("/readyz", summary="The database answers too")
def readyz(plane: PlaneDep, session: ReadSession) -> schemas.Health:
    session.connection().execute(text("SELECT 1"))
    return _health(plane)


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
def metrics(plane: PlaneDep) -> Response:
    return Response(plane.metrics.text(), media_type=CONTENT_TYPE)


def _health(plane: Plane) -> schemas.Health:
    return schemas.Health(status="ok", fabric_id=plane.fabric_id, version=plane.version)
