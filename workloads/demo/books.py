"""What the fabric's public answers say about the demo's work, read three independent ways.

Bills come from the runs, what was burned from the closed epochs, the total from the chain's own contract. Beside them:
usage by GPU, and what was allocated to each owner. Nothing here computes an amount except the sums.
"""

import time
from dataclasses import dataclass
from typing import Any

import fabric
from workloads.demo.economy import Economy, Settled
from workloads.demo.stage import Stage
from workloads.demo.work import Work

_LEASES_S = 30.0
_ENDED = ("CLOSED", "LOST")


@dataclass(frozen=True)
class TaskRow:
    """One task: where it ran, how long, and how it ended. `gpu` is the GPU's public id."""

    run: str
    task: int
    gpu: str
    model: str
    gpu_ms: int
    reason: str


@dataclass(frozen=True)
class RunRow:
    """One run: its bill, the time behind it, and why it was placed where it was."""

    id: str
    name: str
    state: str
    tasks: int
    task_ms: int
    gpu_ms: int
    bill_dc: int
    why: str


@dataclass(frozen=True)
class GpuRow:
    """One GPU: what it was used for, what it earned, and for whom in turn."""

    id: str
    model: str
    simulated: bool
    holders: tuple[str, ...]
    gpu_ms: int
    used_dc: int
    earned_bct: str


@dataclass(frozen=True)
class Books:
    """The demo's summary as data. Amounts are DC."""

    work: Work
    runs: tuple[RunRow, ...]
    tasks: tuple[TaskRow, ...]
    gpus: tuple[GpuRow, ...]
    epochs: tuple[dict[str, Any], ...]
    owners: dict[str, dict[str, Any]]
    audit: dict[str, Any]
    bills_dc: int
    usage_dc: int
    allocated_dc: int
    burned_dc: int
    settled: Settled
    proven_tasks: int
    unproven_tasks: int

    @property
    def sums_agree(self) -> bool:
        """Whether bills, burned and the chain's total are one sum, and some work was billed."""
        return 0 < self.bills_dc == self.burned_dc == self.settled.burned_dc

    @property
    def agree(self) -> bool:
        """Whether sums are the same, tasks proven, owners paid what they earned, and the audit found nothing."""
        allocated = self.bills_dc == self.usage_dc == self.allocated_dc
        proven = self.proven_tasks > 0 and not self.unproven_tasks
        return self.sums_agree and allocated and proven and self.settled.paid_out and bool(self.audit["ok"])

    @classmethod
    def read(cls, stage: Stage, work: Work, economy: Economy) -> "Books":
        """Close what is due, settle it, then read everything anew."""
        _wait_for_leases(stage)
        closed = stage.close_epochs()
        if closed["open_epochs"]:
            raise fabric.ServiceError(f"{closed['open_epochs']} epochs are still open; look into the demo's logs")
        settled = economy.settle()
        found = [stage.get(f"/v1/runs/{run['id']}") for run in stage.get("/v1/runs", limit=100)["runs"]]
        found.sort(key=lambda run: run["created_at_ms"])
        tasks = tuple(row for run in found for row in _tasks(run))
        proofs = {run["id"]: fabric.attach(run["id"]).receipt().proof() for run in found}
        gpus = tuple(_gpu(stage, gpu) for gpu in stage.get("/v1/ledger/gpus")["gpus"])
        holders = dict.fromkeys(holder for row in gpus for holder in row.holders)
        owners = {holder: stage.get(f"/v1/ledger/holders/{holder}") for holder in holders}
        epochs = stage.get("/v1/ledger/epochs", limit=100)["epochs"]
        return cls(
            work=work,
            runs=tuple(_run(run, tasks) for run in found),
            tasks=tasks,
            gpus=gpus,
            epochs=tuple(epoch for epoch in reversed(epochs) if int(epoch["burned_dc"])),
            owners=owners,
            audit=stage.get("/v1/audit"),
            bills_dc=sum(int(run["cost"]["accrued_dc"]) for run in found),
            usage_dc=sum(row.used_dc for row in gpus),
            allocated_dc=sum(int(owner["dc"]) for owner in owners.values()),
            burned_dc=sum(int(epoch["burned_dc"]) for epoch in epochs),
            settled=settled,
            proven_tasks=sum(line.run == run for run, proof in proofs.items() for line in proof.tasks),
            unproven_tasks=sum(line.run == run for run, proof in proofs.items() for line in proof.open_tasks),
        )


def _wait_for_leases(stage: Stage) -> None:
    """Until the last receipt of every lease is there: the session keeps a lease a moment after its last task."""
    deadline = time.monotonic() + _LEASES_S
    while time.monotonic() < deadline:
        found = stage.get("/v1/runs", limit=100)["runs"]
        if all(lease["state"] in _ENDED for run in found for lease in run["leases"]):
            return
        time.sleep(0.2)
    raise fabric.ServiceError(f"a lease is still open after {_LEASES_S:.0f} s; look into the demo's logs with --keep")


def _tasks(run: dict[str, Any]) -> list[TaskRow]:
    """From the run's signed receipts, verified."""
    receipt = fabric.attach(run["id"]).receipt()
    receipt.verify()
    by_uuid = {gpu["uuid"]: gpu for lease in run["leases"] for gpu in lease["gpus"]}
    lines = [line for signed in receipt.receipts for line in signed.tasks if line.run == run["id"]]
    return [
        TaskRow(
            run=run["id"],
            task=line.task,
            gpu=by_uuid[line.gpus[0]]["id"],
            model=by_uuid[line.gpus[0]]["model"],
            gpu_ms=line.gpu_ms,
            reason=line.reason,
        )
        for line in sorted(lines, key=lambda line: (line.task, line.attempt))
    ]


def _run(run: dict[str, Any], tasks: tuple[TaskRow, ...]) -> RunRow:
    own = [row for row in tasks if row.run == run["id"]]
    return RunRow(
        id=run["id"],
        name=run["name"],
        state=run["state"],
        tasks=len(own),
        task_ms=sum(row.gpu_ms for row in own),
        gpu_ms=run["cost"]["gpu_ms"],
        bill_dc=int(run["cost"]["accrued_dc"]),
        why=run["explain"]["text"],
    )


def _gpu(stage: Stage, gpu_id: str) -> GpuRow:
    gpu = stage.get(f"/v1/ledger/gpus/{gpu_id}")
    return GpuRow(
        id=gpu["id"],
        model=gpu["model"],
        simulated=gpu["simulated"],
        holders=tuple(dict.fromkeys(line["holder"] for line in reversed(gpu["cash_flow"]))),
        gpu_ms=gpu["used_gpu_ms"],
        used_dc=int(gpu["used_dc"]),
        earned_bct=gpu["earned_bct"],
    )
