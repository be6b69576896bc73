"""How many receipts a second a control plane takes: signature verified, order and window checked, charged, durable.

Each lease of one GPU sends an OPEN and then TICKs, a finished task in each. They are signed before the clock starts;
the clock runs from handing a batch to `api.metering` to its acknowledgements, which come after the commit. The database
is a file with full sync unless a URL is given.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nacl.signing import SigningKey
from sqlmodel import Session, SQLModel

from api.metering import Arrived, Metering
from api.nonces import issue
from api.plane import Plane, build
from api.settings import Settings
from api.tables import (
    ClusterRow,
    CustomerRow,
    GpuRow,
    LeaseGpuRow,
    LeaseRow,
    LeaseRunRow,
    NodeRow,
    OperatorRow,
    RunRow,
    SessionKeyRow,
    SessionRow,
)
from fabric.wire.clock import ManualClock
from fabric.wire.link import Ack
from fabric.wire.receipts import GENESIS_HASH, GpuLine, Receipt, ReceiptKind, RunLine, TaskLine, sign, task_root
from ledger.leaves import gpu_id_hex

_OPERATOR, _CUSTOMER, _CLUSTER, _NODE, _SESSION = "op-1", "alice", "op-1/main", "node-1", "ses-1"
_PRICE_DC = 200_000
_HOLD_DC = 10_000_000
_TICK_MS = 1000


class Bench:
    """A control plane with many open leases, and the agent's side of their receipts."""

    def __init__(self, folder: Path, leases: int, url: str) -> None:
        self.clock = ManualClock(1_767_300_000_000)
        self.key = SigningKey.generate()
        settings = Settings(state_dir=folder, database_url=url, allow_simulated=True)
        self.plane: Plane = build(settings, self.clock)
        self.metering = Metering(self.plane)
        self._chains = {f"lease-{number}": (0, GENESIS_HASH) for number in range(leases)}
        with self.plane.database.write() as session:
            self._seed(session, leases)

    def signed_round(self, kind: ReceiptKind, gpu_ms: int) -> list[Arrived]:
        """The next receipt of every lease."""
        with self.plane.database.write() as session:
            nonce = issue(session, _CLUSTER, self.plane.now_ms())
            echoed = (nonce.seq or 0, nonce.value)
        return [self._signed(lease, kind, gpu_ms, echoed) for lease in self._chains]

    def take(self, arrived: Sequence[Arrived], batch: int) -> float:
        """Seconds to acknowledge all, in batches."""
        begin = time.perf_counter()
        for start in range(0, len(arrived), batch):
            part = arrived[start : start + batch]
            answers = self.metering.take(part)
            refused = [answer for _, answer in answers if not isinstance(answer, Ack)]
            if refused or len(answers) != len(part):
                raise SystemExit(f"{len(part)} receipts, {len(answers)} answers, refused: {refused[:1]}")
        return time.perf_counter() - begin

    def _signed(self, lease: str, kind: ReceiptKind, gpu_ms: int, nonce: tuple[int, bytes]) -> Arrived:
        seq, previous = self._chains[lease]
        uuid, run = f"GPU-{lease}", f"run-{lease}"
        tasks = () if kind is ReceiptKind.OPEN else (
            TaskLine(run, seq, 1, (uuid,), gpu_ms - _TICK_MS, gpu_ms, _TICK_MS, 7, "done", bytes(32)),
        )  # fmt: skip
        receipt = Receipt(
            fabric_id=self.plane.fabric_id,
            operator=_OPERATOR,
            lease=lease,
            generation=1,
            seq=seq,
            kind=kind,
            nonce_seq=nonce[0],
            nonce=nonce[1],
            previous=previous,
            gpus=(GpuLine(uuid, 1000, gpu_ms),),
            runs=(RunLine(run, gpu_ms),),
            task_count=len(tasks),
            task_root=task_root(tasks),
            simulated=True,
        )
        self._chains[lease] = (seq + 1, receipt.hash)
        return Arrived(_OPERATOR, (bytes(self.key.verify_key),), sign(receipt, tasks, self.key).to_bytes())

    def _seed(self, session: Session, leases: int) -> None:
        now = self.plane.now_ms()
        add = _adder(session)
        add(CustomerRow(id=_CUSTOMER, name=_CUSTOMER, test=True, created_ms=now))
        add(OperatorRow(id=_OPERATOR, name=_OPERATOR, payout="0x" + "11" * 20, reputation=10_000, created_ms=now))
        add(SessionRow(id=_SESSION, customer=_CUSTOMER, created_ms=now, last_heard_ms=now))
        add(SessionKeyRow(public_key=bytes(self.key.verify_key).hex(), operator=_OPERATOR, created_ms=now))
        add(ClusterRow(id=_CLUSTER, operator=_OPERATOR, name="main", gateway="", version="", connection="",
                       connected=True, last_heard_ms=now))  # fmt: skip
        add(NodeRow(cluster=_CLUSTER, name=_NODE, address="", region="", cpu_milli=0, memory_bytes=0, disk_bytes=0,
                    python="3.11", cloudpickle="3", present=True, lost=False))  # fmt: skip
        self.plane.ledger(session).credit_test(_CUSTOMER, leases * _HOLD_DC, "benchmark")
        nonce = issue(session, _CLUSTER, now)
        for number in range(leases):
            self._seed_lease(session, f"lease-{number}", nonce.seq or 0)

    def _seed_lease(self, session: Session, lease: str, nonce: int) -> None:
        now, run, uuid, add = self.plane.now_ms(), f"run-{lease}", f"GPU-{lease}", _adder(session)
        add(GpuRow(uuid=uuid, id=gpu_id_hex(uuid), operator=_OPERATOR, cluster=_CLUSTER, node=_NODE, vendor="nvidia",
                   model="H100", name="H100", memory_bytes=0, simulated=True, healthy=True, present=True, problem="",
                   driver="", pcie="", share_sizes_milli=[1000], used_milli=1000, first_seen_ms=now))  # fmt: skip
        add(RunRow(id=run, customer=_CUSTOMER, session=_SESSION, kind="run", name="", state="RUNNING", tier="on_demand",
                   detached=False, request={}, own_lease=False, created_ms=now, queued_until_ms=now))  # fmt: skip
        add(LeaseRow(id=lease, generation=1, customer=_CUSTOMER, session=_SESSION, run=run, operator=_OPERATOR,
                     cluster=_CLUSTER, node=_NODE, region="", tier="on_demand", state="GRANTED",
                     price_dc_per_gpu_hour=_PRICE_DC, notice_ms=0, cpu_milli=0, memory_bytes=0, disk_bytes=0,
                     startup_timeout_ms=120_000, grant_nonce=nonce, granted_ms=now, topped_up_ms=now,
                     set_aside_dc=_HOLD_DC))  # fmt: skip
        add(LeaseGpuRow(lease=lease, gpu=uuid, position=0, share_milli=1000, active=True))
        add(LeaseRunRow(lease=lease, run=run, joined_ms=now))
        self.plane.ledger(session).hold(lease, run, _CUSTOMER, _HOLD_DC, f"hold/{lease}")


def _adder(session: Session):  # noqa: ANN202 - a closure
    def add(row: SQLModel) -> None:
        session.add(row)
        session.flush()

    return add


def measure(folder: Path, *, leases: int, ticks: int, batch: int, url: str = "") -> dict[str, float]:
    bench = Bench(folder, leases, url)
    bench.take(bench.signed_round(ReceiptKind.OPEN, 0), batch)
    seconds = []
    for tick in range(1, ticks + 1):
        bench.clock.advance(_TICK_MS)
        seconds.append(bench.take(bench.signed_round(ReceiptKind.TICK, tick * _TICK_MS), batch))
    with bench.plane.database.read() as session:
        held = bench.plane.ledger(session).balance(_CUSTOMER).held
    bench.plane.database.close()
    if held >= leases * _HOLD_DC:
        raise SystemExit("nothing was charged")
    return {
        "receipts_per_s": round(leases * ticks / sum(seconds), 1),
        "receipts": leases * ticks,
        "charged_dc": leases * _HOLD_DC - held,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receipts", description=__doc__)
    parser.add_argument("--leases", type=int, default=200, help="open leases that send in turn (default 200)")
    parser.add_argument("--ticks", type=int, default=10, help="receipts of each (default 10)")
    parser.add_argument("--batch", type=int, default=200, help="receipts per group commit (default 200)")
    parser.add_argument("--database-url", default="", help="SQLAlchemy URL of an empty database (default: SQLite file)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            Path(folder), leases=given.leases, ticks=given.ticks, batch=given.batch, url=given.database_url
        )
    database = given.database_url.split(":", 1)[0].split("+")[0] or "sqlite"
    if given.json:
        config = {"database": database, "leases": given.leases, "ticks": given.ticks, "batch": given.batch}
        config["python"] = sys.version.split()[0]
        print(json.dumps({"name": "receipts", "config": config, "figures": figures}))
        return
    print(f"on {database}")
    for name, value in figures.items():
        print(f"{name:16} {value:>14,}")


if __name__ == "__main__":
    main()
