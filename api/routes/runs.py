"""Runs: submit, look, wait, more leases, finish, cancel, routes, logs, receipts."""

import base64
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import and_, or_
from sqlmodel import Session, col, select

from api import idempotency, schemas, transitions
from api.broker import Broker
from api.deps import CallerDep, PlaneDep, ReadSession, WriteSession
from api.errors import NotFound
from api.lies import equivocations
from api.plane import Plane
from api.reserved import Bound, reserved_proofs
from api.signals import run_topic
from api.tables import ClusterRow, ReceiptRow, RunRow, SessionKeyRow
from api.views import planned_view, run_view
from api.ways import way_to
from fabric.wire.errors import InvalidRequest
from fabric.wire.machines import RUN_EDGES, LeaseState, RunState, is_terminal
from fabric.wire.tokens import LeaseToken, sign_token
from ledger.proofs import LeaseProof, lease_proofs

router = APIRouter(prefix="/v1/runs", tags=["runs"])

TOKEN_MS = 300_000
"""How long a lease token opens its lease; each request of the route makes fresh ones."""

_MILLISECONDS = re.compile(r"[0-9]{1,18}")

WaitS = Annotated[float, Query(ge=0, le=30, description="wait so many seconds at most for a change")]


@router.post("", status_code=201, summary="Submit a run, or with `dry_run` learn what it would cost")
def create(
    plane: PlaneDep,
    caller: CallerDep,
    request: schemas.RunRequest,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> schemas.Run:
    if request.dry_run:
        response.status_code = 200
        with plane.database.read() as session:
            return planned_view(*Broker(plane, session, writes=False).plan(caller.customer, request))
    if idempotency_key is None:
        return _submit(plane, caller.customer, request, None)
    body = request.model_dump_json().encode()
    stored = idempotency.claim(plane, caller.customer, idempotency_key, body)
    if stored is not None:
        return schemas.Run.model_validate(stored)
    try:
        return _submit(plane, caller.customer, request, idempotency_key)
    except BaseException:
        idempotency.give_back(plane, caller.customer, idempotency_key)
        raise


@router.get("", summary="The account's runs, newest first")
def list_runs(
    session: ReadSession,
    caller: CallerDep,
    cursor: Annotated[str | None, Query(description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[RunState | None, Query()] = None,
) -> schemas.Runs:
    query = select(RunRow).where(col(RunRow.customer) == caller.customer)
    if state is not None:
        query = query.where(col(RunRow.state) == state.value)
    if cursor is not None:
        query = query.where(_before(cursor))
    rows = list(session.exec(query.order_by(col(RunRow.created_ms).desc(), col(RunRow.id).desc()).limit(limit + 1)))
    page = rows[:limit]
    more = f"{page[-1].created_ms}.{page[-1].id}" if len(rows) > limit else None
    return schemas.Runs(runs=[run_view(session, row) for row in page], next=more)


@router.get("/{run_id}", summary="A run; with `wait_s`, once its state is no longer `since`")
async def get(
    plane: PlaneDep, caller: CallerDep, run_id: str, wait_s: WaitS = 0, since: RunState | None = None
) -> schemas.Run:
    def look() -> tuple[bool, schemas.Run]:
        with plane.database.read() as session:
            run = find(session, caller.customer, run_id)
            return since is None or run.state != since.value, run_view(session, run)

    return await _wait(plane, run_id, wait_s, look)


@router.get("/{run_id}/route", summary="Where the run's leases can be reached, each with a fresh token")
async def route(plane: PlaneDep, caller: CallerDep, run_id: str, wait_s: WaitS = 0) -> schemas.Routes:
    def look() -> tuple[bool, schemas.Routes]:
        with plane.database.read() as session:
            run = find(session, caller.customer, run_id)
            routes = _routes(plane, session, run)
            return bool(routes.routes) or is_terminal(RUN_EDGES, RunState(run.state)), routes

    return await _wait(plane, run_id, wait_s, look)


@router.post("/{run_id}/leases", summary="More leases for a map: as many as fit now, at most `count`")
def more_leases(
    plane: PlaneDep, session: WriteSession, caller: CallerDep, run_id: str, wanted: schemas.MoreLeases
) -> schemas.Run:
    run = find(session, caller.customer, run_id)
    return run_view(session, Broker(plane, session).more_leases(run, wanted.count, wanted.exclude_nodes))


@router.post("/{run_id}/finish", summary="The run's own process says how it ended")
def finish(plane: PlaneDep, session: WriteSession, caller: CallerDep, run_id: str, end: schemas.Finish) -> schemas.Run:
    run = find(session, caller.customer, run_id)
    broker = Broker(plane, session)
    return run_view(session, broker.finish(run, RunState(end.state), end.reason, end.message))


@router.post("/{run_id}/cancel", summary="Cancel; what runs is stopped and its leases are released")
def cancel(plane: PlaneDep, session: WriteSession, caller: CallerDep, run_id: str) -> schemas.Run:
    run = find(session, caller.customer, run_id)
    return run_view(session, Broker(plane, session).cancel(run))


@router.get("/{run_id}/logs", summary="Log lines as server-sent events", response_class=StreamingResponse)
def logs(
    plane: PlaneDep, session: ReadSession, caller: CallerDep, run_id: str, follow: bool = False
) -> StreamingResponse:
    find(session, caller.customer, run_id)

    async def events() -> AsyncIterator[str]:
        async for event in plane.logs.follow(run_id, follow=follow):
            yield event

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/{run_id}/receipt", summary="The signed receipts of the run's leases, and the keys that verify them")
def receipt(plane: PlaneDep, session: ReadSession, caller: CallerDep, run_id: str) -> schemas.RunReceipts:
    run = find(session, caller.customer, run_id)
    leases = transitions.leases_of(session, run.id)
    rows = session.exec(
        select(ReceiptRow)
        .where(col(ReceiptRow.lease).in_([lease.id for lease in leases]))
        .order_by(col(ReceiptRow.lease), col(ReceiptRow.generation), col(ReceiptRow.seq))
    )
    operators = {lease.operator: _keys(session, lease.operator) for lease in leases}
    receipts = [schemas.ReceiptOut(receipt=base64.b64encode(row.signed).decode()) for row in rows]
    epochs = [_lease_in_epoch(proof) for lease in leases for proof in lease_proofs(session, lease.id)]
    on_slots = {
        (proof.usage.epoch, proof.lease_id, proof.usage.values[0]): _lease_in_epoch(proof, bound)
        for lease in leases
        for proof, bound in reserved_proofs(session, lease)
    }
    epochs += on_slots.values()
    lies = [schemas.EquivocationOut(**proof.to_json()) for proof in equivocations(session, [one.id for one in leases])]
    return schemas.RunReceipts(
        fabric_id=plane.fabric_id, operators=operators, receipts=receipts, epochs=epochs, equivocations=lies
    )


def _lease_in_epoch(proof: LeaseProof, bound: Bound = ()) -> schemas.LeaseInEpoch:
    gpu_id, usage_gpu_ms, usage_dc, leases_root = proof.usage.values
    _, gpu_ms, dc, receipt_hash = proof.lease.values
    return schemas.LeaseInEpoch(
        epoch=proof.usage.epoch,
        lease=proof.lease_id,
        gpu=gpu_id,
        gpu_ms=gpu_ms,
        dc=dc,
        receipt_hash=_hex(receipt_hash),
        lease_path=[_hex(node) for node in proof.lease.path],
        usage_gpu_ms=usage_gpu_ms,
        usage_dc=usage_dc,
        leases_root=_hex(leases_root),
        usage_path=[_hex(node) for node in proof.usage.path],
        usage_root=_hex(proof.usage.root),
        file_hash=_hex(proof.file_hash),
        settlement=proof.settlement,
        bound=[(lease, _hex(digest)) for lease, digest in bound],
    )


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def find(session: Session, customer: str, run_id: str) -> RunRow:
    """The customer's run.

    Raises:
        NotFound: there is none of that name, or it is another customer's.
    """
    run = session.get(RunRow, run_id)
    if run is None or run.customer != customer:
        raise NotFound(f"there is no run {run_id} in this account")
    return run


def _submit(plane: Plane, customer: str, request: schemas.RunRequest, key: str | None) -> schemas.Run:
    with plane.database.write() as session:
        view = run_view(session, Broker(plane, session).submit(customer, request))
        if key is not None:
            idempotency.complete(session, customer, key, 201, view.model_dump(mode="json"))
    return view


def _before(cursor: str) -> Any:
    created, _, name = cursor.partition(".")
    if not _MILLISECONDS.fullmatch(created) or not name:
        raise InvalidRequest(f"cursor {cursor!r} is not one that a page gave")
    at = int(created)
    return or_(col(RunRow.created_ms) < at, and_(col(RunRow.created_ms) == at, col(RunRow.id) < name))


async def _wait(plane: Plane, run_id: str, wait_s: float, look: Any) -> Any:
    """Look until it is what was waited for, or the time is over."""
    deadline = plane.clock.monotonic_ns() + int(wait_s * 1e9)
    while True:
        seen = plane.signals.seen(run_topic(run_id))
        enough, answer = await to_thread.run_sync(look)
        left = (deadline - plane.clock.monotonic_ns()) / 1e9
        if enough or left <= 0 or plane.signals.ending or not await plane.signals.wait(run_topic(run_id), seen, left):
            return answer


def _routes(plane: Plane, session: Session, run: RunRow) -> schemas.Routes:
    expires = plane.now_ms() + TOKEN_MS
    routes: list[schemas.Route] = []
    for lease in transitions.leases_of(session, run.id, active=True):
        if lease.state == LeaseState.CLOSING.value:
            continue
        way = way_to(session, session.get_one(ClusterRow, lease.cluster))
        token = LeaseToken(lease.operator, lease.id, lease.generation, lease.session, expires, way.fingerprint)
        signed = sign_token(token, plane.token_key)
        routes.append(
            schemas.Route(
                lease=lease.id,
                generation=lease.generation,
                gateway=way.gateway,
                token=signed,
                expires_ms=expires,
                fingerprint=way.fingerprint,
                relay=way.relay,
            )
        )
    return schemas.Routes(state=run.state, reason=run.reason, message=run.message, routes=routes)


def _keys(session: Session, operator: str) -> schemas.OperatorKeys:
    rows = session.exec(select(SessionKeyRow).where(col(SessionKeyRow.operator) == operator))
    return schemas.OperatorKeys(session_keys=[row.public_key for row in rows])
