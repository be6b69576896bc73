"""The fleet as placement sees it: who has which GPUs, what is free, what spot leases could give way.

It is told what happened (`upsert_node`, `remove_node`, `take`, `release`) and keeps it in columns, so that a lease or a
release touches only the rows it concerns. It decides nothing and stores nothing; the control plane's database is the
truth, from which a fleet is rebuilt.

A **row** is the GPUs of one node that are alike in everything a price or a request can tell apart (`Kind`). Most nodes
are one row; a node with two models, or with some GPUs inside a sold slot, has several, which share its CPU and memory.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from fabric.placement.grammar import WHOLE_MILLI
from fabric.placement.inventory import Assignment, Gpu, GpuShare, Held, Kind, Node, Profile
from fabric.placement.request import Tier

__all__ = ["Assignment", "Fleet", "FleetError", "Gpu", "GpuShare", "Held", "Kind", "Node", "Profile"]

T = TypeVar("T")


class FleetError(ValueError):
    """The fleet was told something impossible: an unknown node, a GPU that is not free, a lease held twice."""


@dataclass
class _Residents:
    """The leases on one node, so that an eviction or a removed node finds them."""

    leases: set[str] = field(default_factory=set)


class Fleet:
    """Every row of every node, in columns. One writer; not safe for threads.

    `version` grows with every change of what nodes are; `changes` lists the rows whose free resources have changed
    since then, so that whoever caches something per row can follow (see `place`).
    """

    def __init__(self) -> None:
        self.version = 0
        self.changes: list[int] = []
        self.kinds: list[Kind] = []
        self.profiles: list[Profile] = []
        self.nodes: dict[str, Node] = {}
        self.leases: dict[str, Held] = {}
        self.memo: dict[object, object] = {}
        self._kind_ids: dict[Kind, int] = {}
        self._profile_ids: dict[Profile, int] = {}
        self._rows_of: dict[str, list[int]] = {}
        self._seat: dict[str, tuple[int, int]] = {}
        self._residents: dict[str, _Residents] = {}
        self._vacant: list[int] = []
        self.rows = 0
        self._allocate(rows=64, width=8)

    def upsert_node(self, node: Node) -> None:
        """Add a node or replace what is known of it; leases on it stay.

        Raises:
            FleetError: one of its GPUs is another node's, or a lease on it holds a GPU that it no longer has.
        """
        self._check_owner(node)
        self._drop_rows(node.name)
        self.nodes[node.name] = node
        self._add_rows(node)
        for lease in sorted(self._residents.setdefault(node.name, _Residents()).leases):
            held = self.leases[lease]
            for assignment in held.assignments:
                if assignment.node == node.name:
                    self._move(assignment, held.tier, sign=-1, strict=False)
        self._restructured()

    def remove_node(self, name: str) -> tuple[str, ...]:
        """Forget a node and every lease that had a part on it; returns those leases.

        Raises:
            FleetError: no such node.
        """
        if name not in self.nodes:
            raise FleetError(f"no node {name!r} in the fleet")
        lost = tuple(sorted(self._residents[name].leases))
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
                self._move(assignment, held.tier, sign=-1, strict=True)
            except FleetError:
                for done in held.assignments[:index]:
                    self._move(done, held.tier, sign=1, strict=False)
                raise
        self.leases[held.lease] = held
        for assignment in held.assignments:
            self._residents[assignment.node].leases.add(held.lease)

    def release(self, lease: str) -> Held:
        """Give everything of a lease back; returns what it held.

        Raises:
            FleetError: no such lease.
        """
        held = self.leases.pop(lease, None)
        if held is None:
            raise FleetError(f"no lease {lease!r} in the fleet")
        for assignment in held.assignments:
            self._residents[assignment.node].leases.discard(lease)
            self._move(assignment, held.tier, sign=1, strict=False)
        return held

    def checkpointed(self, lease: str, safe_ms: int) -> None:
        """Note that the lease's work up to `safe_ms` is stored.

        Raises:
            FleetError: no such lease.
        """
        held = self.leases.get(lease)
        if held is None:
            raise FleetError(f"no lease {lease!r} in the fleet")
        self.leases[lease] = Held(held.lease, held.tier, held.assignments, safe_ms, held.until_ms)

    def used(self, uuid: str, gpu_ms: int) -> None:
        """Note a GPU's paid time in this epoch; of equal GPUs the least used is taken first."""
        row, column = self._seat[uuid]
        self.used_gpu_ms[row, column] = gpu_ms
        self.tracks_use = True

    def leases_on(self, node: str) -> tuple[Held, ...]:
        """Every lease with a part on the node, by name."""
        return tuple(self.leases[lease] for lease in sorted(self._residents[node].leases))

    def seat(self, uuid: str) -> tuple[int, int] | None:
        """Row and column of a GPU; None when it is not offered."""
        return self._seat.get(uuid)

    def uuid_at(self, row: int, column: int) -> str:
        return self._uuids[row][column]

    def node_at(self, row: int) -> Node:
        return self.nodes[self._names[row]]

    def rows_of(self, node: str) -> tuple[int, ...]:
        """The node's rows; empty for an unknown node."""
        return tuple(self._rows_of.get(node, ()))

    def _allocate(self, rows: int, width: int) -> None:
        self.kind = np.zeros(rows, np.int32)
        self.profile = np.zeros(rows, np.int32)
        self.alive = np.zeros(rows, np.bool_)
        self.size = np.zeros(rows, np.int64)
        self.free = np.zeros((rows, width), np.int64)
        self.spot = np.zeros((rows, width), np.int64)
        self.used_gpu_ms = np.zeros((rows, width), np.int64)
        self.room = np.zeros((rows, 3), np.int64)
        self.spot_room = np.zeros((rows, 3), np.int64)
        self.total = np.zeros((rows, 3), np.int64)
        self.tracks_use = False
        self._names: list[str] = [""] * rows
        self._uuids: list[tuple[str, ...]] = [()] * rows

    def _grow(self, rows: int, width: int) -> None:
        old_rows, old_width = self.free.shape
        old = dict(vars(self))
        self._allocate(max(rows, old_rows), max(width, old_width))
        for name, value in old.items():
            if isinstance(value, np.ndarray):
                new = getattr(self, name)
                new[tuple(slice(0, length) for length in value.shape)] = value
        self._names[:old_rows] = old["_names"]
        self._uuids[:old_rows] = old["_uuids"]
        self.tracks_use = old["tracks_use"]

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
            self.size[row] = 0
            self.free[row] = self.spot[row] = self.used_gpu_ms[row] = 0
            self.room[row] = self.spot_room[row] = self.total[row] = 0
            self._uuids[row], self._names[row] = (), ""
            self._vacant.append(row)

    def _add_rows(self, node: Node) -> None:
        groups: dict[Kind, list[Gpu]] = {}
        for gpu in node.gpus:
            if gpu.healthy:
                groups.setdefault(_kind_of(gpu), []).append(gpu)
        if not node.gpus:
            groups[_NO_KIND] = []
        self._rows_of[node.name] = [self._add_row(node, kind, gpus) for kind, gpus in groups.items()]

    def _add_row(self, node: Node, kind: Kind, gpus: list[Gpu]) -> int:
        row = self._vacant.pop() if self._vacant else self.rows
        self.rows = max(self.rows, row + 1)
        if self.rows > self.alive.size or len(gpus) > self.free.shape[1]:
            self._grow(2 * self.rows, len(gpus))
        self.kind[row] = _number(self._kind_ids, self.kinds, kind)
        self.profile[row] = _number(self._profile_ids, self.profiles, _profile_of(node))
        self.alive[row] = True
        self.size[row] = len(gpus)
        self.free[row, : len(gpus)] = WHOLE_MILLI
        self.total[row] = self.room[row] = (node.cpu_milli, node.memory_bytes, node.disk_bytes)
        self._names[row], self._uuids[row] = node.name, tuple(gpu.uuid for gpu in gpus)
        for column, gpu in enumerate(gpus):
            self._seat[gpu.uuid] = (row, column)
            self.used_gpu_ms[row, column] = gpu.used_gpu_ms
            self.tracks_use |= gpu.used_gpu_ms > 0
        return row

    def _restructured(self) -> None:
        self.version += 1
        self.changes.clear()
        self.memo.clear()

    def _move(self, assignment: Assignment, tier: Tier, *, sign: int, strict: bool) -> None:
        rows = self._rows_of.get(assignment.node)
        if rows is None:
            raise FleetError(f"no node {assignment.node!r} in the fleet")
        wanted = (assignment.cpu_milli, assignment.memory_bytes, assignment.disk_bytes)
        if strict:
            self._check_free(assignment, rows, wanted)
        for share in assignment.gpus:
            seat = self._seat.get(share.uuid)
            if seat is None:  # it was withdrawn or fell ill while leased
                continue
            self.free[seat] += sign * share.milli
            if tier == "spot":
                self.spot[seat] -= sign * share.milli
        for row in rows:
            for index in range(3):
                self.room[row, index] += sign * wanted[index]
                if tier == "spot":
                    self.spot_room[row, index] -= sign * wanted[index]
        self.changes.extend(rows)

    def _check_free(self, assignment: Assignment, rows: list[int], wanted: tuple[int, int, int]) -> None:
        for share in assignment.gpus:
            seat = self._seat.get(share.uuid)
            if seat is None or seat[0] not in rows:
                raise FleetError(f"node {assignment.node!r} does not offer GPU {share.uuid!r}")
            if self.free[seat] < share.milli:
                raise FleetError(f"GPU {share.uuid!r} has {self.free[seat]} milli free, {share.milli} are wanted")
        for row in rows[:1]:
            for index, name in enumerate(("CPU", "memory", "disk")):
                if self.room[row, index] < wanted[index]:
                    raise FleetError(f"node {assignment.node!r} has too little {name} free")


_NO_KIND = Kind("", "", 0, (), (), 0, simulated=False, slot="", ends_at_ms=None)


def _kind_of(gpu: Gpu) -> Kind:
    prices = tuple(sorted(gpu.prices_dc_per_gpu_hour.items()))
    shares = tuple(sorted(gpu.shares_milli))
    return Kind(
        gpu.vendor,
        gpu.model,
        gpu.memory_bytes,
        prices,
        shares,
        gpu.share_step_milli,
        gpu.simulated,
        gpu.slot,
        gpu.ends_at_ms,
    )


def _profile_of(node: Node) -> Profile:
    return Profile(
        node.operator,
        node.cluster,
        node.region,
        node.reputation,
        node.verification,
        node.interconnects,
        node.pythons,
        node.capabilities,
    )


def _number(ids: dict[T, int], values: list[T], value: T) -> int:
    number = ids.setdefault(value, len(values))
    if number == len(values):
        values.append(value)
    return number
