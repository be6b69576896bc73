"""The ledger live: closed epochs for everybody, an account's entries for its owner."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from api import ledger_schemas as schemas
from api.deps import CallerDep, PlaneDep
from api.following import PIECE, Event
from ledger import queries

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])

_MAX = 2**63 - 1
LastSeen = Annotated[int | None, Header(alias="Last-Event-ID", ge=-1, le=_MAX)]
After = Annotated[int | None, Query(ge=-1, le=_MAX, description="Go on behind this id; default: only what is new")]
Count = Annotated[int | None, Query(ge=1, le=1_000_000, description="End after so many events")]


@router.get(
    "/epochs/stream", summary="Each epoch as it closes, as server-sent events", response_class=StreamingResponse
)
def epochs(
    request: Request, plane: PlaneDep, last_seen: LastSeen = None, after: After = None, count: Count = None
) -> StreamingResponse:
    def look(behind: int) -> list[Event]:
        with plane.database.read() as session:
            found = queries.epochs_since(session, behind, limit=PIECE)
            return [Event(one.n, "epoch", schemas.epoch_view(one).model_dump_json()) for one in found]

    def newest() -> int:
        with plane.database.read() as session:
            return max((one.n for one in queries.epochs(session, limit=1).items), default=-1)

    start = last_seen if last_seen is not None else after
    return request.app.state.following.answer(look, newest() if start is None else start, count)


@router.get("/entries/stream", summary="Each entry of the account as it is booked", response_class=StreamingResponse)
def entries(
    request: Request,
    plane: PlaneDep,
    caller: CallerDep,
    last_seen: LastSeen = None,
    after: After = None,
    count: Count = None,
) -> StreamingResponse:
    def look(behind: int) -> list[Event]:
        with plane.database.read() as session:
            found = queries.entries_since(session, behind, customer=caller.customer, limit=PIECE)
            return [Event(one.id, "entry", schemas.entry_view(one).model_dump_json()) for one in found]

    def newest() -> int:
        with plane.database.read() as session:
            return max((one.id for one in queries.entries(session, customer=caller.customer, limit=1).items), default=0)

    start = last_seen if last_seen is not None else after
    return request.app.state.following.answer(look, newest() if start is None else start, count)
