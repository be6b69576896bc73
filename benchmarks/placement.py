"""How much of a cluster each placement policy fills, how fast ours decides, and how long pods wait for room.

Three modes. `arrivals` is the published method (Weng et al., USENIX ATC '23): all pods of the workload and pods drawn
from it with replacement until 130 % of the cluster's GPUs are asked for, shuffled by the seed, placed one by one, none
leaving. `departures` replays creations and deletions at the trace's times; a pod that finds no room waits in the
product's queue. `--fleet` measures only speed, on a made-up fleet as large as you like.

`python -m benchmarks.placement [--nodes FILE --pods FILE] [--policy P] [--seeds 42-51] [--json]`
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.alibaba import Pod, TraceError, TraceNode, inflate, read_nodes, read_pods
from benchmarks.packers import BestFitPacker, FabricPacker, FgdPacker, Packer, RandomPacker
from benchmarks.replay import replay
from benchmarks.yardstick import large_fleet_arrivals, large_fleet_packer

DATA = Path(__file__).parent / "data"
LEVELS = (80, 90, 100, 110, 120, 130)
POLICIES = ("random", "best_fit", "fgd", "fabric")


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 2 when a file or an argument is wrong."""
    options = _options(arguments)
    try:
        report = _report(options)
    except (TraceError, OSError, ValueError) as error:
        print(f"benchmarks.placement: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report) if options.json else _table(report))
    return 0


def seeds_of(text: str) -> list[int]:
    """The seeds that "42", "42-51" or "42,45" name.

    Raises:
        ValueError: anything else.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()) or int(last) < int(first):
            raise ValueError(f"--seeds is {text!r}; allowed: 42, 42-51 or 42,45")
        seeds += range(int(first), int(last) + 1)
    return seeds


class Stopwatch:
    """Seconds that each decision took, on the wall and of this thread's processor time.

    On a machine that others use as well only the second says what a decision costs.
    """

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.cpu_s.append(time.thread_time() - self._start[1])
        self.wall_s.append(time.perf_counter() - self._start[0])

    def figures(self) -> dict[str, float]:
        """A decision is noting the arrival, deciding with its explanation, and booking the lease."""
        wall, cpu = sorted(self.wall_s), sorted(self.cpu_s)
        return {
            "decisions_per_s": round(len(wall) / sum(wall)),
            "decision_p50_ms": round(1000 * wall[len(wall) // 2], 4),
            "decision_p99_ms": round(1000 * wall[len(wall) * 99 // 100], 4),
            "decisions_per_cpu_s": round(len(cpu) / sum(cpu)),
            "decision_cpu_p99_ms": round(1000 * cpu[len(cpu) * 99 // 100], 4),
        }


def allocation(nodes: list[TraceNode], arrivals: list[Pod], packer: Packer, watch: Stopwatch) -> dict[str, float]:
    """Percent of GPU-milli allocated when 80, 90, … 130 % have been asked for."""
    capacity = sum(node.gpus for node in nodes) * 1000
    asked = held = 0
    levels, reached = list(LEVELS), {}
    for index, pod in enumerate(arrivals):
        with watch:
            placed = packer.arrive(str(index), pod)
        asked += pod.gpu_milli
        held += pod.gpu_milli if placed else 0
        while levels and asked * 100 >= capacity * levels[0]:
            reached[str(levels.pop(0))] = 100 * held / capacity
    return reached


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=Path, default=DATA / "alibaba_nodes.csv", help="nodes, Alibaba 2023 format")
    parser.add_argument("--pods", type=Path, default=DATA / "alibaba_pods.csv", help="pods, Alibaba 2023 format")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="repeat for several; default: all")
    parser.add_argument("--seeds", default="42", help="42, 42-51 or 42,45")
    parser.add_argument("--mode", choices=("arrivals", "departures"), default="arrivals")
    parser.add_argument("--speedup", type=float, default=1.0, help="departures: pods arrive so many times faster")
    parser.add_argument("--fleet", type=int, metavar="GPUS", help="only the speed on a fleet of so many GPUs")
    parser.add_argument("--decisions", type=int, default=10_000, help="how many of them with --fleet")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    return parser.parse_args(arguments)


def _report(options: argparse.Namespace) -> dict[str, object]:
    seeds = seeds_of(options.seeds)
    if options.fleet is not None:
        for name in ("fleet", "decisions"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name} is {getattr(options, name)}; at least 1")
        return _large_fleet(options.fleet, options.decisions, seeds[0])
    nodes, pods = read_nodes(options.nodes), read_pods(options.pods)
    policies: list[str] = options.policy or list(POLICIES)
    config = {"nodes": options.nodes.name, "pods": options.pods.name, "seeds": seeds, "mode": options.mode}
    if options.mode == "departures":
        config["speedup"] = options.speedup
        packers = {name: _packer(name, nodes, pods, seeds[0]) for name in policies}
        waits = {name: replay(nodes, pods, packer(), options.speedup) for name, packer in packers.items()}
        return {"name": "placement", "config": config, "figures": {"replay": waits}}
    return {"name": "placement", "config": config, "figures": _filled(nodes, pods, policies, seeds)}


def _filled(nodes: list[TraceNode], pods: list[Pod], policies: list[str], seeds: list[int]) -> dict[str, object]:
    capacity = sum(node.gpus for node in nodes) * 1000
    filled: dict[str, object] = {}
    speed: dict[str, float] = {}
    for name in policies:
        watch = Stopwatch()
        runs = [
            allocation(nodes, inflate(pods, capacity, seed), _packer(name, nodes, pods, seed)(), watch)
            for seed in seeds
        ]
        filled[name] = {level: round(statistics.mean(run[level] for run in runs), 3) for level in map(str, LEVELS)}
        if name == "fabric":
            speed = watch.figures()
    return {"alloc_pct": filled, **speed}


def _packer(name: str, nodes: list[TraceNode], pods: list[Pod], seed: int) -> Callable[[], Packer]:
    makers: dict[str, Callable[[], Packer]] = {
        "random": lambda: RandomPacker(nodes, seed),
        "best_fit": lambda: BestFitPacker(nodes),
        "fgd": lambda: FgdPacker(nodes, seed, pods),
        "fabric": lambda: FabricPacker(nodes, pods),
    }
    return makers[name]


def _large_fleet(gpus: int, decisions: int, seed: int) -> dict[str, object]:
    packer = large_fleet_packer(gpus, seed)
    watch = Stopwatch()
    for index, request in enumerate(large_fleet_arrivals(decisions, seed)):
        with watch:
            packer.ask(str(index), request)
    config = {"gpus": gpus, "nodes": len(packer.fleet.nodes), "decisions": decisions, "seed": seed}
    return {"name": "placement", "config": config, "figures": watch.figures()}


def _table(report: dict[str, object]) -> str:
    figures = report["figures"]
    if not isinstance(figures, dict):
        raise TypeError("figures are a table")
    lines = [f"{key}: {value}" for key, value in figures.items() if not isinstance(value, dict)]
    for title, rows in ((key, value) for key, value in figures.items() if isinstance(value, dict)):
        columns = list(next(iter(rows.values())))
        lines.append(f"{title:16}" + "".join(f"{column:>14}" for column in columns))
        for name, row in rows.items():
            lines.append(f"{name:16}" + "".join(f"{row[column]:>14.2f}" for column in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
