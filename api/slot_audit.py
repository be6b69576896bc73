"""The audit's checks of time slots: never over each other, signed, and no more charged than was paid and delivered."""

import json
from collections.abc import Iterator

from sqlalchemy import func, select
from sqlmodel import Session, col

from api.wallets import signer_of
from fabric.wire.errors import AuthError
from fabric.wire.slot_issue import SlotIssue
from ledger import accounts
from ledger.audit import Check, Finding
from ledger.book import Book
from ledger.meters import METER, USAGE, standing
from ledger.slot_tables import SlotRow
from ledger.uptime import Uptime


def _rows(session: Session) -> list[SlotRow]:
    return list(session.scalars(select(SlotRow).order_by(col(SlotRow.gpu_id), col(SlotRow.from_ms), col(SlotRow.id))))


def slots_do_not_overlap(session: Session) -> Iterator[Finding]:
    """Of the slots of one GPU that stand, none begins before the one before it has ended."""
    before: SlotRow | None = None
    for row in _rows(session):
        if row.ended_ms is None:
            if before is not None and before.gpu_id == row.gpu_id and row.from_ms < before.to_ms:
                yield Finding("ledger_slot", row.key, f"it begins within slot {before.id}")
            before = row


def slots_are_signed(session: Session) -> Iterator[Finding]:
    """Every part of a slot lies in what its operator's wallet signed, at that price."""
    for row in _rows(session):
        try:
            stated = SlotIssue.from_json(json.loads(row.body))
            signer, digest = signer_of(stated.typed_data(), row.signature)
        except (ValueError, AuthError) as error:
            yield Finding("ledger_slot", row.key, str(error))
            continue
        same = (stated.gpu.lower(), stated.price_dc_per_gpu_hour) == (row.gpu_id, row.price_dc_per_gpu_hour)
        if (signer, digest) != (row.signer, row.digest) or not same:
            yield Finding("ledger_slot", row.key, "its row is not what was signed")
        elif row.holder == "" and (stated.from_ms, stated.to_ms) != (row.from_ms, row.to_ms):
            yield Finding("ledger_slot", row.key, "its time is not what was signed")


def slots_charge_what_was_delivered(session: Session) -> Iterator[Finding]:
    """Charged time is time in which the GPU was there; charged and held DC are within what was paid."""
    for row in _rows(session):
        if not row.holder:
            continue
        dc, ms = session.execute(
            select(func.coalesce(func.sum(USAGE.c.dc), 0), func.coalesce(func.sum(USAGE.c.gpu_ms), 0))
            .join(METER, METER.c.id == USAGE.c.meter_id)
            .where(METER.c.lease_id == row.key, standing())
        ).one()
        there_ms = Uptime(session).up_ms(row.gpu_id, row.counts_from_ms, row.to_ms)
        held = Book(session).balance(accounts.held(row.holder, row.key))
        if ms != row.billed_ms or ms > there_ms:
            yield Finding(
                "ledger_slot", row.key, f"{ms} ms are charged, {row.billed_ms} noted, {there_ms} were delivered"
            )
        if dc + held > row.paid_dc or (row.ended_ms is None and dc + held != row.paid_dc):
            yield Finding("ledger_slot", row.key, f"{row.paid_dc} DC paid; {dc} charged and {held} held")


SLOT_CHECKS = (
    Check("slots never overlap", 8, slots_do_not_overlap),
    Check("slots are what operators signed", 24, slots_are_signed),
    Check("slots charge what was delivered", 7, slots_charge_what_was_delivered),
)
