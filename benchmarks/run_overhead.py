"""What the fabric adds to a task, beside Ray itself on the same cluster in the same run.

Starts an embedded fabric of its own, measures `fabric.run` of a no-op (cold and on a warm lease) and `fabric.map` of
many small tasks, and on the very same Ray cluster a plain task, an actor call, and a task through Ray Client. Ratios of
one run are comparable; absolute times on a shared machine are not.

With `--ways` also the no-op on every way to the gateway, to a node on the agent's machine (`local`) and as to one on
another machine (`other`: over TCP through the agent), with and without a sandbox: a small fabric each, no Ray in it.
"""

import argparse
import contextlib
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx

from benchmarks.small_fabric import PLACES, WAYS, small_fabric

ROUNDS = 5
ISOLATIONS = ("none", "bubblewrap")
WARM_UP_TASKS = 200


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_overhead", description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="no-op calls per way of calling (default 300)")
    parser.add_argument("--cold", type=int, default=5, help="cold leases (default 5)")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks per map (default 10000)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds of the map (default 5)")
    parser.add_argument("--isolation", choices=ISOLATIONS, default="none", help="of the tasks' child")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=[], help="also the table of these ways")
    parser.add_argument("--places", nargs="+", choices=PLACES[1:], default=list(PLACES[1:]), help="of the table's node")
    parser.add_argument("--isolations", nargs="+", choices=ISOLATIONS, default=list(ISOLATIONS), help="in the table")
    parser.add_argument("--only-ways", action="store_true", help="the table alone, without Ray beside it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    os.environ["FABRIC_ISOLATION"] = arguments.isolation
    figures: dict[str, float] = {}
    if not arguments.only_ways:
        with embedded_fabric() as fabric_here:
            figures |= measure(fabric_here, arguments)
    figures |= way_figures(arguments)
    report = {"name": "run_overhead", "config": vars(arguments) | {"cores": os.cpu_count()}, "figures": figures}
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in figures.items():
            print(f"{name:44} {value:12.3f}")


@dataclass(frozen=True)
class FabricHere:
    """The embedded fabric under test: where it answers, and the Ray cluster behind it."""

    url: str
    api_key: str
    ray_address: str
    ray_token_file: Path

    def finished_tasks(self) -> int:
        """Tasks of the newest run whose receipts the control plane has accepted."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        newest = httpx.get(f"{self.url}/v1/runs", params={"limit": 1}, headers=headers).raise_for_status().json()
        return newest["runs"][0]["tasks"]["done"]


@contextlib.contextmanager
def embedded_fabric() -> Iterator[FabricHere]:
    """An embedded fabric in a state directory of its own, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder:
        home = Path(folder)
        os.environ["FABRIC_HOME"] = folder
        os.environ["FABRIC_QUIET"] = "1"
        fabric_cli("up")
        try:
            yield FabricHere(
                url=json.loads((home / "fabric.json").read_text())["url"],
                api_key=(home / "api.key").read_text().strip(),
                ray_address=json.loads((home / "agent" / "config.json").read_text())["ray_address"],
                ray_token_file=home / "ray.token",
            )
        finally:
            fabric_cli("down")


def fabric_cli(*words: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "fabric.cli", *words], check=True, stdout=sys.stderr)


def measure(here: FabricHere, arguments: argparse.Namespace) -> dict[str, float]:
    import fabric

    fabric.run(noop, gpu="L4", linger=0)
    cold = [timed(lambda: fabric.run(noop, gpu="L4", linger=0)) for _ in range(arguments.cold)]
    for _ in range(WARM_UP_TASKS):
        fabric.run(noop, gpu="L4")
    warm = [timed(lambda: fabric.run(noop, gpu="L4")) for _ in range(arguments.calls)]
    figures = {
        "fabric_run_p50_ms": percentile(warm, 50),
        "fabric_run_p99_ms": percentile(warm, 99),
        "fabric_run_cold_ms": statistics.median(cold),
    }
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(here.ray_token_file)}
    with ray_at(here.ray_address) as ray:
        figures |= ray_calls(ray, arguments.calls)
        figures |= map_rounds(here, ray, arguments.tasks, arguments.rounds)
    with ray_client_server(here.ray_address) as address, ray_at(address) as ray:
        figures["ray_client_p50_ms"] = ray_calls(ray, arguments.calls)["ray_task_p50_ms"]
    return figures


def way_figures(arguments: argparse.Namespace) -> dict[str, float]:
    """A no-op on a warm lease on each way, to each place, in each isolation; what is done is said on standard error."""
    import fabric

    figures: dict[str, float] = {}
    for isolation, place, way in product(arguments.isolations, arguments.places, arguments.ways):
        with small_fabric(nodes=1, place=place, isolation=isolation, **WAYS[way]):
            for _ in range(WARM_UP_TASKS):
                fabric.run(noop, gpu="L4")
            warm = [timed(lambda: fabric.run(noop, gpu="L4")) for _ in range(arguments.calls)]
        name = f"fabric_run_{isolation}_{place}_{way}"
        figures |= {f"{name}_p50_ms": percentile(warm, 50), f"{name}_p99_ms": percentile(warm, 99)}
        print(f"{name}: {percentile(warm, 50):.3f} ms", file=sys.stderr, flush=True)
    return figures


@contextlib.contextmanager
def ray_at(address: str) -> Iterator[Any]:
    """Ray as a driver, or as a client when the address starts with ``ray://``."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def ray_client_server(ray_address: str) -> Iterator[str]:
    """A Ray Client server on loopback in front of the same cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "ray.util.client.server", "--host=127.0.0.1", f"--port={port}", f"--address={ray_address}"]
    server = subprocess.Popen([sys.executable, *command, "--mode=specific-server"], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, server)
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_for_port(port: int, server: "subprocess.Popen[bytes]", limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("Ray's client server did not start")


def map_rounds(here: FabricHere, ray: Any, tasks: int, rounds: int) -> dict[str, float]:
    """Median of interleaved rounds; our clock stops when all results are there and all receipts acknowledged."""
    plain = ray.remote(num_cpus=1)(echo)
    ray.get([plain.remote(i) for i in range(WARM_UP_TASKS)])
    ours(here, WARM_UP_TASKS)
    ratios, our_rates, ray_rates = [], [], []
    for _ in range(rounds):
        ray_rates.append(tasks / (timed(lambda: ray.get([plain.remote(i) for i in range(tasks)])) / 1000))
        our_rates.append(tasks / ours(here, tasks))
        ratios.append(our_rates[-1] / ray_rates[-1])
    return {
        "map_ratio": statistics.median(ratios),
        "map_tasks_per_s": statistics.median(our_rates),
        "ray_map_tasks_per_s": statistics.median(ray_rates),
    }


def ours(here: FabricHere, tasks: int) -> float:
    """Seconds for one `fabric.map`, receipts included."""
    import fabric

    started = time.perf_counter()
    assert list(fabric.map(echo, range(tasks), gpu="L4", max_parallel=2)) == list(range(tasks))
    while here.finished_tasks() < tasks:
        time.sleep(0.005)
    return time.perf_counter() - started


def ray_calls(ray: Any, calls: int) -> dict[str, float]:
    task = ray.remote(num_cpus=1)(noop)
    actor = ray.remote(num_cpus=0)(Noop).remote()
    for _ in range(WARM_UP_TASKS // 4):
        ray.get(task.remote())
        ray.get(actor.noop.remote())
    return {
        "ray_task_p50_ms": percentile([timed(lambda: ray.get(task.remote())) for _ in range(calls)], 50),
        "ray_actor_p50_ms": percentile([timed(lambda: ray.get(actor.noop.remote())) for _ in range(calls)], 50),
    }


def noop() -> None:
    """Nothing."""


def echo(index: int) -> int:
    return index


class Noop:
    def noop(self) -> None:
        """Nothing."""


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


if __name__ == "__main__":
    main()
