"""The audit is clean on an honest database and names the first row of each lie."""

import pytest
from scripted import Agent, done

from fabric.wire import link
from fabric.wire.receipts import ReceiptKind


@pytest.fixture
def worked(fabric, agent):
    """One closed lease with a task, one open one."""
    for _ in range(2):
        fabric.submit(gpu=["H100"], headers={"Idempotency-Key": f"k{_}"})
        grant = agent.expect(link.Grant)
        agent.open(grant)
        agent.beat(2_000)
        agent.receipt(grant, ReceiptKind.TICK, 1_000, tasks=(done(grant.run),))
    agent.receipt(grant, ReceiptKind.CLOSE, 2_000)
    assert fabric.audit() == []
    return fabric


@pytest.mark.parametrize(
    ("sql", "invariant", "table"),
    [
        ("DELETE FROM receipts WHERE seq = 1", 6, "receipts"),
        ("UPDATE receipts SET hash = x'00' WHERE seq = 1", 6, "receipts"),
        (
            "UPDATE receipts SET session_key = (SELECT public_key FROM session_keys WHERE operator = 'op-2')",
            6,
            "receipts",
        ),
        ("UPDATE lease_gpus SET billed_ms = 900000", 7, "lease_gpus"),
        ("UPDATE gpus SET used_milli = 500 WHERE uuid = 'GPU-3'", 8, "gpus"),
        ("UPDATE lease_gpus SET billed_ms = 900000, claimed_ms = 900000, window_ms = 900000", 9, "lease_gpus"),
        ("UPDATE lease_gpus SET charged_dc = charged_dc + 1", 10, "lease_gpus"),
        ("UPDATE leases SET state = 'OPEN', closed_ms = NULL WHERE state = 'CLOSED'", 17, "leases"),
        ("UPDATE receipts SET generation = 7", 18, "receipts"),
        ("UPDATE runs SET state = 'SUCCEEDED'", 19, "runs"),
        ("UPDATE leases SET closed_ms = 1 WHERE state = 'OPEN'", 19, "leases"),
        ('UPDATE idempotency_keys SET answer = \'{"id": "run_x"}\'', 5, "idempotency_keys"),
    ],
)
def test_a_lie_in_the_rows_is_found_and_named(worked, sql, invariant, table):
    with worked.plane.database.write() as session:
        session.connection().exec_driver_sql(sql)
    found = {check["invariant"]: check["first_bad"] for check in worked.audit()}
    assert invariant in found
    assert found[invariant].startswith(f"{table} ")


def test_the_database_itself_refuses_two_results_and_an_oversold_gpu(worked):
    from sqlalchemy.exc import IntegrityError

    again = (
        "INSERT INTO tasks SELECT run, task, 9, lease, generation, seq, gpus, start_ms, end_ms, gpu_ms, energy_mj,"
        " reason, result_digest, accepted FROM tasks LIMIT 1"
    )
    for sql in (again, "UPDATE gpus SET used_milli = 1001 WHERE uuid = 'GPU-3'", "UPDATE gpus SET used_milli = -1"):
        with pytest.raises(IntegrityError), worked.plane.database.write() as session:
            session.connection().exec_driver_sql(sql)
    assert worked.audit() == []
    assert Agent
