"""The ledger: GPUs, pools, operators, epochs and proofs for everybody; a holder's view and entries for their owner;
closing for an admin.
"""

from typing import Annotated, Any, Literal

import anyio
from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from sqlmodel import Session

from api import ledger_jobs
from api import ledger_schemas as schemas
from api.deps import AdminDep, CallerDep, OwnHolder, PlaneDep, ReadSession
from api.errors import Conflict, NotFound
from api.plane import Plane
from api.tabular import FORMS, FormatDep, answer
from api.tagged import TaggedRoute
from ledger import queries
from ledger.proofs import exit_proof, lease_proof
from ledger.queries import Page, Party
from ledger.settings import NOT_SETTLED

router = APIRouter(prefix="/v1/ledger", tags=["ledger"], route_class=TaggedRoute)

_MAX = 2**63 - 1
"""The largest number that the database compares."""

Limit = Annotated[int, Query(ge=1, le=queries.MAX_LIMIT)]
Before = Annotated[int | None, Query(alias="cursor", ge=0, le=_MAX, description="`next` of the page before")]
Number = Annotated[int, Path(ge=0, le=_MAX)]


@router.get("/gpus", summary="Ids of GPUs that were ever used")
def gpus(session: ReadSession, after: str = "", limit: Limit = 100) -> schemas.GpuIds:
    return schemas.GpuIds(gpus=queries.gpus(session, after=after, limit=limit))


@router.get(
    "/gpus/{gpu_id}",
    summary="A GPU's use over its life, and its cash flow by epoch",
    response_model=schemas.GpuLedger,
    responses=FORMS,
)
def gpu(
    request: Request, session: ReadSession, gpu_id: str, form: FormatDep, cursor: Before = None, limit: Limit = 100
) -> Response:
    found = queries.gpu(session, gpu_id.lower())
    if found is None:
        raise NotFound(f"GPU {gpu_id} was never used")
    flow = queries.gpu_cash_flow(session, gpu_id.lower(), before=cursor, limit=limit)
    body = schemas.gpu_view(found, flow)
    return answer(request, form, body, schemas.CashFlow, body.cash_flow)


@router.get(
    "/epochs",
    summary="Closed epochs, newest first, and the one that runs",
    response_model=schemas.Epochs,
    responses=FORMS,
)
def epochs(
    request: Request,
    plane: PlaneDep,
    session: ReadSession,
    form: FormatDep,
    cursor: Before = None,
    limit: Limit = 100,
) -> Response:
    page = queries.epochs(session, before=cursor, limit=limit)
    rows = [schemas.epoch_view(one) for one in page.items]
    body = schemas.Epochs(epochs=rows, next=page.next_cursor, current=_current(plane, session))
    return answer(request, form, body, schemas.Epoch, rows)


@router.get("/settlement", summary="The chain on which epochs are settled, how far, and what is waited for")
def settlement(plane: PlaneDep, session: ReadSession) -> schemas.Settlement:
    if plane.chain is None:
        return schemas.Settlement(
            settlement=NOT_SETTLED, final_block=None, posted=0, finalised=0, close_waits="", settler=""
        )
    from ledger.chain.queue import queue_of

    queue = queue_of(session)
    return schemas.Settlement(
        settlement=plane.chain.settlement,
        final_block=queue.final_block,
        posted=queue.posted,
        finalised=queue.finalised,
        close_waits=plane.chain.close_waits,
        settler=plane.chain.settler_says,
    )


@router.get(
    "/epochs/{number}",
    summary="One closed epoch: totals, roots, usage and payouts; as a table its usage",
    response_model=schemas.EpochDetail,
    responses=FORMS,
)
def epoch(request: Request, session: ReadSession, number: Number, form: FormatDep) -> Response:
    found = queries.epoch(session, number)
    if found is None:
        raise NotFound(f"epoch {number} is not closed")
    body = schemas.epoch_detail(found, queries.epoch_usages(session, number), queries.payouts_upto(session, number))
    return answer(request, form, body, schemas.GpuEpoch, body.usage)


@router.get("/epochs/{number}/file", summary="The epoch's canonical file, from which anyone computes the same roots")
def epoch_file(session: ReadSession, number: Number) -> Response:
    body = schemas.file_of(session, number)
    if body is None:
        raise NotFound(f"epoch {number} is not closed")
    return Response(body, media_type="application/json")


@router.get("/epochs/{number}/proofs/{leaf}", summary="Path of a leaf: GPU, GPU:holder, GPU:lease or exit:account")
def proof(session: ReadSession, number: Number, leaf: str) -> schemas.Proof:
    """A GPU's usage in the epoch; what a holder (0x-address) was ever paid for it; a lease's part of that usage, up to
    the GPU's `leases_root`; what an account (0x-address) was ever given back.
    """
    of, _, whose = leaf.lower().partition(":")
    if of == "exit":
        found = exit_proof(session, number, whose)
    elif not whose:
        found = queries.usage_proof(session, number, of)
    elif whose.startswith("0x"):
        found = queries.payout_proof(session, number, of, whose)
    else:
        found = lease_proof(session, number, of, whose)
    if found is None:
        raise NotFound(f"epoch {number} has no leaf {leaf}")
    return schemas.proof_view(found)


@router.get(
    "/entries",
    summary="The account's entries, newest first; an admin sees all with `all=true`; as a table a row per posting",
    response_model=schemas.Entries,
    responses=FORMS,
)
def entries(
    request: Request,
    session: ReadSession,
    caller: CallerDep,
    form: FormatDep,
    cursor: Before = None,
    limit: Limit = 100,
    lease: str | None = None,
    all: bool = False,  # noqa: A002 - the protocol's name
) -> Response:
    customer = None if all and caller.admin else caller.customer
    page: Page[Any] = queries.entries(session, customer=customer, lease_id=lease, before=cursor, limit=limit)
    body = schemas.Entries(entries=[schemas.entry_view(one) for one in page.items], next=page.next_cursor)
    return answer(request, form, body, schemas.EntryLine, schemas.entry_lines(body.entries))


@router.post("/epochs/close", summary="Make final what is due and close every epoch that is over (admin key)")
async def close(plane: PlaneDep, _admin: AdminDep, wait_s: Annotated[float, Query(ge=0, le=60)] = 0) -> schemas.Closed:
    """With `wait_s`: until everything charged so far is final and its epoch closed, or the time is over."""
    asked_ms = plane.now_ms()
    deadline = plane.clock.monotonic_ns() + int(wait_s * 1e9)
    closed: list[int] = []
    while True:
        closed += await to_thread.run_sync(ledger_jobs.close_over, plane)
        view = await to_thread.run_sync(_closed, plane, closed, asked_ms)
        if not view.open_epochs or plane.clock.monotonic_ns() >= deadline:
            break
        await anyio.sleep(0.1)
    if not closed and view.open_epochs and not wait_s:
        raise Conflict(
            f"epoch {view.current.n} ends at {view.current.ends_ms} ms; an epoch closes when it is over",
            ends_ms=view.current.ends_ms,
        )
    return view


@router.get(
    "/{of}s/{name}",
    summary="What a pool, operator or (own account) holder earned, by epoch",
    response_model=schemas.PartyLedger,
    responses=FORMS,
    dependencies=[OwnHolder],
)
def party(
    request: Request,
    session: ReadSession,
    of: Literal["pool", "operator", "holder"],
    name: str,
    form: FormatDep,
    cursor: Before = None,
    limit: Limit = 100,
) -> Response:
    who = Party(of)
    flow = queries.cash_flow(session, who, name, before=cursor, limit=limit)
    body = schemas.party_view(queries.earnings(session, who, name), flow)
    return answer(request, form, body, schemas.CashFlow, body.cash_flow)


def _closed(plane: Plane, closed: list[int], asked_ms: int) -> schemas.Closed:
    """`open_epochs`: how many epochs with usage accepted before the question are still to be closed."""
    with plane.database.read() as session:
        following = ledger_jobs.next_epoch(plane, session)
        last_due = ledger_jobs.epoch_of_last_usage(plane, session, asked_ms)
        left = 0 if following is None or last_due is None else max(0, last_due - following + 1)
        return schemas.Closed(closed=closed, open_epochs=left, current=_current(plane, session))


def _current(plane: Plane, session: Session) -> schemas.CurrentEpoch:
    number = plane.ledger(session).epoch_now()
    span = ledger_jobs.clock_of(plane)
    return schemas.CurrentEpoch(
        n=number, started_ms=span.start(number), ends_ms=span.end(number), pending_dc=queries.pending_dc(session)
    )
