"""A GPU that fails while it is leased."""

from scripted import gpu, nodes

from fabric.wire import link


def test_a_lease_ends_when_its_gpu_is_unhealthy_and_the_gpu_gets_no_other(fabric, agent):
    run = fabric.submit(gpu=["L4"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    other = fabric.submit(gpu=["H100"])
    healthy = agent.expect(link.Grant)
    agent.open(healthy)
    broken = gpu(3, "L4", healthy=False, problem="GPU is lost")
    agent.send(link.Inventory(nodes=nodes(gpu(1), gpu(2), broken)))
    release = agent.expect(link.Release)
    assert (release.lease, release.reason) == (grant.lease, "gpu_unhealthy")
    assert fabric.run(other["id"])["leases"][0]["state"] == "OPEN"
    shown = {one["model"]: one for one in fabric.call("GET", "/v1/gpus")["gpus"]}
    assert (shown["L4"]["healthy"], shown["L4"]["offered"]) == (False, False)
    assert fabric.run(run["id"])["leases"][0]["reason"] == "gpu_unhealthy"
    refused = fabric.submit(gpu=["L4"], expect=409)
    assert refused["type"].endswith("no-capacity")
