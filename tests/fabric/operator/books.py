"""What the books of a control plane must say once everything is over."""

from sqlalchemy import select
from sqlmodel import col

from api import audit, ledger_jobs, sweeps
from api.plane import build
from api.settings import Settings
from api.tables import LeaseGpuRow, LeaseRow
from fabric.wire.clock import ManualClock, SystemClock


def books_are_right(folder, lost, balance_dc):
    """After the minutes in which a dead operator could have come back, which no test waits for, and those to finality.

    Each lease is charged exactly what its metered time costs; who was lost has nothing beyond the last finished task.
    """
    clock = ManualClock(SystemClock().now_ms())
    plane = build(Settings(state_dir=folder), clock)
    for _ in range(14):
        clock.advance(60_000)
        sweeps.sweep(plane)
        ledger_jobs.tick(plane)
    with plane.database.read() as session:
        leases = list(session.scalars(select(LeaseRow)))
        for lease in leases:
            (used,) = session.scalars(select(LeaseGpuRow).where(col(LeaseGpuRow.lease) == lease.id))
            assert lease.charged_dc == cost_up(used.billed_ms, lease.price_dc_per_gpu_hour)
            if lease.state == "LOST":
                assert used.billed_ms <= lease.last_task_end_ms
            assert (used.billed_ms > 0) is (lease.state != "LOST" or lease.last_task_end_ms > 0)
        states = {(lease.operator == lost, lease.state) for lease in leases if lease.tier == "on_demand"}
        assert states == {(False, "CLOSED"), (True, "CLOSED"), (True, "LOST")}, "a closed one ended before the kill"
        balance = plane.ledger(session).balance("alice")
        assert (balance.available, balance.held) == (balance_dc - sum(lease.charged_dc for lease in leases), 0)
        assert [check for check in audit.run(plane, session) if check.findings] == []
    plane.database.close()


def cost_up(gpu_ms, price):
    return -(-gpu_ms * price // 3_600_000)
