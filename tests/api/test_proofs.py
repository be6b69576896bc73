"""From a task to the usage root of a closed epoch: what the API answers is proven without asking it again."""

import json
from dataclasses import replace

import pytest
from scripted import Agent, starts

from fabric.client.runs import RunReceipt
from fabric.wire import link
from fabric.wire.clock import ManualClock
from fabric.wire.merkle import leaf, tag, verify
from fabric.wire.receipts import ReceiptError, ReceiptKind, TaskLine


def _task(run: str) -> TaskLine:
    return TaskLine(run, 0, 1, ("GPU-1",), 0, 5000, 5000, 0, "done")


@pytest.fixture(scope="module")
def fabric(tmp_path_factory, migrated):
    """For all tests here: they only read."""
    planes = starts(tmp_path_factory.mktemp("proofs"), ManualClock(), migrated)
    yield next(planes)()
    next(planes, None)


@pytest.fixture(scope="module")
def run_in_epoch(fabric) -> dict:
    """A run of five seconds whose usage was burned in a closed epoch."""
    agent = Agent(fabric)
    agent.connect()
    run = fabric.submit(gpu=["H100"], name="train")
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for second in range(1, 6):
        agent.beat(1000)
        tasks = (_task(run["id"]),) if second == 5 else ()
        agent.receipt(grant, ReceiptKind.TICK, second * 1000, tasks=tasks)
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": "done"})
    agent.expect(link.Release)
    agent.receipt(grant, ReceiptKind.CLOSE, 5000, reason="done")
    agent.close()
    fabric.tick(2 * 86_400_000)
    fabric.call("POST", "/v1/ledger/epochs/close", who="admin", params={"wait_s": 5})
    return fabric.call("GET", f"/v1/runs/{run['id']}/receipt")


def test_a_run_is_proven_from_its_receipts_to_the_usage_root_and_again_from_a_file(fabric, run_in_epoch):
    receipt = RunReceipt.from_answer(run_in_epoch)
    proof = receipt.proof()
    (counted,) = proof.epochs
    assert (counted.gpu_ms, [line.task for line in proof.tasks], proof.open_tasks) == (5000, [0], ())
    epoch = fabric.call("GET", f"/v1/ledger/epochs/{counted.epoch}")
    assert epoch["usage_root"] == "0x" + counted.usage_root.hex()
    assert epoch["burned_dc"] == str(counted.dc)
    saved = json.loads(json.dumps(receipt.to_answer()))
    assert RunReceipt.from_answer(saved).proof() == proof


@pytest.mark.parametrize(
    "changed",
    [
        {"gpu_ms": 4999},
        {"dc": 1},
        {"epoch": 7},
        {"gpu": b"\1" * 32},
        {"receipt_hash": b"\1" * 32},
        {"lease": "lea_other"},
        {"usage_dc": 1},
        {"usage_gpu_ms": 1},
        {"leases_root": b"\1" * 32},
        {"usage_root": b"\1" * 32},
        {"usage_path": (b"\1" * 32,)},
        {"lease_path": (b"\1" * 32,)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_path_with_any_value_changed_is_refused(run_in_epoch, changed):
    receipt = RunReceipt.from_answer(run_in_epoch)
    forged = replace(receipt, epochs=(replace(receipt.epochs[0], **changed),))
    with pytest.raises(ReceiptError):
        forged.proof()


def test_a_lease_that_counts_twice_is_refused(run_in_epoch):
    receipt = RunReceipt.from_answer(run_in_epoch)
    with pytest.raises(ReceiptError, match="its receipts say"):
        replace(receipt, epochs=receipt.epochs * 2).proof()


def test_the_route_proves_a_lease_up_to_its_gpus_root(fabric, run_in_epoch):
    (counted,) = run_in_epoch["epochs"]
    at = f"/v1/ledger/epochs/{counted['epoch']}/proofs/{counted['gpu']}"
    lease = fabric.call("GET", f"{at}:{counted['lease']}")
    usage = fabric.call("GET", at)
    assert lease["root"] == usage["values"][3] == counted["leases_root"]
    assert usage["root"] == counted["usage_root"]
    assert fabric.call("GET", f"{at}:lea_other", expect=404)["status"] == 404


def test_the_route_proves_one_payout_to_whom_it_is_owed_and_to_nobody_else(fabric, run_in_epoch):
    (counted,) = run_in_epoch["epochs"]
    epoch = fabric.call("GET", f"/v1/ledger/epochs/{counted['epoch']}")
    (payout,) = epoch["payouts"]
    at = f"/v1/ledger/epochs/{counted['epoch']}/proofs/{payout['gpu']}"
    found = fabric.call("GET", f"{at}:{payout['holder'].upper().replace('0X', '0x')}")
    gpu, holder, wei = found["values"]
    one = leaf(tag("fabric.payout.v1"), bytes.fromhex(gpu[2:]), bytes.fromhex(holder[2:]), int(wei))
    assert verify(bytes.fromhex(epoch["payout_root"][2:]), one, [bytes.fromhex(node[2:]) for node in found["path"]])
    fabric.call("GET", f"{at}:0x{'00' * 20}", expect=404)
    fabric.call("GET", f"/v1/ledger/epochs/{counted['epoch']}/proofs/exit:0x{'00' * 20}", expect=404)


def test_a_task_that_no_closed_epoch_counts_is_not_called_proven(run_in_epoch):
    proof = replace(RunReceipt.from_answer(run_in_epoch), epochs=()).proof()
    assert proof.tasks == ()
    assert [line.task for line in proof.open_tasks] == [0]
