"""From accepted receipts to a closed epoch and its proofs, as auditors and owners read them."""

import pytest
from scripted import PAYOUT, Agent

from fabric.wire import link, merkle
from fabric.wire.receipts import ReceiptKind

TICK, CLOSE = ReceiptKind.TICK, ReceiptKind.CLOSE


@pytest.fixture
def used(start):
    """A fabric with short epochs in which two GPUs worked for 10 s and 5 s."""
    fabric = start(finality_s=2, epoch_s=10)
    agent = Agent(fabric)
    agent.connect()
    for gpu_ms in (10_000, 5_000):
        fabric.submit(gpu=["H100"])
        grant = agent.expect(link.Grant)
        agent.open(grant)
        agent.beat(gpu_ms)
        agent.receipt(grant, CLOSE, gpu_ms)
    return fabric


def close(fabric, **options):
    return fabric.call("POST", "/v1/ledger/epochs/close", who="admin", **options)


def test_an_epoch_closes_only_when_it_is_over(used):
    assert close(used, expect=409)["type"] == "/problems/conflict"
    used.clock.advance(30_000)
    assert close(used)["open_epochs"] == 0


def test_bills_usage_and_allocation_agree(used):
    used.tick(30_000)
    epochs = [used.call("GET", f"/v1/ledger/epochs/{n['n']}") for n in used.call("GET", "/v1/ledger/epochs")["epochs"]]
    billed = sum(int(run["cost"]["accrued_dc"]) for run in used.call("GET", "/v1/runs")["runs"])
    assert billed == 1_500
    assert sum(int(one["burned_dc"]) for one in epochs) == billed
    assert sum(int(gpu["dc"]) for one in epochs for gpu in one["usage"]) == billed
    paid = [payout for one in epochs for payout in one["payouts"]]
    assert {payout["holder"] for payout in paid} == {PAYOUT}
    for one in epochs:
        rewards = sum(int(payout["wei"]) for payout in one["payouts"])
        assert rewards + int(one["staking_wei"]) == int(one["paid_wei"])
        assert one["settlement"] == "not settled: no chain configured"
    assert used.audit() == []


def test_time_alone_seals_and_closes(used):
    used.tick(30_000)
    closed = used.call("GET", "/v1/ledger/epochs")["epochs"]
    assert closed
    assert all(one["gpu_ms"] >= 0 for one in closed)
    used.tick(10_000)
    numbers = [one["n"] for one in used.call("GET", "/v1/ledger/epochs")["epochs"]]
    assert numbers == list(range(numbers[0], numbers[-1] - 1, -1))


def test_a_gpus_cash_flow_is_public_and_an_unused_one_is_not_there(used):
    used.tick(30_000)
    ids = used.client.get("/v1/ledger/gpus").json()["gpus"]
    views = [used.client.get(f"/v1/ledger/gpus/{one}").json() for one in ids]
    assert sum(view["used_gpu_ms"] for view in views) == 15_000
    assert sum(int(line["dc"]) for view in views for line in view["cash_flow"]) == 1_500
    assert used.client.get("/v1/ledger/gpus/0x00").status_code == 404
    assert used.client.get("/v1/ledger/operators/op-1").json()["dc"] == "1500"
    assert used.call("GET", f"/v1/ledger/holders/{PAYOUT}", who="admin")["usd"] == "$0.015"


def test_a_leaf_is_proven_into_its_epochs_root(used):
    used.tick(30_000)
    newest = used.client.get("/v1/ledger/epochs").json()["epochs"]
    number = next(one["n"] for one in newest if one["gpu_ms"])
    detail = used.client.get(f"/v1/ledger/epochs/{number}").json()
    leaf = detail["usage"][0]["gpu"]
    proof = used.client.get(f"/v1/ledger/epochs/{number}/proofs/{leaf}").json()
    path = [bytes.fromhex(node[2:]) for node in proof["path"]]
    assert proof["root"] == detail["usage_root"]
    assert merkle.verify(bytes.fromhex(proof["root"][2:]), bytes.fromhex(proof["leaf"][2:]), path)
    payout = used.client.get(f"/v1/ledger/epochs/{number}/proofs/{leaf}:{PAYOUT}").json()
    assert payout["root"] == detail["payout_root"]
    assert used.client.get(f"/v1/ledger/epochs/{number}/proofs/0x00").status_code == 404
    assert used.client.get(f"/v1/ledger/epochs/{number}/file").json()["epoch"] == number
    assert used.client.get("/v1/ledger/epochs/999").status_code == 404


def test_entries_are_their_owners_and_all_are_an_admins(used):
    own = used.call("GET", "/v1/ledger/entries?limit=1000")["entries"]
    assert {one["customer"] for one in own} == {"alice"}
    assert {"hold", "charge", "release"} <= {one["kind"] for one in own}
    assert used.call("GET", "/v1/ledger/entries?all=true", who="bob")["entries"][0]["customer"] == "bob"
    everything = used.call("GET", "/v1/ledger/entries?all=true&limit=1000", who="admin")["entries"]
    assert len(everything) > len(own)
    page = used.call("GET", "/v1/ledger/entries?limit=2")
    assert used.call("GET", f"/v1/ledger/entries?limit=2&cursor={page['next']}")["entries"][0] == own[2]
    assert used.client.get("/v1/ledger/entries").status_code == 401


@pytest.mark.parametrize(
    "path", ["entries?cursor={}", "epochs?cursor={}", "epochs/{}", "epochs/{}/file", "epochs/{}/proofs/0xab"]
)
def test_a_number_beyond_the_databases_is_refused_and_the_largest_one_is_not(fabric, path):
    fabric.call("GET", "/v1/ledger/" + path.format(2**63), expect=422)
    largest = 404 if path.startswith("epochs/") else 200
    fabric.call("GET", "/v1/ledger/" + path.format(2**63 - 1), expect=largest)
