"""The fleet as placement sees it: who has which GPUs, what is free, what spot leases could give way.

It is told what happened (`upsert_node`, `remove_node`, `take`, `release`, `saw`) and keeps it in columns, so that a
lease or a release touches only the rows it concerns. It decides nothing and stores nothing; the control plane's
database is the truth, from which a fleet is rebuilt.

A **row** is the GPUs of one node that are alike in everything a price or a request can tell apart (`Kind`). Most nodes
are one row; a node with two models, or with some GPUs inside a sold slot, has several, which share its CPU and memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.inventory import Assignment, Gpu, GpuShare, Held, Kind, Model, Node, Profile, Sort
from fabric.placement.memo import Memo
from fabric.placement.outlook import CELLS, STEP_MILLI, Outlook
from fabric.placement.request import Request

__all__ = ["Assignment", "Fleet", "FleetError", "Gpu", "GpuShare", "Held", "Kind", "Node", "Profile"]

T = TypeVar("T")

_LOG_LIMIT = 65_536
_SPARE_SORTS = 1_024


class FleetError(ValueError):
    """The fleet was told something impossible: an unknown node, a GPU that is not free, a lease held twice."""


class Fleet:
    """Every row of every node, in columns. One writer; not safe for threads.

    Columns have one entry per row, matrices one line per GPU position or resource: `free` and `spot` in milli-GPU
    (`spot_milli` is the row's sum, `spot_safe` that of milli-GPU × the time up to which the work is stored), `room`,
    `spot_room` and `total` in (milli-cores, bytes of memory, bytes of disk). `cell` is where a GPU's free share stands
    in the tables of the outlook, `whole` how many GPUs are free entirely. These and `room` are views of `state`, which
    has a line per row with all that packing reads. `sort` numbers the rows that are alike in everything but what is
    free (`sorts`). Readers take the first `rows` entries and leave them as they are.

    Whoever remembers something per row follows by `version`, which grows when nodes change, and `changed_since`.
    """

    def __init__(self) -> None:
        self.version = 0
        self.rows = 0
        self.nodes: dict[str, Node] = {}
        self.leases: dict[str, Held] = {}
        self.kinds: list[Kind] = []
        self.profiles: list[Profile] = []
        self.models: list[Model] = []
        self.sorts: list[Sort] = []
        self.groups: list[tuple[str, int]] = []
        self.outlook = Outlook()
        self.screens = Memo()
        self.packings = Memo()
        self.tracks_use = False
        self.spot_leases = 0
        self.ending_leases = 0
        self._log: list[int] = []
        self._log_start = 0
        self._kind_ids: dict[Kind, int] = {}
        self._profile_ids: dict[Profile, int] = {}
        self._model_ids: dict[Model, int] = {}
        self._sort_ids: dict[Sort, int] = {}
        self._group_ids: dict[tuple[str, int], int] = {}
        self._rows_of: dict[str, list[int]] = {}
        self._seat: dict[str, tuple[int, int]] = {}
        self._residents: dict[str, set[str]] = {}
        self._gangs: dict[str, set[str]] = {}
        self._vacant: list[int] = []
        self._allocate(rows=64, width=8)

    def upsert_node(self, node: Node) -> None:
        """Add a node or replace what is known of it; leases on it stay. An unchanged node changes nothing.

        Raises:
            FleetError: one of its GPUs is another node's, or it names one twice.
        """
        if self.nodes.get(node.name) == node:
            return
        self._check_owner(node)
        self._drop_rows(node.name)
        self.nodes[node.name] = node
        self._add_rows(node)
        for lease in sorted(self._residents.setdefault(node.name, set())):
            held = self.leases[lease]
            for assignment in held.assignments:
                if assignment.node == node.name:
                    self._move(assignment, held, sign=-1)
        self._restructured()

    def remove_node(self, name: str) -> tuple[str, ...]:
        """Forget a node and every lease that had a part on it; returns those leases.

        Raises:
            FleetError: no such node.
        """
        if name not in self.nodes:
            raise FleetError(f"no node {name!r} in the fleet")
        lost = tuple(sorted(self._residents[name]))
        for lease in lost:
            self.release(lease)
        self._drop_rows(name)
        del self.nodes[name], self._residents[name]
        self._restructured()
        return lost

    def take(self, held: Held) -> None:
        """Book a lease's GPUs, CPU, memory and disk.

        Raises:
            FleetError: the lease is held already, or something of it is not free; nothing is booked then.
        """
        if held.lease in self.leases:
            raise FleetError(f"lease {held.lease!r} is held already")
        for index, assignment in enumerate(held.assignments):
            try:
                self._check_free(assignment)
            except FleetError:
                for done in held.assignments[:index]:
                    self._move(done, held, sign=1)
                raise
            self._move(assignment, held, sign=-1)
        self.leases[held.lease] = held
        self._count(held, 1)
        for assignment in held.assignments:
            self._residents[assignment.node].add(held.lease)
        if held.gang:
            self._gangs.setdefault(held.gang, set()).add(held.lease)

    def release(self, lease: str) -> Held:
        """Give everything of a lease back; returns what it held.

        Raises:
            FleetError: no such lease.
        """
        held = self.leases.pop(lease, None)
        if held is None:
            raise FleetError(f"no lease {lease!r} in the fleet")
        self._count(held, -1)
        for assignment in held.assignments:
            self._residents[assignment.node].discard(lease)
            self._move(assignment, held, sign=1)
        if held.gang:
            self._gangs[held.gang].discard(lease)
            if not self._gangs[held.gang]:
                del self._gangs[held.gang]
        return held

    def saw(self, request: Request) -> None:
        """Note that a request has arrived, once for each: placement leaves room for what arrives often."""
        self.outlook.saw(request)

    def checkpointed(self, lease: str, safe_ms: int) -> None:
        """Note that the lease's work up to `safe_ms` is stored.

        Raises:
            FleetError: no such lease.
        """
        held = self.leases.get(lease)
        if held is None:
            raise FleetError(f"no lease {lease!r} in the fleet")
        self.leases[lease] = replace(held, safe_ms=safe_ms)
        if held.tier == "spot":
            seats = [(self._seat.get(share.uuid), share.milli) for part in held.assignments for share in part.gpus]
            for seat, milli in seats:
                if seat is not None:
                    self.spot_safe[seat[0]] += milli * (safe_ms - held.safe_ms)

    def used(self, uuid: str, gpu_ms: int) -> None:
        """Note a GPU's paid time in this epoch; of equal GPUs the least used is taken first.

        Raises:
            FleetError: no such GPU.
        """
        seat = self._seat.get(uuid)
        if seat is None:
            raise FleetError(f"no GPU {uuid!r} in the fleet")
        row, column = seat
        self.used_gpu_ms[column, row] = gpu_ms
        self.tracks_use = True

    def leases_on(self, node: str) -> tuple[Held, ...]:
        """Every lease with a part on the node, by name."""
        return tuple(self.leases[lease] for lease in sorted(self._residents[node]))

    def together(self, lease: str) -> tuple[Held, ...]:
        """The lease and those of its gang, by name: they lose their work when it goes."""
        held = self.leases[lease]
        return tuple(self.leases[name] for name in sorted(self._gangs[held.gang])) if held.gang else (held,)

    def seat(self, uuid: str) -> tuple[int, int] | None:
        """Row and position of a GPU; None when it is not offered."""
        return self._seat.get(uuid)

    def uuid_at(self, row: int, column: int) -> str:
        return self._uuids[row][column]

    def name_at(self, row: int) -> str:
        """The name of the row's node."""
        return self._names[row]

    def rows_of(self, node: str) -> tuple[int, ...]:
        """The node's rows; empty for an unknown node."""
        return tuple(self._rows_of.get(node, ()))

    @property
    def now_at(self) -> int:
        """Where the log of changed rows ends: what a reader keeps as its cursor."""
        return self._log_start + len(self._log)

    def changed_since(self, cursor: int) -> Sequence[int] | None:
        """Rows that changed after the cursor, perhaps repeated; None when that is no longer known."""
        return self._log[cursor - self._log_start :] if cursor >= self._log_start else None

    def _allocate(self, rows: int, width: int) -> None:
        self.state = np.zeros((rows, 5 + width), np.int64)
        self.room, self.model, self.whole = self.state.T[:3], self.state[:, 3], self.state[:, 4]
        self.cell = self.state.T[5:]
        self.kind = np.zeros(rows, np.int32)
        self.profile = np.zeros(rows, np.int32)
        self.group = np.zeros(rows, np.int32)
        self.sort = np.zeros(rows, np.int32)
        self.alive = np.zeros(rows, np.bool_)
        self.size = np.zeros(rows, np.int32)
        self.free = np.zeros((width, rows), np.int32)
        self.spot = np.zeros((width, rows), np.int32)
        self.used_gpu_ms = np.zeros((width, rows), np.int64)
        self.spot_milli = np.zeros(rows, np.int64)
        self.spot_safe = np.zeros(rows, np.int64)
        self.spot_room = np.zeros((3, rows), np.int64)
        self.total = np.zeros((3, rows), np.int64)
        self._names: list[str] = [""] * rows
        self._uuids: list[tuple[str, ...]] = [()] * rows

    def _grow(self, rows: int, width: int) -> None:
        old_width, old_rows = self.free.shape
        old = dict(vars(self))
        self._allocate(max(rows, old_rows), max(width, old_width))
        for name, value in old.items():
            if isinstance(value, np.ndarray):
                getattr(self, name)[tuple(slice(0, length) for length in value.shape)] = value
        self._names[:old_rows] = old["_names"]
        self._uuids[:old_rows] = old["_uuids"]

    def _check_owner(self, node: Node) -> None:
        uuids = [gpu.uuid for gpu in node.gpus]
        if len(set(uuids)) != len(uuids):
            raise FleetError(f"node {node.name!r} names a GPU twice")
        for uuid in uuids:
            seat = self._seat.get(uuid)
            if seat is not None and self._names[seat[0]] != node.name:
                raise FleetError(f"GPU {uuid!r} of node {node.name!r} is already at node {self._names[seat[0]]!r}")

    def _drop_rows(self, name: str) -> None:
        for row in self._rows_of.pop(name, []):
            for uuid in self._uuids[row]:
                del self._seat[uuid]
            self.alive[row] = False
            self.size[row] = self.model[row] = self.whole[row] = self.spot_milli[row] = self.spot_safe[row] = 0
            for matrix in (self.cell, self.free, self.spot, self.used_gpu_ms, self.room, self.spot_room, self.total):
                matrix[:, row] = 0
            self._uuids[row], self._names[row] = (), ""
            self._vacant.append(row)
            self._log.append(row)

    def _add_rows(self, node: Node) -> None:
        groups: dict[Kind, list[Gpu]] = {}
        for gpu in node.gpus:
            if gpu.healthy:
                groups.setdefault(Kind.of(gpu), []).append(gpu)
        if not node.gpus:
            groups[Kind.none()] = []
        self._rows_of[node.name] = [self._add_row(node, kind, gpus) for kind, gpus in groups.items()]

    def _add_row(self, node: Node, kind: Kind, gpus: list[Gpu]) -> int:
        row = self._vacant.pop() if self._vacant else self.rows
        self.rows = max(self.rows, row + 1)
        if self.rows > self.alive.size or len(gpus) > self.free.shape[0]:
            self._grow(2 * self.rows if self.rows > self.alive.size else self.rows, len(gpus))
        total = (node.cpu_milli, node.memory_bytes, node.disk_bytes)
        self._classify(row, kind, Profile.of(node), len(gpus), total)
        self.model[row] = _number(self._model_ids, self.models, kind.chip)
        self.alive[row] = True
        self.size[row] = self.whole[row] = len(gpus)
        self.free[: len(gpus), row] = WHOLE_MILLI
        self.total[:, row] = self.room[:, row] = total
        self._names[row], self._uuids[row] = node.name, tuple(gpu.uuid for gpu in gpus)
        for column, gpu in enumerate(gpus):
            self._seat[gpu.uuid] = (row, column)
            self.used_gpu_ms[column, row] = gpu.used_gpu_ms
            self.tracks_use |= gpu.used_gpu_ms > 0
        self.cell[:, row] = self.model[row] * CELLS + self.free[:, row] // STEP_MILLI
        self._log.append(row)
        return row

    def _count(self, held: Held, by: int) -> None:
        self.spot_leases += by if held.tier == "spot" else 0
        self.ending_leases += by if held.until_ms is not None else 0

    def _classify(self, row: int, kind: Kind, profile: Profile, gpus: int, total: tuple[int, int, int]) -> None:
        kind_id = _number(self._kind_ids, self.kinds, kind)
        profile_id = _number(self._profile_ids, self.profiles, profile)
        self.kind[row], self.profile[row] = kind_id, profile_id
        self.sort[row] = _number(self._sort_ids, self.sorts, Sort(kind_id, profile_id, gpus, *total))
        self.group[row] = _number(self._group_ids, self.groups, (profile.cluster, kind_id))

    def _restructured(self) -> None:
        self.version += 1
        if len(self.sorts) > 4 * self.rows + _SPARE_SORTS and self.alive.any():
            self._renumber()

    def _renumber(self) -> None:
        """Forget kinds, profiles and sorts that no row has any more: prices and reputations change for ever."""
        kinds, profiles, sorts = self.kinds, self.profiles, self.sorts
        self.kinds, self.profiles, self.sorts, self.groups = [], [], [], []
        for ids in (self._kind_ids, self._profile_ids, self._sort_ids, self._group_ids):
            ids.clear()
        for row in range(self.rows):
            if self.alive[row]:
                sort = sorts[self.sort[row]]
                total = (sort.cpu_milli, sort.memory_bytes, sort.disk_bytes)
                self._classify(row, kinds[sort.kind], profiles[sort.profile], sort.gpus, total)
            else:
                self.kind[row] = self.profile[row] = self.sort[row] = self.group[row] = 0

    def _move(self, assignment: Assignment, held: Held, *, sign: int) -> None:
        rows, spot = self._rows_of[assignment.node], held.tier == "spot"
        for share in assignment.gpus:
            seat = self._seat.get(share.uuid)
            if seat is None:  # it was withdrawn or fell ill while leased
                continue
            row, column = seat
            before = self.free.item(column, row)
            free = before + sign * share.milli
            if WHOLE_MILLI in (before, free):
                self.whole[row] += (free == WHOLE_MILLI) - (before == WHOLE_MILLI)
            self.free[column, row] = free
            self.cell[column, row] = self.model.item(row) * CELLS + max(free, 0) // STEP_MILLI
            if spot:
                self.spot[column, row] -= sign * share.milli
                self.spot_milli[row] -= sign * share.milli
                self.spot_safe[row] -= sign * share.milli * held.safe_ms
        wanted = (assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes)
        for row in rows:
            for index, amount in enumerate(wanted):
                if amount:
                    self.room[index, row] += sign * amount
                    if spot:
                        self.spot_room[index, row] -= sign * amount
        self._log.extend(rows)
        if len(self._log) > _LOG_LIMIT:
            self._log_start += len(self._log)
            self._log.clear()

    def _check_free(self, assignment: Assignment) -> None:
        rows = self._rows_of.get(assignment.node)
        if rows is None:
            raise FleetError(f"no node {assignment.node!r} in the fleet")
        seen: set[str] = set()
        for share in assignment.gpus:
            seat = self._seat.get(share.uuid)
            if seat is None or seat[0] not in rows or share.uuid in seen:
                raise FleetError(f"node {assignment.node!r} does not offer GPU {share.uuid!r}, or not twice")
            seen.add(share.uuid)
            free = self.free.item(seat[1], seat[0])
            if free < share.milli:
                raise FleetError(f"GPU {share.uuid!r} has {free} milli free, {share.milli} are wanted")
        if not rows:
            raise FleetError(f"node {assignment.node!r} has no healthy GPU")
        have = self.room[:, rows[0]].tolist()
        wanted = (assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes)
        for name, has, wants in zip(("CPU", "memory", "disk"), have, wanted, strict=True):
            if has < wants:
                raise FleetError(f"node {assignment.node!r} has too little {name} free")


def _number(ids: dict[T, int], values: list[T], value: T) -> int:
    number = ids.setdefault(value, len(values))
    if number == len(values):
        values.append(value)
    return number
