"""What a training loop is given: its rank, the wrapped model, its batches, checkpoints, records, and when to stop."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fabric
from workloads.inference.weights import check_fit
from workloads.training import checkpoint, metrics
from workloads.training.group import Group, ranks_of
from workloads.training.plan import Plan

AGREE_S = 0.5
"""So often ranks agree whether to save or stop, and a record is made; rarer in a long training."""
_POINTS = ("wrap", "resume", "report", "save", "the end")
"""Where ranks meet. All bring a row of one length, so that those that are at another point can be told."""
_ROW = 8
RECORDS = 2000
"""A training has about so many records at most."""


class Session:
    """One rank's.

    Attributes:
        rank, world_size, local_rank, attempt: of this process.
        device: the rank's GPU, or the CPU.
        steps: optimiser steps done, those before the last checkpoint included.
        epoch: the epoch that `batches` is in.
        stopped: "" while the loop goes on as it wants; then why it must end.
    """

    def __init__(self, group: Group, plan: Plan, folder: Path, began: float) -> None:
        place = group.place
        self.rank, self.world_size = place.rank, place.world_size
        self.local_rank, self.attempt = place.local_rank, place.attempt
        self.device = torch.device("cuda", place.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.steps = self.epoch = 0
        self.stopped = ""
        self.records: list[dict[str, Any]] = []
        self._group = group
        self._plan = plan
        self._folder = folder
        self._parts: tuple[torch.nn.Module, torch.optim.Optimizer] | None = None
        self._others: dict[str, Any] = {}
        self._sharded = False
        self._stored: checkpoint.Stored | None = None
        self._offset = 0  # samples of this epoch that all ranks together have had
        self._batch = 0
        self._total: int | None = None
        self._elapsed_before = 0.0
        self._began = began
        self._begun_with = os.environ.get("FABRIC_CHECKPOINT", "")  # the run whose checkpoint this one began with
        self._saved_at = self._agreed_at = time.monotonic()
        self._agree_step = 1
        self._noticed = False
        self._sums = _Sums()
        self._ended = False
        group.whereabouts = self._whereabouts
        torch.manual_seed(plan.seed)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def elapsed_s(self) -> float:
        """Seconds in the lease, all attempts together, without what a lost one had done since its last checkpoint."""
        return self._elapsed_before + time.monotonic() - self._began

    def wrap(self, model: torch.nn.Module, *, sharded: bool = False) -> torch.nn.Module:
        """The model on the rank's device, its gradients averaged over the ranks.

        Args:
            model: of the same shape on every rank.
            sharded: split weights, gradients and optimiser over the ranks (FSDP) instead of a copy on each (DDP). Make
                the optimiser after this.

        Raises:
            fabric.InvalidRequest: a rank has another model, or it does not fit the GPU's free memory.
        """
        self._meet("wrap")
        shapes = {repr(name): tuple(value.shape) for name, value in model.named_parameters()}
        self._group.expect_same({"sharded": sharded} | shapes)
        if self.device.type == "cuda":
            check_fit(sum(value.nbytes for value in model.state_dict().values()), torch.cuda.mem_get_info()[0])
        model = model.to(self.device)
        self._sharded = sharded
        if sharded:
            return _shard(model, self.device.type, self.world_size)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise fabric.InvalidRequest("the model has no parameter that could be trained")
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **others: Any) -> bool:
        """From now on these are in the checkpoints; put the newest one back, if there is one. Every rank calls it.

        Args:
            model: what `wrap` returned.
            optimizer: of its parameters; not used yet.
            others: further objects with `state_dict` and `load_state_dict`, such as a schedule; what they keep is JSON.

        Returns:
            Whether there was one.

        Raises:
            fabric.InvalidRequest: it is of another model, or a rank names something else.
        """
        self._meet("resume")
        self._group.expect_same({"the optimiser": type(optimizer).__name__, "what resume() names": sorted(others)})
        self._parts, self._others = (model, optimizer), others
        stored = checkpoint.newest(self._folder) if self.rank == 0 else None
        stored = checkpoint.share(stored, self._group.control)
        if stored is None and self._begun_with:
            raise RuntimeError(
                f"the checkpoint of run {self._begun_with} is not here; it was not begun anew without it"
            )
        if stored is None:
            torch.manual_seed(self._plan.seed * 1_000_003 + self.rank)
            return False
        checkpoint.put_back(model, optimizer, stored, sharded=self._sharded)
        state = stored.state
        if others.keys() != state["others"].keys():
            raise fabric.InvalidRequest(
                f"the checkpoint is of another loop: resume() named {sorted(state['others'])} there and "
                f"{sorted(others)} here"
            )
        for name, other in others.items():
            other.load_state_dict(state["others"][name])
        self.steps, self.epoch, self._offset = state["steps"], state["epoch"], state["offset"]
        if state["begun_with"] == self._begun_with:  # else it is that other run's own
            self._elapsed_before = state["seconds"]
            self.attempt = max(self.attempt, state["attempt"] + 1)  # one node alone is not told of it
            self.records = list(state["records"])
        self._agree_step = self.steps + 1
        if state["world_size"] == self.world_size:
            checkpoint.set_random_state(stored, self.rank)
        return True

    def batches(self, samples: int, batch_size: int, epochs: int) -> Iterator[torch.Tensor]:
        """Indices of this rank's samples, batch by batch, from where the checkpoint left until the loop is to stop.

        Every epoch has an order of its own, the same on all ranks; each rank gets another part of it. What does not
        fill a batch on every rank is left out of that epoch.

        Args:
            samples: how many there are.
            batch_size: of one rank.
            epochs: how many times all samples are gone through.

        Raises:
            fabric.InvalidRequest: there are fewer samples than one batch on every rank takes.
        """
        whole = batch_size * self.world_size
        if batch_size < 1 or samples < whole:
            raise fabric.InvalidRequest(
                f"{samples} samples do not fill one batch of {batch_size} on each of {self.world_size} ranks"
            )
        self._total = (samples // whole) * epochs
        self._batch = batch_size
        while self.epoch < epochs:
            generator = torch.Generator().manual_seed(self._plan.seed * 7919 + self.epoch)
            order = torch.randperm(samples, generator=generator)
            while self._offset + whole <= samples:
                if self.stopped:
                    return
                begin = self._offset + self.rank * batch_size
                self._offset += whole
                yield order[begin : begin + batch_size]
            self.epoch, self._offset = self.epoch + 1, 0

    def report(self, *, loss: Any = None, samples: int | None = None, tokens: int = 0) -> None:
        """One optimiser step is done; every rank calls it after each of its steps.

        Args:
            loss: of this rank, a number or a tensor; it is read only now and then.
            samples: of this rank in this step; those of the last batch unless given.
            tokens: likewise, where they count.
        """
        self.steps += 1
        self._sums.add(loss, self._batch if samples is None else samples, tokens)
        if self.steps >= self._agree_step:
            self._agree()

    def save(self) -> None:
        """Store a checkpoint now; every rank calls it at the same step."""
        if self._parts is None:
            raise fabric.InvalidRequest("there is nothing to save: call session.resume(model, optimizer) first")
        self._meet("save")
        random = checkpoint.random_state(self._group.control)
        tensors, scalars = {}, {}
        if self._sharded or self.rank == 0:
            tensors, scalars = checkpoint.gather(*self._parts, sharded=self._sharded)
        if self.rank == 0:
            state = {
                "steps": self.steps,
                "epoch": self.epoch,
                "offset": self._offset,
                "begun_with": self._begun_with,
                "seconds": self.elapsed_s,
                "attempt": self.attempt,
                "world_size": self.world_size,
                "records": self.records,
                "scalars": scalars,
                "others": {name: other.state_dict() for name, other in self._others.items()},
            }
            checkpoint.write(self._folder, self.steps, checkpoint.Stored({**tensors, **random}, state))
            fabric.checkpoint()
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """All ranks have come to the end of the loop; the last record."""
        self._ended = True
        self._meet("the end")
        if self._sums.steps:
            self._agree(last=True)

    def _agree(self, *, last: bool = False) -> None:
        now = time.monotonic()
        seconds, steps = max(now - self._agreed_at, 1e-9), max(1, self._sums.steps)
        wish = self._wishes(now) if not last else (0.0, 0.0, 0.0)
        next_in = max(1.0, self._interval_s() / (seconds / steps)) if self.rank == 0 else 0.0
        loss, counted = self._sums.loss()
        every = self._meet("report", *wish, int(next_in), self._sums.samples, self._sums.tokens, loss, counted)
        save, stop, notice, next_in, samples, tokens, loss, counted = map(sum, zip(*every, strict=True))
        if self.rank == 0:
            _count(int(samples), int(tokens))
            self._record(seconds, samples, tokens, loss / counted if counted else None)
        self._sums = _Sums()
        self._agreed_at = now
        self._agree_step = self.steps + int(next_in)
        stops = bool(stop) and not self.stopped
        if stops:
            self.stopped = self._plan.stopped_by
        if self._parts is not None and (save or notice or stops):
            self.save()
            self._agreed_at = time.monotonic()

    def _meet(self, where: str, *row: float) -> list[list[float]]:
        """What each rank brings to the same point of its loop, by rank.

        Raises:
            fabric.InvalidRequest: some are at another one; names them.
        """
        every = self._group.gather([float(_POINTS.index(where)), float(self.steps), *row, *[0.0] * (_ROW - len(row))])
        at: dict[tuple[int, int], list[int]] = {}
        for rank, (point, steps, *_) in enumerate(every):
            at.setdefault((int(point), int(steps)), []).append(rank)
        if len(at) > 1:
            told = (
                f"{ranks_of(ranks, self.world_size)} at `{_POINTS[point]}` (step {steps})"
                for (point, steps), ranks in at.items()
            )
            raise fabric.InvalidRequest(f"the ranks disagree: {', '.join(told)}")
        return [one[2 : 2 + len(row)] for one in every]

    def _whereabouts(self) -> str:
        return f"at {'the end of its loop, ' if self._ended else ''}step {self.steps}"

    def _wishes(self, now: float) -> tuple[float, float, float]:
        """(save, stop, save because this lease is about to end) as this rank sees it."""
        notice = fabric.preempting() and not self._noticed
        self._noticed = self._noticed or notice
        if self.rank:
            return 0.0, 0.0, float(notice)
        over = bool(self._plan.limit_s) and self.elapsed_s >= self._plan.limit_s
        return float(now - self._saved_at >= self._plan.checkpoint_every_s), float(over), float(notice)

    def _interval_s(self) -> float:
        return max(AGREE_S, self.elapsed_s / RECORDS)

    def _record(self, seconds: float, samples: float, tokens: float, loss: float | None) -> None:
        record = {
            "step": self.steps,
            "epoch": self.epoch,
            "loss": loss,
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "seconds": self.elapsed_s,
            "attempt": self.attempt,
        }
        self.records.append(record)
        print(metrics.to_line(record), flush=True)  # noqa: T201 - the run's output is how a record reaches the caller
        fabric.progress(self.steps, self._total)


class _Sums:
    """Since the last record."""

    def __init__(self) -> None:
        self.steps = 0
        self.samples = 0
        self.tokens = 0
        self._losses = 0
        self._loss: Any = 0.0

    def add(self, loss: Any, samples: int, tokens: int) -> None:
        self.steps += 1
        self.samples += samples
        self.tokens += tokens
        if loss is not None:
            self._losses += 1
            self._loss = self._loss + (loss.detach() if torch.is_tensor(loss) else loss)

    def loss(self) -> tuple[float, float]:
        """(sum, number)."""
        return float(self._loss), float(self._losses)


def _count(samples: int, tokens: int) -> None:
    """Of all ranks, for the receipt of rank 0's lease."""
    fabric.count(samples=samples, **({"tokens": tokens} if tokens else {}))


def _shard(model: torch.nn.Module, kind: str, world_size: int) -> torch.nn.Module:
    """Each block of a list of blocks by itself, as FSDP wants it, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(kind, (world_size,))
    for module in list(model.modules()):
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def limit_threads(neighbours: int) -> None:
    """Ranks that compute on the CPU share the cores of their machine."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
