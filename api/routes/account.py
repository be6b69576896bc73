"""The caller's own account."""

from fastapi import APIRouter

from api import schemas
from api.deps import CallerDep, PlaneDep, ReadSession

router = APIRouter(prefix="/v1/account", tags=["account"])


@router.get("", summary="Whose key this is, and the balance")
def account(plane: PlaneDep, session: ReadSession, caller: CallerDep) -> schemas.Account:
    balance = plane.ledger(session).balance(caller.customer)
    return schemas.Account(
        id=caller.customer,
        name=caller.name,
        test=caller.test,
        available_dc=balance.available,
        held_dc=balance.held,
        exiting_dc=balance.exiting,
    )
