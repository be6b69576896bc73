"""A training's state on disk: weights and optimiser as safetensors, the rest as JSON; whole or not there.

Rank 0 writes and reads; what it reads it sends to the others, so that only its folder has to come along.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import fabric

TENSORS, STATE = "tensors.safetensors", "state.json"
_WHOLE: dict[str, Any] = {"full_state_dict": True, "ignore_frozen_params": True, "strict": False}
_MODEL, _OPTIMIZER, _RANDOM = "model/", "optimizer/", "random/"


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint. `tensors` by name, `state` as JSON has it."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def gather(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, sharded: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, scalars) of both as one unsharded whole; rank 0 gets it, and every rank must call it where sharded.

    Frozen parameters are left out: they are as the loop made them, and an adapter's checkpoint stays as small as it is.
    """
    if sharded:
        weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True, **_WHOLE))
    else:
        frozen = {name for name, value in _bare(model).named_parameters() if not value.requires_grad}
        weights = {name: value for name, value in _bare(model).state_dict().items() if name not in frozen}
        moments = optimizer.state_dict()
    state: Any = moments.get("state", {})
    named = {_MODEL + name: value for name, value in weights.items()}
    named |= {f"{_OPTIMIZER}{key}/{name}": value for key, part in state.items() for name, value in part.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in named.items() if torch.is_tensor(value)}
    scalars = {name: value for name, value in named.items() if name not in tensors}
    return _apart(tensors), {
        "optimizer": type(optimizer).__name__,
        "values": scalars,
        "groups": moments.get("param_groups", []),
    }


def put_back(model: torch.nn.Module, optimizer: torch.optim.Optimizer, stored: Stored, *, sharded: bool) -> None:
    """Load into both, on every rank.

    Raises:
        fabric.InvalidRequest: they are of another shape than what was stored; names the first difference.
    """
    check_shapes(model, stored.tensors)
    scalars = stored.state["scalars"]
    if scalars["optimizer"] != (kind := type(optimizer).__name__):
        raise fabric.InvalidRequest(
            f"the checkpoint is of another optimiser: {scalars['optimizer']} there, {kind} here"
        )
    whole = {**stored.tensors, **scalars["values"]}
    weights = {name.removeprefix(_MODEL): value for name, value in whole.items() if name.startswith(_MODEL)}
    moments = {"state": _moments(whole), "param_groups": [_untupled(group) for group in scalars["groups"]]}
    if not sharded:
        _bare(model).load_state_dict(weights, strict=False)
        optimizer.load_state_dict(moments)
        return
    options = StateDictOptions(**_WHOLE)
    set_model_state_dict(model, weights, options=options)
    if moments["state"]:
        set_optimizer_state_dict(model, optimizer, moments, options=options)


def check_shapes(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises fabric.InvalidRequest when a checkpoint belongs to another model; names the first difference."""
    learnt = {name for name, value in _bare(model).named_parameters() if value.requires_grad}
    now = {name: tuple(value.shape) for name, value in _bare(model).state_dict().items() if torch.is_tensor(value)}
    then = {name.removeprefix(_MODEL): tuple(t.shape) for name, t in tensors.items() if name.startswith(_MODEL)}
    for name in now | then:
        if name not in then and name not in learnt:
            continue  # frozen: it is as the loop made it
        there, here = (shapes.get(name, "missing") for shapes in (then, now))
        if there != here:
            raise fabric.InvalidRequest(
                f"the checkpoint is of another model: {name!r} is {there} there and {here} here; "
                "begin a new run, or give the model the shape it had"
            )


def write(folder: Path, step: int, stored: Stored) -> None:
    """Keep it as the newest one; those before it go once it is whole."""
    target = folder / f"step-{step:012d}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    save_file(stored.tensors, target / TENSORS)
    part = target / (STATE + ".part")
    part.write_text(json.dumps(stored.state), encoding="utf-8")
    part.replace(target / STATE)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other)


def newest(folder: Path) -> Stored | None:
    """The newest whole one; None when there is none."""
    for target in sorted(folder.glob("step-*"), reverse=True):
        if (target / STATE).exists():
            state = json.loads((target / STATE).read_text(encoding="utf-8"))
            return Stored(load_file(target / TENSORS), state)
    return None


def share(stored: Stored | None, group: Any) -> Stored | None:
    """What rank 0 has, on every rank; `group` carries tensors of the CPU."""
    if dist.get_world_size(group) == 1:
        return stored
    index = None if stored is None else {name: (t.dtype, t.shape) for name, t in stored.tensors.items()}
    told: list[Any] = [None if stored is None else stored.state, index]
    dist.broadcast_object_list(told, src=0, group=group)
    state, index = told
    if index is None:
        return None
    tensors = {} if stored is None else stored.tensors
    for name, (dtype, shape) in index.items():
        if stored is None:
            tensors[name] = torch.empty(shape, dtype=dtype)
        dist.broadcast(tensors[name], src=0, group=group)
    return Stored(tensors, state)


def random_state(group: Any) -> dict[str, torch.Tensor]:
    """Each rank's random numbers to come, by rank, so that a resumed loop draws what the undisturbed one would."""
    own = torch.get_rng_state()
    if torch.cuda.is_available():
        own = torch.cat([own, torch.cuda.get_rng_state()])
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return {f"{_RANDOM}{rank}": one for rank, one in enumerate(every)}


def set_random_state(stored: Stored, rank: int) -> None:
    """Take up this rank's; one that a smaller training did not have keeps its own."""
    state = stored.tensors.get(f"{_RANDOM}{rank}")
    if state is None:
        return
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if torch.cuda.is_available() and state.numel() > size:
        torch.cuda.set_rng_state(state[size:])


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """Without what DDP puts around it."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _moments(whole: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """An optimiser's state, by the number or the name of a parameter."""
    state: dict[int | str, dict[str, Any]] = {}
    for name, value in whole.items():
        if name.startswith(_OPTIMIZER):
            key, _, what = name.removeprefix(_OPTIMIZER).rpartition("/")
            state.setdefault(int(key) if key.isdigit() else key, {})[what] = value
    return state


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Safetensors stores no two names of the same memory (tied weights): each gets its own."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _untupled(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; Adam's `betas` are one, a group's `params` are a list."""
    return {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
