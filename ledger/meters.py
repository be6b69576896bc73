"""Meters and their usage rows: reading what was booked of a (lease, generation, GPU), and writing what is booked now.

Decides nothing; `ledger.booking` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import RowMapping, select
from sqlmodel import Session

from ledger import accounts
from ledger.book import ENTRY
from ledger.booking import Charge, MeterState
from ledger.bulk import among, insert_rows
from ledger.entries import Entry, EntryKind, move
from ledger.errors import SourceConflict
from ledger.tables import MeterRow, UsageRow, table_of
from ledger.usage import Usage

METER, USAGE = table_of(MeterRow), table_of(UsageRow)
UNDONE = ENTRY.alias("undone")

MeterKey = tuple[str, int, str]
_USAGE_FIELDS = tuple(field.name for field in fields(Usage))
_FIXED = ("customer", "operator", "model", "share_milli", "price_dc_per_gpu_hour", "simulated")


def standing() -> Any:
    """The condition that a usage row has not been undone."""
    return ~select(UNDONE.c.id).where(UNDONE.c.reverses_id == USAGE.c.entry_id).exists()


class Meters:
    """The meter and usage tables inside the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def states(self, usages: Sequence[Usage]) -> dict[MeterKey, MeterState]:
        """What was booked of each usage's meter; a meter seen for the first time is at its beginning.

        Raises:
            SourceConflict: a meter's customer, operator, model, share or price differ from when it was opened.
        """
        wanted = {usage.meter: usage for usage in usages}
        for usage in usages:
            _expect_fixed(_meter_values(wanted[usage.meter]), usage)
        keys = {row["id"]: key for key, row in self._find(wanted).items()}
        found = self._states(list(keys))
        known = {key: found[meter_id] for meter_id, key in keys.items() if meter_id in found}
        return {key: known.get(key, MeterState()) for key in wanted}

    def open(self, usages: Sequence[Usage]) -> dict[MeterKey, int]:
        """Row ids of the usages' meters; those seen for the first time are created."""
        wanted = {usage.meter: usage for usage in usages}
        found = self._find(wanted)
        missing = [usage for key, usage in wanted.items() if key not in found]
        if missing:
            insert_rows(self._session, METER, [_meter_values(usage) for usage in missing], or_skip=True)
            found |= self._find({usage.meter: usage for usage in missing})
        return {key: row["id"] for key, row in found.items()}

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

    def _find(self, wanted: Mapping[MeterKey, Usage]) -> dict[MeterKey, RowMapping]:
        found: dict[MeterKey, RowMapping] = {}
        leases = sorted({key[0] for key in wanted})
        for row in self._session.execute(select(METER).where(among(METER.c.lease_id, leases))).mappings():
            key = (row["lease_id"], row["generation"], row["gpu_id"])
            if key in wanted:
                _expect_fixed(row, wanted[key])
                found[key] = row
        return found

    def _states(self, meter_ids: Sequence[int]) -> dict[int, MeterState]:
        last = (
            select(USAGE.c.entry_id)
            .where(USAGE.c.meter_id == METER.c.id, standing())
            .order_by(USAGE.c.entry_id.desc())
            .limit(1)
            .correlate(METER)
            .scalar_subquery()
        )
        columns = (USAGE.c.meter_id, USAGE.c.seq, USAGE.c.part, USAGE.c.cumulative_gpu_ms, USAGE.c.charged_dc)
        query = select(*columns).select_from(METER).join(USAGE, USAGE.c.entry_id == last)
        rows = self._session.execute(query.where(among(METER.c.id, meter_ids)))
        return {meter_id: MeterState(*state) for meter_id, *state in rows}


def charge_from(row: RowMapping, source_id: str) -> Charge:
    """A booked charge, from its usage and meter rows, as the value it was."""
    usage = Usage(**{name: row[name] for name in _USAGE_FIELDS})
    postings = move(accounts.held(usage.customer, usage.lease_id), accounts.usage_pending(usage.gpu_id), row["dc"])
    entry = Entry(EntryKind.CHARGE, source_id, row["accepted_ms"], postings, usage.lease_id, usage.customer)
    return Charge(usage, row["gpu_ms"], row["dc"], row["charged_dc"], row["short_dc"], entry)


def _meter_columns() -> list[Any]:
    return [column for column in METER.c if column.name != "id"]


def _expect_fixed(row: Mapping[Any, Any], usage: Usage) -> None:
    for name in _FIXED:
        if row[name] != getattr(usage, name):
            raise SourceConflict(
                f"{usage.source_id}: {name} is {row[name]} for the life of the lease, not {getattr(usage, name)}"
            )


def _meter_values(usage: Usage) -> dict[str, Any]:
    fixed = {name: getattr(usage, name) for name in _FIXED}
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
