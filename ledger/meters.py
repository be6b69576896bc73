"""Meters and their usage rows: reading what was booked of a (lease, generation, GPU), and writing what is booked now.

Decides nothing; `ledger.booking` does.
"""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, select
from sqlmodel import Session

from ledger import accounts
from ledger.book import ENTRY
from ledger.booking import Charge, MeterState
from ledger.bulk import among, insert_returning, insert_rows
from ledger.entries import Entry, EntryKind, move
from ledger.errors import SourceConflict
from ledger.tables import MeterRow, UsageRow, table_of
from ledger.usage import Usage

METER, USAGE = table_of(MeterRow), table_of(UsageRow)
UNDONE = ENTRY.alias("undone")

MeterKey = tuple[str, int, str]
_USAGE_FIELDS = tuple(field.name for field in fields(Usage))
_FIXED = ("customer", "operator", "model", "share_milli", "price_dc_per_gpu_hour", "simulated")
_fixed_of = attrgetter(*_FIXED)


class Opened(NamedTuple):
    """A meter that was seen before: its row's id and what was booked of it."""

    id: int
    state: MeterState


def standing() -> Any:
    """The condition that a usage row has not been undone."""
    return ~select(UNDONE.c.id).where(UNDONE.c.reverses_id == USAGE.c.entry_id).exists()


_LAST = (
    select(USAGE.c.entry_id)
    .where(USAGE.c.meter_id == METER.c.id, standing())
    .order_by(USAGE.c.entry_id.desc())
    .limit(1)
    .correlate(METER)
    .scalar_subquery()
)
_METERS = select(METER.c.id, METER.c.lease_id, METER.c.generation, METER.c.gpu_id, _LAST, *(METER.c[n] for n in _FIXED))


class Meters:
    """The meter and usage tables inside the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def known(self, usages: Sequence[Usage]) -> dict[MeterKey, Opened]:
        """Those of the usages' meters that were seen before, with what was booked of them.

        Raises:
            SourceConflict: a meter's customer, operator, model, share or price differ from when it was opened.
        """
        first = {usage.meter: usage for usage in reversed(usages)}
        for usage in usages:
            _expect_fixed(_fixed_of(first[usage.meter]), usage)
        found: dict[MeterKey, tuple[int, int | None]] = {}
        rows = self._session.execute(_METERS.where(among(METER.c.lease_id, list({key[0] for key in first})))).all()
        for meter_id, lease_id, generation, gpu_id, last, *fixed in rows:
            key = (lease_id, generation, gpu_id)
            if key in first:
                _expect_fixed(tuple(fixed), first[key])
                found[key] = (meter_id, last)
        states = self._states([last for _, last in found.values() if last is not None])
        return {key: Opened(meter_id, states.get(meter_id, MeterState())) for key, (meter_id, _) in found.items()}

    def open(self, usages: Sequence[Usage]) -> dict[MeterKey, int]:
        """Create the usages' meters, none of which was seen before; returns the ids of their rows."""
        values = [_meter_values(usage) for usage in {usage.meter: usage for usage in usages}.values()]
        rows = insert_returning(self._session, METER, values, ("lease_id", "generation", "gpu_id", "id"))
        return {(lease_id, generation, gpu_id): meter_id for lease_id, generation, gpu_id, meter_id in rows}

    def find(self, lease_id: str, generation: int, gpu_id: str) -> RowMapping | None:
        """The row of one meter."""
        return (
            self._session.execute(
                select(METER).where(
                    METER.c.lease_id == lease_id, METER.c.generation == generation, METER.c.gpu_id == gpu_id
                )
            )
            .mappings()
            .one_or_none()
        )

    def open_of_gpu(self, gpu_id: str, since_ms: int) -> list[RowMapping]:
        """Meters of a GPU that have standing usage accepted at ``since_ms`` or later."""
        used = select(USAGE.c.entry_id).where(
            USAGE.c.meter_id == METER.c.id, USAGE.c.accepted_ms >= since_ms, standing()
        )
        rows = self._session.execute(select(METER).where(METER.c.gpu_id == gpu_id, used.exists()).order_by(METER.c.id))
        return list(rows.mappings())

    def write(self, charges: Sequence[tuple[Charge, int, int]], *, accepted_ms: int) -> None:
        """Usage rows of (charge, its entry's id, its meter's row id)."""
        values = [_usage_values(charge, entry_id, meter_id, accepted_ms) for charge, entry_id, meter_id in charges]
        insert_rows(self._session, USAGE, values)

    def standing_newest_first(self, meter_id: int) -> list[RowMapping]:
        """All usage rows of a meter that were not undone."""
        rows = self._session.execute(
            select(USAGE, *_meter_columns(), ENTRY.c.source_id)
            .join(METER, METER.c.id == USAGE.c.meter_id)
            .join(ENTRY, ENTRY.c.id == USAGE.c.entry_id)
            .where(USAGE.c.meter_id == meter_id, standing())
            .order_by(USAGE.c.entry_id.desc())
        )
        return list(rows.mappings())

    def booked(self, entry_ids: Sequence[int]) -> dict[int, RowMapping]:
        """Usage rows by the id of their entry."""
        if not entry_ids:
            return {}
        query = select(USAGE, *_meter_columns()).join(METER, METER.c.id == USAGE.c.meter_id)
        rows = self._session.execute(query.where(among(USAGE.c.entry_id, entry_ids))).mappings()
        return {row["entry_id"]: row for row in rows}

    def _states(self, entry_ids: Sequence[int]) -> dict[int, MeterState]:
        """By meter, behind the usage of these entries."""
        columns = (USAGE.c.meter_id, USAGE.c.seq, USAGE.c.part, USAGE.c.cumulative_gpu_ms, USAGE.c.charged_dc)
        rows = self._session.execute(select(*columns).where(among(USAGE.c.entry_id, entry_ids)))
        return {meter_id: MeterState(*state) for meter_id, *state in rows}


def charge_from(row: RowMapping, source_id: str) -> Charge:
    """A booked charge, from its usage and meter rows, as the value it was."""
    usage = Usage(**{name: row[name] for name in _USAGE_FIELDS})
    postings = move(accounts.held(usage.customer, usage.lease_id), accounts.usage_pending(usage.gpu_id), row["dc"])
    entry = Entry(EntryKind.CHARGE, source_id, row["accepted_ms"], postings, usage.lease_id, usage.customer)
    return Charge(usage, row["gpu_ms"], row["dc"], row["charged_dc"], row["short_dc"], entry)


def _meter_columns() -> list[Any]:
    return [column for column in METER.c if column.name != "id"]


def _expect_fixed(fixed: tuple[Any, ...], usage: Usage) -> None:
    if fixed == _fixed_of(usage):
        return
    for name, was, given in zip(_FIXED, fixed, _fixed_of(usage), strict=True):
        if was != given:
            raise SourceConflict(f"{usage.source_id}: {name} is {was} for the life of the lease, not {given}")


def _meter_values(usage: Usage) -> dict[str, Any]:
    fixed = dict(zip(_FIXED, _fixed_of(usage), strict=True))
    return {"lease_id": usage.lease_id, "generation": usage.generation, "gpu_id": usage.gpu_id, **fixed}


def _usage_values(charge: Charge, entry_id: int, meter_id: int, accepted_ms: int) -> dict[str, Any]:
    usage = charge.usage
    return {
        "entry_id": entry_id,
        "meter_id": meter_id,
        "seq": usage.seq,
        "part": usage.part,
        "run_id": usage.run_id,
        "pool": usage.pool,
        "holder": usage.holder.lower(),
        "cumulative_gpu_ms": usage.cumulative_gpu_ms,
        "gpu_ms": charge.gpu_ms,
        "dc": charge.dc,
        "charged_dc": charge.charged_dc,
        "short_dc": charge.short_dc,
        "at_ms": usage.at_ms,
        "accepted_ms": accepted_ms,
        "receipt_hash": usage.receipt_hash,
        "utilised_gpu_ms": usage.utilised_gpu_ms,
        "energy_mj": usage.energy_mj,
    }
