"""What the demo runs: one training with its output streamed, then a sweep of settings over every type of GPU."""

import contextlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import fabric
from workloads.demo.digits import Trained, train
from workloads.demo.stage import Stage

HIDDEN = (32, 128)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)


FIRST_LOOK = "first look"


@dataclass(frozen=True)
class Work:
    """What ran, and what it found: `results` by the name of the run."""

    models: tuple[str, ...]
    simulated: bool
    results: dict[str, tuple[Trained, ...]]


def run_all(stage: Stage, between: Callable[[], None]) -> Work:
    """Run everything through the SDK's public names; call ``between`` after the first task."""
    offers = fabric.offers()
    models = tuple(dict.fromkeys(offer.model for offer in offers))
    simulated = any(offer.simulated for offer in offers)
    if simulated:
        stage.say(f"no NVIDIA GPU here: these are simulated and marked so everywhere: {', '.join(models)}")
    results: dict[str, tuple[Trained, ...]] = {}
    with contextlib.redirect_stdout(sys.stderr):
        results[FIRST_LOOK] = (fabric.run(train, 64, 3e-3, gpu=models[0], name=FIRST_LOOK),)
        between()
        for model in models:
            name = f"sweep on {model}"
            grid = list(itertools.product(HIDDEN, LEARNING_RATES))
            results[name] = tuple(fabric.map(_train_one, grid, gpu=model, max_parallel=2, name=name))
    return Work(models, simulated, results)


def _train_one(setting: tuple[int, float]) -> Trained:
    return train(*setting)
