"""Sessions: a customer's process says that it lives, what it ran on leases it holds, and that it ends."""

from fastapi import APIRouter

from api import schemas
from api.broker import Broker
from api.deps import CallerDep, PlaneDep, WriteSession
from api.errors import NotFound
from api.registering import register
from api.tables import SessionRow
from fabric.wire.reasons import Reason

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("/{session_id}/heartbeat", summary="The process is alive; silent for 3 minutes it counts as gone")
def heartbeat(plane: PlaneDep, session: WriteSession, caller: CallerDep, session_id: str) -> schemas.Empty:
    Broker(plane, session).heartbeat(caller.customer, session_id)
    return schemas.Empty()


@router.post("/{session_id}/runs", summary="Runs that went straight to a lease held already, and how they ended")
def runs(
    plane: PlaneDep, session: WriteSession, caller: CallerDep, session_id: str, told: schemas.ToldRuns
) -> schemas.RunIds:
    return schemas.RunIds(runs=register(plane, session, caller.customer, session_id, told.runs))


@router.post("/{session_id}/rtts", summary="Round trips that the process measured; answers what it should measure next")
def rtts(
    plane: PlaneDep, session: WriteSession, caller: CallerDep, session_id: str, told: schemas.RttsIn
) -> schemas.Probes:
    return schemas.Probes(probe=Broker(plane, session).heard_rtts(caller.customer, session_id, told))


@router.post("/{session_id}/end", summary="The process ends: every lease of the session is released")
def end(plane: PlaneDep, session: WriteSession, caller: CallerDep, session_id: str) -> schemas.Empty:
    row = session.get(SessionRow, session_id)
    if row is None or row.customer != caller.customer:
        raise NotFound(f"there is no session {session_id} in this account")
    Broker(plane, session).end_session(row, Reason.DONE)
    return schemas.Empty()
