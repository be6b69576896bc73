"""Time slots: what is for sale, and what an account holds."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import col, select

from api import slots
from api.deps import CallerDep, PlaneDep, ReadSession, WriteSession
from api.schemas import Dc
from fabric.wire.amounts import format_dc
from fabric.wire.delegation import DelegationError, unhex
from fabric.wire.errors import InvalidRequest
from fabric.wire.slot_issue import SlotIssue, SlotIssueError
from ledger.slot_tables import SlotRow

router = APIRouter(prefix="/v1/slots", tags=["slots"])


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SignedIssue(_In):
    slot: dict[str, Any]
    signature: str = Field(max_length=200)


class SplitAt(_In):
    at_ms: int = Field(ge=0, lt=2**63)


class MergeWith(_In):
    other: str = Field(max_length=100)


class TransferTo(_In):
    to: str = Field(max_length=100)


class Slot(BaseModel):
    """`price_dc` is what its time that is left costs; `paid_dc` what its holder paid, shown to the holder alone."""

    model_config = ConfigDict(frozen=True)

    id: str
    gpu: str
    model: str
    operator: str
    from_ms: int
    to_ms: int
    price_dc_per_gpu_hour: Dc
    price_dc: Dc
    price_usd: str
    sold: bool
    mine: bool
    paid_dc: Dc | None


class Slots(BaseModel):
    model_config = ConfigDict(frozen=True)

    slots: list[Slot]
    next: str | None


@router.get("", summary="Slots for sale, and with `mine` those of the account")
def list_slots(
    plane: PlaneDep,
    session: ReadSession,
    caller: CallerDep,
    gpu: str = "",
    mine: bool = False,
    cursor: str = "",
    limit: int = 100,
) -> Slots:
    query = select(SlotRow).where(
        col(SlotRow.ended_ms).is_(None), col(SlotRow.to_ms) > plane.now_ms(), col(SlotRow.id) > cursor
    )
    query = query.where(col(SlotRow.holder) == (caller.customer if mine else ""))
    if gpu:
        query = query.where(col(SlotRow.gpu_id) == gpu.lower())
    size = max(1, min(limit, 1000))
    rows = list(session.exec(query.order_by(col(SlotRow.id)).limit(size + 1)))
    shown = [_view(row, plane.now_ms(), caller.customer) for row in rows[:size]]
    return Slots(slots=shown, next=rows[size - 1].id if len(rows) > size else None)


@router.post("", status_code=201, summary="Issue a slot: signed by the operator's wallet, no account is needed")
def issue(plane: PlaneDep, session: WriteSession, body: SignedIssue) -> Slot:
    try:
        stated, signature = SlotIssue.from_json(body.slot), unhex(body.signature, "signature")
    except (SlotIssueError, DelegationError) as error:
        raise InvalidRequest(str(error)) from None
    return _view(slots.issue(plane, session, stated, signature), plane.now_ms(), "")


@router.post("/{slot}/buy", summary="Buy a slot: its whole price is set aside now")
def buy(plane: PlaneDep, session: WriteSession, caller: CallerDep, slot: str) -> Slot:
    return _view(slots.buy(plane, session, slot, caller.customer), plane.now_ms(), caller.customer)


@router.post("/{slot}/split", summary="Two slots out of one")
def split(plane: PlaneDep, session: WriteSession, caller: CallerDep, slot: str, body: SplitAt) -> Slots:
    parts = slots.split(plane, session, slot, caller.customer, body.at_ms)
    return Slots(slots=[_view(part, plane.now_ms(), caller.customer) for part in parts], next=None)


@router.post("/{slot}/merge", summary="One slot out of two that follow each other")
def merge(plane: PlaneDep, session: WriteSession, caller: CallerDep, slot: str, body: MergeWith) -> Slot:
    whole = slots.merge(plane, session, slot, body.other, caller.customer)
    return _view(whole, plane.now_ms(), caller.customer)


@router.post("/{slot}/transfer", summary="Give a slot to another account")
def transfer(plane: PlaneDep, session: WriteSession, caller: CallerDep, slot: str, body: TransferTo) -> Slot:
    given = slots.transfer(plane, session, slot, caller.customer, body.to)
    return _view(given, plane.now_ms(), caller.customer)


def _view(row: SlotRow, now_ms: int, customer: str) -> Slot:
    price, mine = slots.price_dc(row, now_ms), bool(row.holder) and row.holder == customer
    return Slot(
        id=row.id,
        gpu=row.gpu_id,
        model=row.model,
        operator=row.operator,
        from_ms=row.from_ms,
        to_ms=row.to_ms,
        price_dc_per_gpu_hour=row.price_dc_per_gpu_hour,
        price_dc=price,
        price_usd=format_dc(price),
        sold=bool(row.holder),
        mine=mine,
        paid_dc=row.paid_dc if mine else None,
    )
