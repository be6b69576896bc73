"""Time slots: issued by operators, bought, split, merged and transferred by customers; used up evenly over their time.

A slot's whole price is held in the ledger when it is bought. While the GPU is there (`ledger.uptime`) the time that
passes is charged like any lease's, used or not, at the slot's price; what is left at its end goes back to its holder.
"""

import json
from collections.abc import Iterator

from sqlalchemy import select
from sqlmodel import Session, col

from api import reserved, transitions
from api.errors import Conflict, NotFound
from api.lifecycle import LeaseEvent
from api.plane import Plane
from api.sold import CLEAR_MS, sold_now, standing
from api.tables import LeaseGpuRow, LeaseRow, OperatorRow
from api.wallets import gpu_by_id, signer_of, wallet_of
from fabric.wire.errors import InvalidRequest, PermissionDenied
from fabric.wire.ids import new_id
from fabric.wire.machines import LeaseState
from fabric.wire.reasons import Reason
from fabric.wire.slot_issue import SlotIssue
from ledger.chain.holders import holders_of
from ledger.epoch import EpochClock
from ledger.holding import by_pool_and_holder
from ledger.poolbook import stays_of
from ledger.pricing import PricedShare, charge_due_up
from ledger.slot_tables import SlotRow
from ledger.uptime import Uptime
from ledger.usage import Usage

ON_DEMAND_MAX_MS = 7 * 86_400_000
MIN_MS, MAX_MS = 60_000, 366 * 86_400_000
MAX_PRICE_DC = 2**40
TAKEN_WITHIN_MS, CLOCK_SLACK_MS = 600_000, 300_000
_ACCRUE_MS = 60_000
_STOPPABLE = (LeaseState.GRANTED.value, LeaseState.OPEN.value)


def issue(plane: Plane, session: Session, stated: SlotIssue, signature: bytes) -> SlotRow:
    """Put time of a GPU up for sale.

    Raises:
        InvalidRequest: for another fabric, stale, or an impossible time or price.
        AuthError, PermissionDenied: not signed by the operator's wallet. NotFound: no such GPU.
        Conflict: taken already, or over another slot of the GPU.
    """
    now = plane.now_ms()
    _expect_possible(plane, stated, now)
    signer, digest = signer_of(stated.typed_data(), signature)
    gpu = gpu_by_id(session, stated.gpu)
    wallet = wallet_of(session, session.get_one(OperatorRow, gpu.operator))
    if signer != wallet:
        raise PermissionDenied(f"slots of GPU {gpu.id} are issued by {wallet}, its operator's wallet; {signer} signed")
    if session.scalar(select(SlotRow.id).where(col(SlotRow.digest) == digest).limit(1)) is not None:  # type: ignore[call-overload]
        raise Conflict("this slot was issued already; sign another one")
    over = standing().where(
        col(SlotRow.gpu_id) == gpu.id, col(SlotRow.from_ms) < stated.to_ms, col(SlotRow.to_ms) > stated.from_ms
    )
    other = session.scalar(over.limit(1))
    if other is not None:
        raise Conflict(
            f"slot {other.id} of this GPU lasts from {other.from_ms} to {other.to_ms} ms; slots never overlap"
        )
    row = SlotRow(
        id=new_id("slot"),
        tenure=0,
        gpu_id=gpu.id,
        uuid=gpu.uuid,
        operator=gpu.operator,
        cluster=gpu.cluster,
        model=gpu.model,
        price_dc_per_gpu_hour=stated.price_dc_per_gpu_hour,
        from_ms=stated.from_ms,
        to_ms=stated.to_ms,
        counts_from_ms=stated.from_ms,
        digest=digest,
        body=json.dumps(stated.to_json(), sort_keys=True, separators=(",", ":")),
        signer=signer,
        signature=signature,
        issued_ms=now,
    )
    session.add(row)
    session.flush()
    return row


def price_dc(row: SlotRow, now_ms: int) -> int:
    """What the time of a slot that is left costs, rounded up to a DC."""
    return charge_due_up(max(0, row.to_ms - max(row.from_ms, now_ms)), PricedShare(1000, row.price_dc_per_gpu_hour))


def buy(plane: Plane, session: Session, name: str, customer: str) -> SlotRow:
    """Pay the slot's whole price now and hold it; buying it again changes nothing.

    Raises:
        NotFound, Conflict: no such slot, sold, over, or another lease would still run in it.
        InsufficientFunds: less DC available than it costs.
    """
    row, now = find(session, name), plane.now_ms()
    if row.holder == customer:
        return row
    if row.holder:
        raise Conflict(f"slot {name} is sold")
    if row.to_ms <= now:
        raise Conflict(f"slot {name} is over since {row.to_ms} ms")
    _expect_clear(session, row, now)
    row.holder, row.bought_ms, row.counts_from_ms = customer, now, max(row.from_ms, now)
    row.paid_dc, row.accrued_ms = price_dc(row, now), row.counts_from_ms
    session.add(row)
    plane.ledger(session).hold(row.key, row.key, customer, row.paid_dc, f"slot/{row.key}")
    return row


def split(plane: Plane, session: Session, name: str, customer: str, at_ms: int) -> tuple[SlotRow, SlotRow]:
    """Two slots out of one, before and from ``at_ms`` on; money is split as time is, the first part rounded up."""
    row = own(session, name, customer)
    accrue(plane, session, row)
    if not max(row.counts_from_ms, plane.now_ms()) < at_ms < row.to_ms:
        raise InvalidRequest(
            f"slot {name} can be split after now and its begin, and before {row.to_ms} ms; not at {at_ms}"
        )
    left = _end(plane, session, row, "split")
    first, second = _part(plane, row, row.from_ms, at_ms), _part(plane, row, at_ms, row.to_ms)
    _take_over(plane, session, first, customer, min(left, price_dc(first, first.counts_from_ms)))
    _take_over(plane, session, second, customer, left - first.paid_dc)
    return first, second


def merge(plane: Plane, session: Session, name: str, other: str, customer: str) -> SlotRow:
    """One slot out of two of one GPU and price that follow each other."""
    rows = sorted((own(session, one, customer) for one in (name, other)), key=lambda row: row.from_ms)
    early, late = rows
    alike = (early.gpu_id, early.price_dc_per_gpu_hour, early.to_ms) == (
        late.gpu_id,
        late.price_dc_per_gpu_hour,
        late.from_ms,
    )
    if name == other or not alike:
        raise InvalidRequest(
            f"slots {name} and {other} are not of one GPU and price, one ending where the other begins"
        )
    for row in rows:
        accrue(plane, session, row)
    left = sum(_end(plane, session, row, "merged") for row in rows)
    whole = _part(plane, early, early.from_ms, late.to_ms)
    whole.parents = f"{early.id} {late.id}"
    _take_over(plane, session, whole, customer, left)
    return whole


def transfer(plane: Plane, session: Session, name: str, customer: str, to: str) -> SlotRow:
    """Give a slot, with the money that is left in it, to another customer."""
    from api.tables import CustomerRow

    row = own(session, name, customer)
    if to == customer:
        return row
    if session.get(CustomerRow, to) is None:
        raise NotFound(f"there is no account {to}")
    accrue(plane, session, row)
    given = SlotRow(**row.model_dump() | {"tenure": row.tenure + 1, "billed_ms": 0, "seq": 0, "holder": to})
    given.counts_from_ms = given.accrued_ms = max(row.accrued_ms, row.from_ms)
    given.bought_ms = plane.now_ms()
    ledger = plane.ledger(session)
    given.paid_dc = ledger.move_hold(row.key, given.key, to, f"slot/{given.key}")
    row.ended_ms, row.ended = plane.now_ms(), "transferred"
    session.add_all((row, given))
    session.flush()
    return given


def sweep(plane: Plane, session: Session) -> None:
    """Charge the time that passed, clear GPUs for slots that begin, end those that are over."""
    now, mark = plane.now_ms(), Uptime(session).through_ms()
    step = min(_ACCRUE_MS, plane.ledger_settings.epoch_ms // 10)
    sold = standing().where(col(SlotRow.holder) != "", col(SlotRow.from_ms) <= now + CLEAR_MS)
    for row in list(session.scalars(sold)):
        due = min(mark, row.to_ms)
        if due > row.accrued_ms and (due - row.accrued_ms >= step or due == row.to_ms):
            accrue(plane, session, row)
        if mark >= row.to_ms:
            _end(plane, session, row, "over")
    for lease in list(_misplaced(session, now)):
        transitions.lease_event(plane, session, lease, LeaseEvent.RELEASE, Reason.SLOT_ENDED)


def accrue(plane: Plane, session: Session, row: SlotRow) -> None:
    """Charge what passed of a slot's time while its GPU was there, up to when that is known."""
    uptime = Uptime(session)
    through = min(uptime.through_ms(), row.to_ms)
    if through <= row.accrued_ms:
        return
    used_ms = uptime.up_ms(row.gpu_id, row.counts_from_ms, through)
    row.accrued_ms = through
    if used_ms > row.billed_ms:
        plane.ledger(session).charge_many(list(_usages(plane, session, row, used_ms)))
        row.billed_ms, row.seq = used_ms, row.seq + 1
    session.add(row)
    session.flush()


def find(session: Session, name: str) -> SlotRow:
    """The slot as it stands.

    Raises:
        NotFound: no such slot, or it has ended.
    """
    row = session.scalar(standing().where(col(SlotRow.id) == name))
    if row is None:
        raise NotFound(f"there is no slot {name}, or it has ended")
    return row


def own(session: Session, name: str, customer: str) -> SlotRow:
    """The slot, if it is this customer's.

    Raises:
        NotFound: it is not.
    """
    row = find(session, name)
    if row.holder != customer:
        raise NotFound(f"this account holds no slot {name}")
    return row


def expect_usable(session: Session, name: str, customer: str, now_ms: int) -> None:
    """That a run of this customer may use the slot now.

    Raises:
        NotFound: not the customer's. InvalidRequest: it has not begun, or is over.
    """
    row = own(session, name, customer)
    if not row.from_ms <= now_ms < row.to_ms:
        raise InvalidRequest(f"slot {name} lasts from {row.from_ms} to {row.to_ms} ms and it is {now_ms} ms")


def _expect_possible(plane: Plane, stated: SlotIssue, now: int) -> None:
    if stated.fabric != plane.fabric_id:
        raise InvalidRequest(f"the slot is for fabric {stated.fabric}, this is {plane.fabric_id}")
    if not now - TAKEN_WITHIN_MS <= stated.issued_ms <= now + CLOCK_SLACK_MS:
        raise InvalidRequest(f"the slot was signed at {stated.issued_ms} ms and it is {now} ms; sign it anew")
    if not now < stated.from_ms or not MIN_MS <= stated.to_ms - stated.from_ms <= MAX_MS:
        raise InvalidRequest("a slot begins after now and lasts between a minute and 366 days")
    if stated.from_ms > now + MAX_MS:
        raise InvalidRequest("a slot begins within 366 days")
    if not 1 <= stated.price_dc_per_gpu_hour <= MAX_PRICE_DC:
        raise InvalidRequest(f"a slot costs 1 to {MAX_PRICE_DC} DC per GPU-hour, not {stated.price_dc_per_gpu_hour}")


def _expect_clear(session: Session, row: SlotRow, now: int) -> None:
    """No slot is sold over an on-demand lease that may still run in it: one ends with the next slot, or in 7 days."""
    sold = sold_now(session, now).get(row.uuid)
    if sold is not None and (sold.slot or (sold.ends_at_ms is not None and sold.ends_at_ms <= row.from_ms)):
        return
    for lease in _on(session, row.uuid):
        until = lease.granted_ms + ON_DEMAND_MAX_MS
        if lease.tier == "on_demand" and until > row.from_ms - CLEAR_MS:
            raise Conflict(
                f"an on-demand lease runs on this GPU and may last until {until} ms; slots that begin later can be "
                "bought now, this one when the lease has ended"
            )


def _on(session: Session, uuid: str) -> list[LeaseRow]:
    """Leases that were not told to end on a GPU."""
    query = select(LeaseRow).join(LeaseGpuRow, col(LeaseGpuRow.lease) == col(LeaseRow.id))
    return list(session.scalars(query.where(col(LeaseGpuRow.gpu) == uuid, col(LeaseRow.state).in_(_STOPPABLE))))


def _misplaced(session: Session, now: int) -> Iterator[LeaseRow]:
    """Leases of others on a GPU whose slot begins, and reserved ones whose slot is no longer theirs."""
    begun = standing().where(
        col(SlotRow.holder) != "", col(SlotRow.from_ms) <= now + CLEAR_MS, col(SlotRow.to_ms) > now
    )
    running = {row.uuid: row for row in session.scalars(begun)}
    for uuid in running:
        yield from (lease for lease in _on(session, uuid) if lease.tier != "reserved")
    reserved = select(LeaseRow, col(LeaseGpuRow.gpu)).join(LeaseGpuRow, col(LeaseGpuRow.lease) == col(LeaseRow.id))
    for lease, uuid in session.execute(
        reserved.where(col(LeaseRow.tier) == "reserved", col(LeaseRow.state).in_(_STOPPABLE))
    ):
        row = running.get(uuid)
        if row is None or row.holder != lease.customer:
            yield lease


def _usages(plane: Plane, session: Session, row: SlotRow, used_ms: int) -> list[Usage]:
    operator = session.get_one(OperatorRow, row.operator)
    usage = Usage(
        lease_id=row.key,
        generation=1,
        seq=row.seq,
        run_id=row.key,
        customer=row.holder,
        gpu_id=row.gpu_id,
        operator=row.operator,
        pool=row.operator,
        holder=operator.payout,
        model=row.model,
        share_milli=1000,
        price_dc_per_gpu_hour=row.price_dc_per_gpu_hour,
        cumulative_gpu_ms=used_ms,
        at_ms=row.accrued_ms - 1,
        receipt_hash=reserved.commitment(session, row),
    )
    clock = EpochClock(plane.ledger_settings.genesis_ms, plane.ledger_settings.epoch_ms)
    stays = stays_of(session, [row.gpu_id]).get(row.gpu_id, ())
    nfts = holders_of(session, [row.gpu_id]).get(row.gpu_id, ())
    return by_pool_and_holder(usage, used_ms - row.billed_ms, stays, clock, nfts)


def _end(plane: Plane, session: Session, row: SlotRow, why: str) -> int:
    """Close the row; what is left of its money is available to its holder, and returned."""
    row.ended_ms, row.ended = plane.now_ms(), why
    session.add(row)
    session.flush()
    return plane.ledger(session).release_hold(row.key)


def _part(plane: Plane, row: SlotRow, from_ms: int, to_ms: int) -> SlotRow:
    values = {"id": new_id("slot"), "tenure": 0, "from_ms": from_ms, "to_ms": to_ms, "parents": row.id}
    fresh = {"billed_ms": 0, "seq": 0, "ended_ms": None, "ended": ""}
    part = SlotRow(**row.model_dump() | values | fresh)
    part.counts_from_ms = part.accrued_ms = max(from_ms, row.accrued_ms)
    part.bought_ms = plane.now_ms()
    return part


def _take_over(plane: Plane, session: Session, row: SlotRow, customer: str, dc: int) -> None:
    row.holder, row.paid_dc = customer, dc
    session.add(row)
    session.flush()
    ledger = plane.ledger(session)
    if dc:
        ledger.hold(row.key, row.key, customer, dc, f"slot/{row.key}")
    else:
        ledger.hold_nothing(row.key, row.key, customer, f"slot/{row.key}")
