"""Evictions: spot leases get their notice because a run of a higher tier fits only in their place.

`fabric.placement` chooses whom; here the choice is carried out, all of it or nothing: notices, and room and money kept
for the run until it is placed there, is over, or waited too long. Works inside the caller's transaction.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Text, cast, select
from sqlmodel import Session, col

from api import notices
from api.acceptance import EVICTING_LEAST_MS
from api.commitments import seats_of
from api.fleet import split_node
from api.fleets import note_change
from api.granting import NOTICE_MS
from api.lifecycle import CLOSE_WITHIN_MS
from api.notice_tables import EvictionRow
from api.plane import Plane
from api.tables import LeaseRow, RunRow
from fabric.placement.answer import Placement
from fabric.wire.machines import ACTIVE_LEASE_STATES, LeaseState, RunState
from fabric.wire.reasons import Reason
from ledger.errors import BudgetExceeded, InsufficientFunds
from ledger.pricing import PricedShare, cost_up, reserve_dc_up

HOLDS = "eviction/"
"""How the names of holds begin that no lease has yet."""


def begin(plane: Plane, session: Session, run: RunRow, placement: Placement) -> bool:
    """Give the notices, keep the room and set aside what it will cost at least.

    False, and nothing is done, when that could not be paid.
    """
    victims = [session.get(LeaseRow, name) for name in placement.evicts]
    if any(lease is None or lease.tier != "spot" or not _is_active(lease) for lease in victims):
        return False
    if not _set_aside(plane, session, run, placement):
        return False
    until = plane.now_ms()
    for lease in victims:
        assert lease is not None
        until = max(until, notices.give(plane, session, lease, Reason.PREEMPTED, lease.notice_ms))
    until += CLOSE_WITHIN_MS
    session.add(EvictionRow(run=run.id, victims=list(placement.evicts), seats=_seats(placement), until_ms=until))
    run.queued_until_ms = max(run.queued_until_ms, until + 1)
    session.add(run)
    session.flush()
    _note(plane, session, session.get_one(EvictionRow, run.id))
    return True


def of(session: Session, run: str) -> EvictionRow | None:
    """What the run waits for, if it evicted."""
    return session.get(EvictionRow, run)


def hold_of(eviction: EvictionRow) -> str:
    """The name under which its money is held; a lease is evicted once, so the first one names the eviction."""
    return _hold_of(eviction.run, eviction.victims)


def nodes_of(eviction: EvictionRow) -> frozenset[str]:
    """The nodes on which room is kept."""
    return frozenset(part.node for part in seats_of(eviction))


def is_over(plane: Plane, session: Session, eviction: EvictionRow) -> bool:
    """Whether every evicted lease has ended, or the run waited long enough for that."""
    victims = session.scalars(select(LeaseRow).where(col(LeaseRow.id).in_(eviction.victims)))
    return plane.now_ms() >= eviction.until_ms or not any(_is_active(lease) for lease in victims)


def end(plane: Plane, session: Session, eviction: EvictionRow) -> None:
    """Keep room and money no longer; the run is over, or is to be placed there now."""
    run = session.get_one(RunRow, eviction.run)
    ledger, name = plane.ledger(session), hold_of(eviction)
    if ledger.find_hold(name) is not None:
        ledger.release_hold(name)
    run.evicted_gpus = [uuid for seat in eviction.seats for uuid, _ in seat["gpus"]]
    session.add(run)
    _note(plane, session, eviction)
    session.delete(eviction)
    session.flush()


def forget_idle(plane: Plane, session: Session) -> None:
    """Let go of what is kept for runs that do not wait any more: they are over, or were cancelled."""
    query = select(EvictionRow, RunRow).join(RunRow, col(RunRow.id) == col(EvictionRow.run))
    for eviction, _run in list(session.execute(query.where(col(RunRow.state) != RunState.QUEUED.value))):
        end(plane, session, eviction)


def left_one(plane: Plane, session: Session, customer: str) -> bool:
    """Whether a run of theirs evicted and ended, without a lease, in the last ten minutes, the least an eviction costs.

    There is no lease that could be billed, so who does that evicts nobody meanwhile: it cannot be done again and again.
    """
    forget_idle(plane, session)
    left = select(RunRow.id).where(  # type: ignore[call-overload]
        col(RunRow.customer) == customer,
        col(RunRow.ended_ms) > plane.now_ms() - EVICTING_LEAST_MS,
        cast(col(RunRow.evicted_gpus), Text) != "[]",
    )
    return session.scalar(left.limit(1)) is not None


def _set_aside(plane: Plane, session: Session, run: RunRow, placement: Placement) -> bool:
    """Hold what the leases will have to hold, so that nobody leaves for a run that cannot pay when its turn comes."""
    if placement.tier == "reserved":  # its slot is paid
        return True
    needed = 0
    for part in placement.assignments:
        shares = [PricedShare(share.milli, placement.price_dc_per_gpu_hour) for share in part.gpus]
        needed += max(cost_up(shares, EVICTING_LEAST_MS), reserve_dc_up(shares, NOTICE_MS[placement.tier]))
    name = _hold_of(run.id, placement.evicts)
    try:
        plane.ledger(session).hold(name, run.id, run.customer, needed, f"hold/{name}", budget_dc=run.budget_dc)
    except (InsufficientFunds, BudgetExceeded):
        return False
    return True


def _hold_of(run: str, victims: Sequence[str]) -> str:
    return f"{HOLDS}{run}/{victims[0]}"


def _seats(placement: Placement) -> list[dict[str, Any]]:
    return [
        {
            "node": part.node,
            "gpus": [[share.uuid, share.milli] for share in part.gpus],
            "cpu_milli": part.cpu_milli,
            "memory_bytes": part.memory_bytes,
            "disk_bytes": part.disk_bytes,
        }
        for part in placement.assignments
    ]


def _note(plane: Plane, session: Session, eviction: EvictionRow) -> None:
    for part in seats_of(eviction):
        cluster, node = split_node(part.node)
        note_change(session, plane.now_ms(), cluster, [node])


def _is_active(lease: LeaseRow) -> bool:
    return LeaseState(lease.state) in ACTIVE_LEASE_STATES
