"""What binds a reserved run's receipts to an epoch: the usage of the slot that it runs on.

A reserved lease is not charged, so no leaf of an epoch is its own. Instead each usage of a slot carries, where other
usage carries the hash of its receipt, the root over the last receipts of the leases that ran on it. Nothing else is
kept: which receipts those were is found again by their times.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import or_, select
from sqlmodel import Session, col

from api.tables import LeaseGpuRow, LeaseRow, ReceiptRow
from fabric.wire.leaves import reserved_root
from ledger.meters import METER, USAGE
from ledger.proofs import LeaseProof, lease_proofs
from ledger.slot_tables import SlotRow
from ledger.usage import ZERO_HASH

Bound = tuple[tuple[str, bytes], ...]
"""(lease, hash of its last receipt), by lease."""

_LOOKS = 64
"""Moments before a usage was booked at which its receipts are looked for: each is one group commit."""


def commitment(session: Session, slot: SlotRow) -> bytes:
    """What the slot's next usage carries; zeros while nothing runs or ran on it."""
    bound = _last_receipts(session, _leases(session, slot), 2**62)
    return reserved_root(bound) if bound else ZERO_HASH


def reserved_proofs(session: Session, lease: LeaseRow) -> Iterator[tuple[LeaseProof, Bound]]:
    """Every closed epoch whose usage of a slot binds receipts of a reserved lease, with all that it binds."""
    if lease.tier != "reserved":
        return
    gpus = select(LeaseGpuRow.gpu).where(col(LeaseGpuRow.lease) == lease.id)  # type: ignore[call-overload]
    rows = session.scalars(
        select(SlotRow)
        .where(col(SlotRow.uuid).in_(gpus), col(SlotRow.holder) == lease.customer)
        .order_by(col(SlotRow.from_ms), col(SlotRow.id), col(SlotRow.tenure))
    )
    for slot in list(rows):
        leases = _leases(session, slot)
        if lease.id not in leases:
            continue
        for proof in lease_proofs(session, slot.key):
            bound = _bound_by(session, slot, leases, proof.lease.values[3])
            if any(name == lease.id for name, _ in bound):
                yield proof, bound


def _leases(session: Session, slot: SlotRow) -> list[str]:
    """The reserved leases of the slot's holder on its GPU in its time."""
    query = (
        select(LeaseRow.id)  # type: ignore[call-overload]
        .join(LeaseGpuRow, col(LeaseGpuRow.lease) == col(LeaseRow.id))
        .where(
            col(LeaseGpuRow.gpu) == slot.uuid,
            col(LeaseRow.tier) == "reserved",
            col(LeaseRow.customer) == slot.holder,
            col(LeaseRow.granted_ms) < slot.to_ms,
            or_(col(LeaseRow.closed_ms).is_(None), col(LeaseRow.closed_ms) >= slot.counts_from_ms),
        )
        .order_by(col(LeaseRow.id))
    )
    return list(session.scalars(query))


def _last_receipts(session: Session, leases: Sequence[str], until_ms: int) -> Bound:
    """The last receipt of each that was accepted by then."""
    found: list[tuple[str, bytes]] = []
    for lease in leases:
        digest = session.scalar(
            select(ReceiptRow.hash)  # type: ignore[call-overload]
            .where(col(ReceiptRow.lease) == lease, col(ReceiptRow.accepted_ms) <= until_ms)
            .order_by(col(ReceiptRow.generation).desc(), col(ReceiptRow.seq).desc())
            .limit(1)
        )
        if digest is not None:
            found.append((lease, digest))
    return tuple(found)


def _bound_by(session: Session, slot: SlotRow, leases: Sequence[str], root: bytes) -> Bound:
    """What a usage of the slot binds; nothing when it binds nothing, or what it binds is not found."""
    if root == ZERO_HASH:
        return ()
    booked_ms = session.scalar(
        select(USAGE.c.accepted_ms)
        .join(METER, METER.c.id == USAGE.c.meter_id)
        .where(METER.c.lease_id == slot.key, USAGE.c.receipt_hash == root)
        .order_by(USAGE.c.entry_id)
        .limit(1)
    )
    times = session.scalars(
        select(ReceiptRow.accepted_ms)  # type: ignore[call-overload]
        .where(col(ReceiptRow.lease).in_(leases), col(ReceiptRow.accepted_ms) <= booked_ms)
        .distinct()
        .order_by(col(ReceiptRow.accepted_ms).desc())
        .limit(_LOOKS)
    )
    tried = (_last_receipts(session, leases, until) for until in list(times))
    return next((bound for bound in tried if reserved_root(bound) == root), ())
