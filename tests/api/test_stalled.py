"""While no epoch has finalised for three days no lease is granted; leases that run go on."""

from scripted import Agent, Fabric

from fabric.wire import link
from ledger.chain.stalled import NO_LEASE_AFTER_MS, saw


def finalised(fabric: Fabric, epochs: int) -> None:
    with fabric.plane.database.write() as session:
        saw(session, epochs, fabric.clock.now_ms())


def test_after_three_days_without_a_finalised_epoch_no_lease_is_granted_until_there_is_one(
    fabric: Fabric, agent: Agent
):
    finalised(fabric, 3)
    agent.beat(NO_LEASE_AFTER_MS - 2000)
    agent.beat(1000)
    finalised(fabric, 3)
    assert fabric.submit(gpu=["H100"])["state"] == "STARTING"
    agent.expect(link.Grant)
    agent.beat(1001)
    refused = fabric.submit(gpu=["H100"], expect=503)
    assert "for 3 days" in refused["detail"]
    assert refused["retryable"] is True
    finalised(fabric, 4)
    assert fabric.submit(gpu=["H100"])["state"] == "STARTING"


def test_a_run_that_has_leases_gets_no_more_of_them_either(fabric: Fabric, agent: Agent):
    finalised(fabric, 3)
    agent.beat(NO_LEASE_AFTER_MS - 3000)
    agent.beat(1000)
    run = fabric.submit(gpu=["H100"], kind="map")
    agent.beat(2001)
    path = f"/v1/runs/{run['id']}/leases"
    assert len(fabric.call("POST", path, {"count": 1})["leases"]) == 1
    finalised(fabric, 4)
    assert len(fabric.call("POST", path, {"count": 1})["leases"]) == 2


def test_without_a_chain_nothing_is_waited_for(fabric: Fabric, agent: Agent):
    agent.beat(10 * NO_LEASE_AFTER_MS)
    agent.beat(1000)
    assert fabric.submit(gpu=["H100"])["state"] == "STARTING"
