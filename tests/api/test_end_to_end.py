"""A run from submission to the epoch's close, through the real routes and the real link."""

from fabric.wire import link
from fabric.wire.receipts import ReceiptKind


def test_a_run_is_placed_metered_charged_released_and_paid(fabric, agent) -> None:
    run = fabric.submit(gpu=["H100"], name="train")
    assert run["state"] == "STARTING"
    assert run["explain"]["chosen"]["model"] == "H100"
    grant = agent.expect(link.Grant)
    assert fabric.call("GET", "/v1/account")["held_dc"] == "60000"
    agent.open(grant)
    assert fabric.run(run["id"])["state"] == "RUNNING"
    for second in range(1, 11):
        agent.beat(1000)
        ack = agent.receipt(grant, ReceiptKind.TICK, second * 1000)
        assert isinstance(ack, link.Ack)
    cost = fabric.run(run["id"])["cost"]
    assert (cost["gpu_ms"], cost["accrued_dc"]) == (10_000, "1000")
    route = fabric.call("GET", f"/v1/runs/{run['id']}/route")["routes"][0]
    assert route["lease"] == grant.lease
    fabric.call("POST", f"/v1/runs/{run['id']}/finish", {"state": "SUCCEEDED"})
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": "done"})
    release = agent.expect(link.Release)
    assert release.reason == "done"
    agent.receipt(grant, ReceiptKind.CLOSE, 10_000, reason="done")
    run = fabric.run(run["id"])
    assert (run["state"], run["leases"][0]["state"]) == ("SUCCEEDED", "CLOSED")
    assert fabric.call("GET", "/v1/account") | {"id": ""} == {
        "id": "",
        "name": "Alice",
        "test": True,
        "available_dc": str(100_000_000 - 1000),
        "held_dc": "0",
        "exiting_dc": "0",
    }
    assert fabric.audit() == []
