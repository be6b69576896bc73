"""How long a control plane takes to rebuild its fleet from the database: every node, GPU, price and active lease.

It does so when it starts and when it has not looked for long; in between it reads what changed. Eight GPUs per node,
fifty operators, three GPUs of four leased, each by a lease of its own. A file of SQLite unless a URL is given.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import insert
from sqlmodel import Session, SQLModel

from api.fleet import load
from api.plane import Plane, build
from api.settings import Settings
from api.tables import (
    ClusterRow,
    CustomerRow,
    GpuRow,
    LeaseGpuRow,
    LeaseRow,
    NodeRow,
    OperatorRow,
    PriceRow,
    RunRow,
    SessionRow,
)
from fabric.wire.clock import ManualClock
from ledger.leaves import gpu_id_hex

_PER_NODE = 8
_OPERATORS = 50
_PRICE_DC = 200_000


def measure(folder: Path, *, gpus: int, rounds: int, url: str = "") -> dict[str, float]:
    """Build the rows, then the fleet from them so many times; `seconds` and `cpu_seconds` are medians."""
    plane = build(Settings(state_dir=folder, database_url=url, allow_simulated=True), ManualClock(1_767_300_000_000))
    with plane.database.write() as session:
        _seed(plane, session, -(-gpus // _PER_NODE))
    seconds: list[float] = []
    processor: list[float] = []
    fleet = None
    for _ in range(rounds):
        with plane.database.read() as session:
            begin = time.perf_counter(), time.process_time()
            fleet = load(session, plane.now_ms())
            processor.append(time.process_time() - begin[1])
            seconds.append(time.perf_counter() - begin[0])
    plane.database.close()
    assert fleet is not None
    rows = sum(len(node.gpus) for node in fleet.nodes.values())
    ordered = sorted(seconds)
    return {
        "gpus": rows,
        "nodes": len(fleet.nodes),
        "leases": len(fleet.leases),
        "free_gpus": int(fleet.free[:, : fleet.rows].sum()) // 1000,
        "seconds": round(ordered[len(ordered) // 2], 3),
        "seconds_worst": round(ordered[-1], 3),
        "cpu_seconds": round(sorted(processor)[len(processor) // 2], 3),
    }


def _seed(plane: Plane, session: Session, nodes: int) -> None:
    now = plane.now_ms()
    session.add(CustomerRow(id="alice", name="alice", test=True, created_ms=now))
    session.flush()
    session.add(SessionRow(id="ses-1", customer="alice", created_ms=now, last_heard_ms=now))
    for number in range(_OPERATORS):
        name = f"op-{number}"
        session.add(OperatorRow(id=name, name=name, payout="0x" + "11" * 20, reputation=500, created_ms=now))
        session.flush()
        session.add(ClusterRow(id=f"{name}/main", operator=name, name="main", gateway="", version="", connection="",
                               connected=True, last_heard_ms=now))  # fmt: skip
        session.flush()
        for tier in ("spot", "on_demand"):
            session.add(PriceRow(cluster=f"{name}/main", model="H100", tier=tier, price_dc_per_gpu_hour=_PRICE_DC,
                                 since_ms=now))  # fmt: skip
    session.flush()
    for kind, rows in _rows(nodes, now):
        session.execute(insert(kind), [row.model_dump() for row in rows])


def _rows(nodes: int, now: int) -> Iterator[tuple[type[SQLModel], list[SQLModel]]]:
    """Nodes, GPUs, runs, leases and their parts, each after what it refers to."""
    made: dict[type[SQLModel], list[SQLModel]] = {kind: [] for kind in (NodeRow, GpuRow, RunRow, LeaseRow, LeaseGpuRow)}
    for number in range(nodes):
        operator, node = f"op-{number % _OPERATORS}", f"node-{number}"
        cluster = f"{operator}/main"
        made[NodeRow].append(NodeRow(cluster=cluster, name=node, address="", region="eu", cpu_milli=128_000,
                                     memory_bytes=2**40, disk_bytes=2**42, python="3.11", cloudpickle="3",
                                     present=True, lost=False, interconnects=[]))  # fmt: skip
        for seat in range(_PER_NODE):
            uuid, leased = f"GPU-{number}-{seat}", seat % 4 != 3
            made[GpuRow].append(GpuRow(uuid=uuid, id=gpu_id_hex(uuid), operator=operator, cluster=cluster, node=node,
                                       vendor="nvidia", model="H100", name="H100", memory_bytes=80 * 10**9,
                                       simulated=True, healthy=True, present=True, problem="", driver="", pcie="",
                                       share_sizes_milli=[1000], used_milli=1000 * leased,
                                       first_seen_ms=now))  # fmt: skip
            if not leased:
                continue
            run, lease, tier = f"run-{uuid}", f"lease-{uuid}", "spot" if seat == 0 else "on_demand"
            made[RunRow].append(RunRow(id=run, customer="alice", session="ses-1", kind="run", name="", state="RUNNING",
                                       tier=tier, detached=False, request={}, own_lease=False, created_ms=now,
                                       queued_until_ms=now))  # fmt: skip
            made[LeaseRow].append(LeaseRow(id=lease, generation=1, customer="alice", session="ses-1", run=run,
                                           operator=operator, cluster=cluster, node=node, region="eu", tier=tier,
                                           state="OPEN", price_dc_per_gpu_hour=_PRICE_DC, notice_ms=5_000,
                                           cpu_milli=8_000, memory_bytes=2**35, disk_bytes=0,
                                           startup_timeout_ms=120_000, grant_nonce=0, granted_ms=now,
                                           topped_up_ms=now))  # fmt: skip
            made[LeaseGpuRow].append(LeaseGpuRow(lease=lease, gpu=uuid, position=0, share_milli=1000, active=True))
    yield from made.items()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpus", type=int, default=10_000, help="GPUs in the fleet (default 10,000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often it is rebuilt (default 5)")
    parser.add_argument("--database-url", default="", help="SQLAlchemy URL of an empty database (default: SQLite file)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    if given.gpus < 1 or given.rounds < 1:
        parser.error(f"--gpus is {given.gpus} and --rounds {given.rounds}; at least 1 each")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), gpus=given.gpus, rounds=given.rounds, url=given.database_url)
    if given.json:
        database = given.database_url.split(":", 1)[0].split("+")[0] or "sqlite"
        config = {"database": database, "gpus": given.gpus, "rounds": given.rounds}
        config["python"] = sys.version.split()[0]
        print(json.dumps({"name": "snapshot", "config": config, "figures": figures}))
        return
    for name, value in figures.items():
        print(f"{name:16} {value:>14,}")


if __name__ == "__main__":
    main()
