"""Leases: give one back."""

from fastapi import APIRouter

from api import schemas
from api.broker import Broker
from api.deps import CallerDep, PlaneDep, WriteSession
from api.errors import NotFound
from api.tables import LeaseRow
from api.views import lease_view

router = APIRouter(prefix="/v1/leases", tags=["leases"])


@router.post("/{lease_id}/release", summary="Give a lease back; releasing it again changes nothing")
def release(
    plane: PlaneDep, session: WriteSession, caller: CallerDep, lease_id: str, wanted: schemas.ReleaseIn
) -> schemas.Lease:
    lease = session.get(LeaseRow, lease_id)
    if lease is None or lease.customer != caller.customer:
        raise NotFound(f"there is no lease {lease_id} in this account")
    return lease_view(session, Broker(plane, session).release(lease, wanted.generation, wanted.reason))
