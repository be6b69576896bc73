"""What is likely to be asked for next, and therefore what free resources are worth.

The outlook counts the requests that have arrived and works out, for each GPU model, how much of a GPU with a free
share `f` random arrivals of that mix would come to fill, and how much CPU and memory they would bring along. A node's
worth is that sum over its GPUs, scaled down where CPU or memory would run out first, plus what its whole free GPUs
mean to requests for several at once. A placement costs what it takes from the worth of its node.

This goes beyond fragmentation as FGD measures it (Weng et al., USENIX ATC '23), which asks of each kind of task whether
one more of it fits: here a hole is worth what the *sequence* of arrivals would make of it, and a node short of CPU has
GPUs nobody can use. Models that many requests insist on are dearer than those that only serve requests that could go
anywhere.

It is fed by `Fleet.saw` and rebuilt at each doubling of what was seen, later every 4,096 arrivals, so that the same
arrivals in the same order always give the same outlook.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fabric.placement.grammar import WHOLE_MILLI, GpuSpec

if TYPE_CHECKING:
    from fabric.placement.fleet import Fleet
    from fabric.placement.inventory import Model
    from fabric.placement.request import Request

STEP_MILLI = 10
CELLS = WHOLE_MILLI // STEP_MILLI + 1

_HORIZON = 0.05  # the chance, per arrival, that a hole is not offered to anybody any more
_SCARCITY = 3.0  # milli of worth per milli of a model wanted once more than the least wanted one
_BALANCE = 8.0  # how strongly flexible requests are assumed to avoid crowded models
_PRIOR = 8  # weight, in arrivals, of the assumption that whole GPUs with their part of the node are asked for
_FIRST_BUILD = 16
_EVERY = 4096
_MEMORY = 16_384
_MOST_WISHES = 1024
_GRAIN = 1024  # table entries are multiples of 1/1024, so that their sums are exact in whatever order they are added

Table = npt.NDArray[np.float64]
Wish = tuple[GpuSpec, int, int]  # what matters of a request for what to leave free: GPUs, CPU (milli), memory (bytes)


@dataclass(frozen=True, slots=True)
class Tables:
    """What GPUs are worth; rows of `cell` are model · CELLS + free share / STEP_MILLI.

    Attributes:
        cell: per cell: expected milli-GPU filled, milli-cores and bytes that come along, 1 for a whole free GPU.
        gang: per model and number of whole free GPUs: expected milli-GPU for requests of several GPUs.
        scarcity: per model, worth of one milli-GPU beyond what it fills.
        scale: factor that brings what a node can lose within ±1.
        cuts: what packing has derived from these tables, by number and share of GPUs.
    """

    cell: Table
    gang: Table
    scarcity: Table
    scale: float
    cuts: dict[tuple[int, int], object] = field(default_factory=dict)


class Outlook:
    """The mix of arrivals and the tables that follow from it. `version` grows when the tables change."""

    def __init__(self) -> None:
        self.version = 0
        self._counts: dict[Wish, int] = {}
        self._mix: dict[Wish, int] = {}
        self._seen = 0
        self._build_at = _FIRST_BUILD
        self._models: list[Model] = []
        self._gpus: npt.NDArray[np.intp] = np.zeros(0, np.intp)
        self._prior = (0, 0)
        self._width = 8
        self._fleet_version = -1
        self._tables: Tables | None = None

    def saw(self, request: "Request") -> None:
        """Count one arrival; alternatives count as their first."""
        wish = (request.gpu.specs[0], request.cpu_milli, request.memory_bytes)
        self._counts[wish] = self._counts.get(wish, 0) + 1
        self._seen += 1
        if self._seen >= self._build_at:
            self._build_at = min(2 * self._build_at, self._build_at + _EVERY)
            self._forget()
            self._mix = dict(self._counts)
            self._outdate()

    def tables(self, fleet: "Fleet") -> Tables:
        """The tables for this fleet; worked out again only when the mix or the fleet has changed enough."""
        if self._fleet_version != fleet.version:
            self._fleet_version = fleet.version
            self._supply(fleet)
        if self._tables is None:
            self._tables = self._build()
        return self._tables

    def _supply(self, fleet: "Fleet") -> None:
        """Note how many GPUs of which models there are, unless they are within a twentieth of what was noted."""
        rows, width = fleet.rows, fleet.free.shape[0]
        gpus = np.bincount(fleet.model[:rows], fleet.size[:rows], minlength=len(fleet.models)).astype(np.intp)
        if (
            len(self._models) == len(gpus)
            and self._width == width
            and (abs(gpus - self._gpus) * 20 <= self._gpus).all()
        ):
            return
        whole = max(int(gpus.sum()), 1)
        totals = fleet.total[:2, :rows].astype(np.float64).sum(axis=1) / whole
        self._models, self._gpus, self._width = list(fleet.models), gpus, width
        self._prior = (int(totals[0]), int(totals[1]))
        self._outdate()

    def _outdate(self) -> None:
        self._tables = None
        self.version += 1

    def _forget(self) -> None:
        """Halve the past when it is long, and drop what is rarest when there is too much of it."""
        if sum(self._counts.values()) > _MEMORY:
            self._counts = {wish: count // 2 for wish, count in self._counts.items() if count > 1}
        if len(self._counts) > _MOST_WISHES:
            common = sorted(self._counts.items(), key=lambda item: -item[1])
            self._counts = dict(common[: _MOST_WISHES // 2])

    def _build(self) -> Tables:
        mix = [*self._mix.items(), ((GpuSpec(), *self._prior), _PRIOR)]
        share = np.array([count for _, count in mix], np.float64)
        share /= share.sum()
        wishes = [wish for wish, _ in mix]
        accepts = {
            spec: np.array([spec.accepts(one.vendor, one.name, one.memory_bytes) for one in self._models], np.bool_)
            for spec in {spec for spec, _, _ in wishes}
        }
        allowed = np.array([accepts[spec] for spec, _, _ in wishes], np.bool_).reshape(len(wishes), len(self._models))
        cell, gang = _cells(wishes, share, allowed), _gangs(wishes, share, allowed, self._width)
        most = self._width * WHOLE_MILLI * (2 + _SCARCITY)
        return Tables(cell, gang, self._scarcity(wishes, share, allowed), 1 / most)

    def _scarcity(self, wishes: list[Wish], share: Table, allowed: npt.NDArray[np.bool_]) -> Table:
        """How much more of each model is wanted than of the least wanted, when everybody flexible avoids crowds."""
        gpus = self._gpus
        wanted = share * np.array([spec.count_min * spec.milli for spec, _, _ in wishes], np.float64)
        masks, which = np.unique(allowed, axis=0, return_inverse=True)
        load = np.bincount(which.ravel(), wanted, minlength=len(masks))
        if not gpus.sum() or not load.sum() or masks.all():
            return np.zeros(gpus.size)
        load *= gpus.sum() / load.sum()
        pressure = np.ones(gpus.size)
        for _ in range(200):
            pull = masks * (gpus * np.exp(-_BALANCE * (pressure - 1)))
            split = load[:, None] * pull / np.maximum(pull.sum(axis=1, keepdims=True), 1e-300)
            pressure = 0.8 * pressure + 0.2 * split.sum(axis=0) / np.maximum(gpus, 1e-300) * (gpus > 0)
        there = gpus > 0
        return np.where(there, _SCARCITY * np.minimum(pressure - pressure[there].min(), 1), 0.0)


def _cells(wishes: list[Wish], share: Table, allowed: npt.NDArray[np.bool_]) -> Table:
    """Expected fill of a GPU with each free share: random arrivals take it until it is too small or time is up."""
    models = allowed.shape[1]
    weight = np.zeros((models, CELLS))
    brings = np.zeros((models, CELLS, 3))
    for (spec, cpu_milli, memory_bytes), part, mask in zip(wishes, share.tolist(), allowed, strict=True):
        if spec.count_min == 1:
            step = -(-spec.milli // STEP_MILLI)
            weight[mask, step] += part
            brings[mask, step] += part * np.array((spec.milli, cpu_milli, memory_bytes))
    cell = np.zeros((models, CELLS, 4))
    for free in range(1, CELLS):
        fitting = weight[:, 1 : free + 1]
        later = (fitting[:, :, None] * cell[:, free - 1 :: -1, :3][:, :free]).sum(axis=1)
        total = brings[:, 1 : free + 1].sum(axis=1) + later
        cell[:, free, :3] = total / (_HORIZON + fitting.sum(axis=1))[:, None]
    cell[:, CELLS - 1, 3] = 1.0
    cell = np.rint(cell * _GRAIN) / _GRAIN
    return cell.reshape(models * CELLS, 4)


def _gangs(wishes: list[Wish], share: Table, allowed: npt.NDArray[np.bool_], width: int) -> Table:
    gang = np.zeros((allowed.shape[1], width + 1))
    whole = np.arange(width + 1)
    for (spec, _, _), part, mask in zip(wishes, share.tolist(), allowed, strict=True):
        count = spec.count_min
        if count > 1:
            gang[mask] += part * (whole // count) * count * WHOLE_MILLI
    return gang
