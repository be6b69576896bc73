"""What the fabric costs a training: samples per second of one loop, on the fabric and by plain `torchrun`, in turns.

Both run as many ranks on the same cores with the same threads; each measures itself from a warm step to its last. The
fabric is an embedded one, started for the purpose, and idle while torchrun runs. Every run on the fabric stands between
two of torchrun and is compared with their mean, so that a machine that drifts does not decide; how far torchrun is from
itself, one run to the next, says what a ratio is worth. Ratios are comparable; absolute rates are not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

WIDTH, BATCH, WARM = 768, 64, 20
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="measured steps of each rank (default 200)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks (default 2)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="runs on the fabric, each between two of torchrun (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.steps)
        return
    figures = measure(arguments.steps, arguments.ranks, arguments.rounds)
    config = {"steps": arguments.steps, "ranks": arguments.ranks, "rounds": arguments.rounds, "cores": os.cpu_count()}
    if arguments.json:
        print(json.dumps({"name": "training", "config": config, "figures": figures}))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value:12.3f}")


def measure(steps: int, ranks: int, rounds: int) -> dict[str, float]:
    from benchmarks.run_overhead import embedded_fabric

    ours: list[float] = []
    loads: list[float] = []
    with embedded_fabric():
        theirs = [by_torchrun(steps, ranks)]
        for _ in range(rounds):
            ours.append(by_fabric(steps, ranks))
            loads.append(os.getloadavg()[0])
            theirs.append(by_torchrun(steps, ranks))
    return compared(ours, theirs) | {"load": statistics.median(loads)}


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The figures of rates; `theirs` has one more, and stands around `ours`."""
    ratios = [2 * one / (before + after) for one, before, after in zip(ours, theirs, theirs[1:], strict=False)]
    apart = [100 * abs(after / before - 1) for before, after in pairwise(theirs)]
    return {
        "samples_per_s": statistics.median(ours),
        "torchrun_samples_per_s": statistics.median(theirs),
        "vs_torchrun_ratio": statistics.median(ratios),
        "vs_torchrun_least_ratio": min(ratios),
        "vs_torchrun_most_ratio": max(ratios),
        "torchrun_vs_itself_pct": statistics.median(apart),
    }


def by_fabric(steps: int, ranks: int) -> float:
    import workloads

    return workloads.Training(loop, gpu=f"L4:{ranks}", quiet=True).run(steps).value


def by_torchrun(steps: int, ranks: int) -> float:
    threads = max(1, (os.cpu_count() or 1) // ranks)
    command = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m", "benchmarks.training"]
    done = subprocess.run(
        [sys.executable, *command, "--plain", f"--steps={steps}"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def loop(session: Any, steps: int) -> float:
    """On the fabric: with records, agreement of the ranks and checkpoints as they are by default."""
    return train(session.wrap, lambda loss: session.report(loss=loss, samples=BATCH), session.world_size, steps)


def plain(steps: int) -> None:
    """One rank below torchrun."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rate = train(torch.nn.parallel.DistributedDataParallel, lambda _: None, dist.get_world_size(), steps)
    if dist.get_rank() == 0:
        print(rate)
    dist.destroy_process_group()


def train(wrap: Callable[[Any], Any], report: Callable[[Any], None], ranks: int, steps: int) -> float:
    """Samples per second of all ranks."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()]
    model = wrap(torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 10)))
    optimizer = torch.optim.Adam(model.parameters())
    inputs, labels = torch.randn(BATCH, WIDTH), torch.randint(10, (BATCH,))
    began = time.perf_counter()
    for step in range(WARM + steps):
        if step == WARM:
            began = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        report(loss)
    return ranks * BATCH * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
