"""A gang makes room as any run does, all of it or none; as a victim it loses the work of all its ranks."""

import pytest
from scripted import Agent, gpu, nodes
from test_detached import ARGS, CODE, put, sha
from test_evictions import closes, spot

from fabric.wire import link

CHECKPOINT = {"manifest": sha(CODE), "pieces": [sha(ARGS)]}


@pytest.fixture
def agent(fabric):
    """Three nodes with two H100 each."""
    offered = [node for at in (0, 1, 2) for node in nodes(gpu(2 * at), gpu(2 * at + 1), name=f"node-{at}")]
    agent = Agent(fabric, nodes=offered)
    fabric.blobs = agent.connect().blob_token
    return agent


def submit(fabric, size=2, gpus="H100:2", **members):
    put(fabric, CODE, who=members.get("who", "alice"))
    put(fabric, ARGS, who=members.get("who", "alice"))
    return fabric.submit(kind="submit", gpu=[gpus], nodes=size, work={"code": sha(CODE), "args": sha(ARGS)}, **members)


def opened(agent, count):
    grants = [agent.expect(link.Grant) for _ in range(count)]
    for grant in grants:
        agent.open(grant)
    return grants


def leave(agent, grants):
    """Every one of these gets its notice and keeps it."""
    noticed = {agent.expect(link.Notice).lease for _ in grants}
    assert noticed == {grant.lease for grant in grants}
    for grant in grants:
        closes(agent, grant)


def test_spot_leaves_on_every_node_of_a_gang_which_then_gets_them_all(fabric, agent):
    grants = [spot(fabric, agent, gpus="H100:2")[1] for _ in range(3)]
    wants = submit(fabric, 3)
    assert (wants["state"], wants["leases"]) == ("QUEUED", [])
    assert "3 spot leases must leave first" in wants["explain"]["text"]
    leave(agent, grants)
    fabric.tick()
    won = opened(agent, 3)
    assert {grant.run for grant in won} == {wants["id"]}
    assert fabric.audit() == []


def test_only_where_a_gang_goes_does_spot_leave(fabric, agent):
    long_ago, _ = spot(fabric, agent, gpus="H100:2")
    agent.beat(30_000)
    grants = [spot(fabric, agent, gpus="H100:2")[1] for _ in range(2)]
    submit(fabric, 2)
    leave(agent, grants)
    assert fabric.run(long_ago, who="bob")["state"] == "RUNNING"


def test_nobody_leaves_for_a_gang_that_would_still_not_fit(fabric, agent):
    evicted = [spot(fabric, agent, gpus="H100:2")[0] for _ in range(2)]
    fabric.submit(who="bob", gpu=["H100"])
    agent.open(agent.expect(link.Grant))
    assert submit(fabric, 3)["state"] == "QUEUED"
    fabric.tick(1_000)
    assert {fabric.run(run, who="bob")["state"] for run in evicted} == {"RUNNING"}


def test_for_nodes_that_a_gang_can_do_without_nobody_leaves(fabric, agent):
    for _ in range(3):
        spot(fabric, agent, gpus="H100:2")
    assert "2 spot leases must leave first" in submit(fabric, 3, nodes_min=2)["explain"]["text"]


def test_a_gang_that_cannot_pay_all_its_nodes_for_ten_minutes_evicts_nobody(fabric, agent):
    evicted = [spot(fabric, agent, gpus="H100:2")[0] for _ in range(2)]
    fabric.submit(gpu=["H100:2"], budget_dc=10**6)
    agent.open(agent.expect(link.Grant))
    submit(fabric, 2, budget_dc=239_000)
    assert {fabric.run(run, who="bob")["state"] for run in evicted} == {"RUNNING"}
    submit(fabric, 2, budget_dc=240_000)
    assert {fabric.run(run, who="bob")["state"] for run in evicted} == {"PREEMPTING"}


def test_a_gang_that_lost_a_node_evicts_for_that_one_and_keeps_the_others(fabric, agent):
    run = submit(fabric, 2)["id"]
    kept, lost = opened(agent, 2)
    victim = spot(fabric, agent, gpus="H100:2")[1]
    agent.send(link.Heartbeat(nonce_seq=agent.nonce.seq, lost_nodes=[lost.node]))
    assert agent.expect(link.Release).lease == lost.lease
    fabric.tick(6_000)
    leave(agent, [victim])
    fabric.tick()
    again = agent.expect(link.Grant)
    assert (again.run, again.node) == (run, victim.node)
    assert {lease["id"] for lease in fabric.run(run)["leases"] if lease["state"] == "OPEN"} == {kept.lease}


def test_a_gang_loses_the_work_of_all_its_ranks_so_a_single_lease_goes_first(fabric, agent):
    single, grant = spot(fabric, agent, gpus="H100:2")
    agent.beat(10_000)
    gang = submit(fabric, 2, who="bob", tier="spot")["id"]
    opened(agent, 2)
    agent.beat(15_000)  # 2 GPUs x 25 s against 2 nodes x 2 GPUs x 15 s
    fabric.submit(gpu=["H100:2"])
    leave(agent, [grant])
    assert fabric.run(single, who="bob")["state"] != "RUNNING"
    assert fabric.run(gang, who="bob")["state"] == "RUNNING"


def test_what_a_checkpoint_has_stored_is_not_lost(fabric, agent):
    put(fabric, CODE, who="bob")
    put(fabric, ARGS, who="bob")
    stores, grant = spot(fabric, agent, gpus="H100:2")
    agent.beat(30_000)
    lately, _ = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"])
    agent.open(agent.expect(link.Grant))
    agent.beat(10_000)
    headers = {"Authorization": f"Bearer {fabric.blobs}"}
    put_to = f"/v1/agent/checkpoints/{stores}/0"
    assert fabric.client.put(put_to, json=CHECKPOINT, headers=headers).status_code == 200
    fabric.submit(gpu=["H100:2"])
    leave(agent, [grant])
    assert fabric.run(lately, who="bob")["state"] == "RUNNING"
