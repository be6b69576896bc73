"""The audit: every invariant that is a fact of rows, checked now."""

from fastapi import APIRouter

from api import schemas
from api.audit import run
from api.deps import AdminDep, PlaneDep, ReadSession

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", summary="Check the rows against the invariants; names the first bad row (admin key)")
def audit(plane: PlaneDep, session: ReadSession, _admin: AdminDep) -> schemas.Audit:
    checks = [
        schemas.Check(
            name=result.name,
            invariant=result.invariant,
            ok=not result.findings,
            first_bad=f"{found.table} {found.key}: {found.message}"
            if (found := next(iter(result.findings), None))
            else None,
        )
        for result in run(plane, session)
    ]
    return schemas.Audit(ok=all(check.ok for check in checks), checks=checks)
