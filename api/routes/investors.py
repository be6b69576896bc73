"""What investors ask of a GPU, pool, operator or holder: uptime, utilisation, prices, yield, each with its rows.

As JSON, CSV or Parquet; a holder's for its owner's account, all else for everybody. No answer names a customer, a
run or a lease.
"""

from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlmodel import Session, select

from api import investor_schemas as schemas
from api.deps import OwnHolder, PlaneDep, ReadSession
from api.errors import NotFound
from api.ledger_jobs import clock_of
from api.plane import Plane
from api.tables import OperatorRow
from api.tabular import FORMS, Format, FormatDep, answer
from api.tagged import TaggedRoute
from fabric.wire.amounts import usd_to_dc_down
from fabric.wire.errors import InvalidRequest
from ledger import yields
from ledger.queries import MAX_LIMIT
from ledger.subjects import Kind, Subject, is_known
from ledger.utilisation import Utilisation, total

router = APIRouter(prefix="/v1/ledger", tags=["ledger"], route_class=TaggedRoute)

_MAX = 2**63 - 1
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Before = Annotated[int | None, Query(alias="cursor", ge=0, le=_MAX, description="`next` of the page before")]
After = Annotated[str, Query(alias="cursor", max_length=100, description="`next` of the page before")]
Of = Literal["gpu", "pool", "operator", "holder"]


class Window:
    """From when to before when, in Unix ms."""

    def __init__(
        self,
        from_ms: Annotated[int, Query(ge=0, le=_MAX)] = 0,
        to_ms: Annotated[int, Query(ge=0, le=_MAX)] = 2**62,
    ) -> None:
        if from_ms >= to_ms:
            raise InvalidRequest(f"a window begins before it ends; from_ms is {from_ms}, to_ms {to_ms}")
        self.start_ms, self.end_ms = from_ms, to_ms


WindowDep = Annotated[Window, Depends()]


@router.get(
    "/{of}s/{name}/uptime",
    summary="When GPUs were there: every stretch, and of how much time",
    response_model=schemas.Uptime,
    responses=FORMS,
    dependencies=[OwnHolder],
)
def uptime(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    of: Of,
    name: str,
    window: WindowDep,
    form: FormatDep,
    cursor: After = "",
    limit: Limit = 100,
) -> Response:
    found = _utilisation(plane, session, of, name, window)
    lines = found.lines()
    whole, stretches = total(lines), found.stretches()
    key = _after(cursor)
    beyond = [one for one in stretches if (one.gpu_id, one.from_ms) > key]
    rows = [
        schemas.Stretch(
            gpu=one.gpu_id,
            from_ms=one.from_ms,
            until_ms=one.until_ms,
            operator=one.operator,
            model=one.model,
            price_dc_per_gpu_hour=one.price_dc,
        )
        for one in beyond[:limit]
    ]
    following = f"{rows[-1].gpu}:{rows[-1].from_ms}" if len(beyond) > limit else None
    body = schemas.Uptime(
        gpus=len(lines),
        known_ms=whole.known_ms,
        up_ms=whole.up_ms,
        uptime_bps=whole.uptime_bps,
        stretches=rows,
        next=following,
    )
    return answer(request, form, body, schemas.Stretch, rows)


@router.get(
    "/{of}s/{name}/utilisation",
    summary="How much of the time that GPUs were there they were leased, by GPU",
    response_model=schemas.Utilisation,
    responses=FORMS,
    dependencies=[OwnHolder],
)
def utilisation(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    of: Of,
    name: str,
    window: WindowDep,
    form: FormatDep,
    cursor: After = "",
    limit: Limit = 100,
) -> Response:
    lines = _utilisation(plane, session, of, name, window).lines()
    beyond = [line for line in lines if line.gpu_id > cursor]
    rows = [schemas.gpu_use(line) for line in beyond[:limit]]
    following = rows[-1].gpu if len(beyond) > limit else None
    body = schemas.Utilisation(gpus=len(lines), total=schemas.gpu_use(total(lines)), lines=rows, next=following)
    return answer(request, form, body, schemas.GpuUse, rows)


@router.get(
    "/gpus/{name}/usage",
    summary="A GPU's rows of usage, which utilisation and rewards are sums of",
    response_model=schemas.UsageRows,
    responses=FORMS,
)
def usage(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    name: str,
    window: WindowDep,
    form: FormatDep,
    cursor: Before = None,
    limit: Limit = 100,
) -> Response:
    page = _utilisation(plane, session, "gpu", name, window).uses(before=cursor, limit=limit)
    rows = [schemas.usage_row(one) for one in page.items]
    body = schemas.UsageRows(usage=rows, next=page.next_cursor)
    return answer(request, form, body, schemas.UsageRow, rows)


@router.get(
    "/{of}s/{name}/prices",
    summary="What was asked for GPUs on demand, and when",
    response_model=schemas.Prices,
    responses=FORMS,
    dependencies=[OwnHolder],
)
def prices(
    request: Request, plane: PlaneDep, session: ReadSession, of: Of, name: str, window: WindowDep, form: FormatDep
) -> Response:
    return _prices(request, form, _utilisation(plane, session, of, name, window), None)


@router.get(
    "/prices",
    summary="What every operator asked for GPUs on demand, and when",
    response_model=schemas.Prices,
    responses=FORMS,
)
def all_prices(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    window: WindowDep,
    form: FormatDep,
    model: str | None = None,
) -> Response:
    return _prices(request, form, _about(plane, session, None, window), model)


@router.get(
    "/{of}s/{name}/yield",
    summary="What GPUs earned by epoch, and what that makes of `cost_usd` in a year",
    response_model=schemas.Yields,
    responses=FORMS,
    dependencies=[OwnHolder],
)
def yield_(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    of: Of,
    name: str,
    window: WindowDep,
    form: FormatDep,
    cost_usd: Annotated[Decimal | None, Query(gt=0, le=10**12, description="What all of it cost")] = None,
    cursor: Before = None,
    limit: Limit = 100,
) -> Response:
    subject = _subject(session, of, name)
    found = yields.earned(
        session,
        subject,
        epochs=clock_of(plane),
        payees=_payees(session),
        start_ms=window.start_ms,
        end_ms=window.end_ms,
    )
    whole = yields.together(found)
    beyond = [line for line in found if cursor is None or line.epoch < cursor]
    rows = [schemas.epoch_yield(line) for line in beyond[:limit]]
    following = rows[-1].epoch if len(beyond) > limit else None
    yearly = None if cost_usd is None else whole.yearly_bps(usd_to_dc_down(cost_usd))
    return answer(request, form, schemas.yields(whole, yearly, rows, following), schemas.EpochYield, rows)


def _utilisation(plane: Plane, session: Session, of: Of, name: str, window: Window) -> Utilisation:
    return _about(plane, session, _subject(session, of, name), window)


def _subject(session: Session, of: Of, name: str) -> Subject:
    """A GPU that was never seen is not there; a party that nothing is known of has nothing."""
    subject = Subject.of(Kind(of), name)
    if subject.kind is Kind.GPU and not is_known(session, subject.name):
        raise NotFound(f"GPU {subject.name} was never seen; `GET /v1/gpus` lists GPUs by public id")
    return subject


def _about(plane: Plane, session: Session, subject: Subject | None, window: Window) -> Utilisation:
    return Utilisation(
        session,
        subject,
        epochs=clock_of(plane),
        payees=_payees(session),
        start_ms=window.start_ms,
        end_ms=window.end_ms,
    )


def _payees(session: Session) -> dict[str, str]:
    return {row.id: row.payout for row in session.exec(select(OperatorRow))}


def _prices(request: Request, form: Format, found: Utilisation, model: str | None) -> Response:
    rows = [schemas.asked_price(one) for one in found.prices(model)]
    paid = total(found.lines()).paid_dc_per_gpu_hour
    return answer(request, form, schemas.Prices(paid_dc_per_gpu_hour=paid, prices=rows), schemas.AskedPrice, rows)


def _after(cursor: str) -> tuple[str, int]:
    gpu, _, from_ms = cursor.partition(":")
    if cursor and not (from_ms.isascii() and from_ms.isdigit()):
        raise InvalidRequest(f"cursor {cursor!r} is not the `next` of a page before")
    return gpu, int(from_ms or -1)
