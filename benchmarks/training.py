"""What the fabric costs a training: samples per second of one loop, on the fabric and by plain `torchrun`, in turns.

Both run as many ranks on the same cores with the same threads; each measures itself from a warm step to its last. The
fabric is an embedded one, started for the purpose. Ratios of one run are comparable; absolute rates are not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WIDTH, BATCH, WARM = 768, 64, 20
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="measured steps of each rank (default 400)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks (default 2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of both, in turns (default 3)")
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
    theirs: list[float] = []
    with embedded_fabric():
        for _ in range(rounds):
            theirs.append(by_torchrun(steps, ranks))
            ours.append(by_fabric(steps, ranks))
    return {
        "samples_per_s": statistics.median(ours),
        "torchrun_samples_per_s": statistics.median(theirs),
        "vs_torchrun_ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
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
