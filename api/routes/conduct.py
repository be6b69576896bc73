"""What customers' processes measured, a run's bill with both sides of it, and operators' reputations."""

from dataclasses import asdict

from fastapi import APIRouter
from sqlmodel import Session, col, select

from api import conduct, time_reports, transitions
from api import conduct_schemas as schemas
from api.broker import Broker
from api.conduct_tables import TimeReportRow
from api.deps import CallerDep, PlaneDep, ReadSession, WriteSession
from api.errors import NotFound
from api.reputation import UNKNOWN, day_of
from api.routes.runs import find
from api.tables import GpuRow, LeaseRow, OperatorRow
from api.time_reports import Told, tolerance_ms
from api.views import cost_of

router = APIRouter(prefix="/v1", tags=["conduct"])


@router.post("/sessions/{session_id}/times", summary="The process's own time of its leases; moves no money")
def times(
    plane: PlaneDep, session: WriteSession, caller: CallerDep, session_id: str, told: schemas.TimesIn
) -> schemas.TimesTaken:
    Broker(plane, session).heartbeat(caller.customer, session_id)
    lines = [Told(one.lease, one.observed_ms, one.final) for one in told.times]
    return schemas.TimesTaken(
        late=time_reports.take(session, caller.customer, session_id, lines, plane.now_ms()),
    )


@router.get("/runs/{run_id}/bill", summary="A run's leases: claimed, billed, and measured by the customer's process")
def bill(session: ReadSession, caller: CallerDep, run_id: str) -> schemas.Bill:
    run = find(session, caller.customer, run_id)
    leases = transitions.leases_of(session, run.id)
    lines = [_lease(session, lease) for lease in leases]
    return schemas.Bill(
        run=run.id,
        leases=lines,
        accrued_dc=cost_of(session, run, leases).accrued_dc,
        flagged=any(line.flagged for line in lines),
    )


@router.get("/operators/{operator_id}/reputation", summary="What an operator's reputation is made of, day by day")
def reputation(plane: PlaneDep, session: ReadSession, operator_id: str) -> schemas.Reputation:
    row = session.exec(select(OperatorRow).where(col(OperatorRow.id) == operator_id)).first()
    if row is None:
        raise NotFound(f"there is no operator {operator_id}; GET /v1/operators lists them")
    now = plane.now_ms()
    made_of = conduct.score_of(session, row.id, now)
    return schemas.Reputation(
        operator=row.id,
        name=row.name,
        reputation=row.reputation,
        unknown=UNKNOWN,
        today=day_of(now),
        evidence={name: schemas.EvidenceOut(**asdict(one)) for name, one in made_of.by.items()},
        days=[schemas.DayOut(**asdict(one)) for one in conduct.days_of(session, row.id, now)],
    )


def _lease(session: Session, lease: LeaseRow) -> schemas.LeaseBill:
    parts = transitions.gpus_of(session, lease.id)
    report, found = session.get(TimeReportRow, lease.id), time_reports.difference(session, lease)
    return schemas.LeaseBill(
        lease=lease.id,
        operator=lease.operator,
        operator_name=session.get_one(OperatorRow, lease.operator).name,
        node=lease.node,
        model=session.get_one(GpuRow, parts[0].gpu).model,
        gpus=len(parts),
        state=lease.state,
        claimed_ms=max(part.claimed_ms for part in parts),
        billed_ms=max(part.billed_ms for part in parts),
        setup_ms=max(part.setup_ms for part in parts),
        observed_ms=None if found is None else found.observed_ms,
        compared_ms=None if found is None else found.claimed_ms,
        over_ms=None if found is None else found.over_ms,
        tolerance_ms=None if found is None else tolerance_ms(found.observed_ms),
        final=report is not None and report.final,
        flagged=found is not None and found.flagged,
        charged_dc=lease.charged_dc,
    )
