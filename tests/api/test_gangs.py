"""Runs on several nodes: all leases or none, one task per rank, one failure ends all, a retry keeps what is good."""

import pytest
from scripted import OTHER_KEY, Agent, gpu, nodes
from sqlmodel import select
from test_detached import ARGS, CODE, RESULT, put, sha

from api.tables import LeaseRow
from fabric.wire import link
from fabric.wire.receipts import ReceiptKind


def pair(first=1, count=2, **options):
    """So many nodes with two H100 each."""
    return [
        node
        for at in range(count)
        for node in nodes(gpu(first + 2 * at), gpu(first + 2 * at + 1), name=f"node-{at + 1}", **options)
    ]


@pytest.fixture
def agent(fabric):
    agent = Agent(fabric, nodes=pair(count=3))
    fabric.blobs = agent.connect().blob_token
    return agent


def submit(fabric, size=2, kind="submit", expect=201, **members):
    put(fabric, CODE)
    put(fabric, ARGS)
    work = {"code": sha(CODE), "args": sha(ARGS)}
    return fabric.submit(kind=kind, gpu=["H100:2"], nodes=size, work=work, expect=expect, **members)


def start(agent, run, size=2):
    """Open all leases; returns (grants, works), each by rank."""
    grants = [agent.expect(link.Grant) for _ in range(size)]
    for grant in grants:
        agent.open(grant)
    works = [agent.expect(link.Work) for _ in range(size)]
    return sorted(grants, key=lambda g: g.gang.rank), sorted(works, key=lambda w: w.task)


def end(agent, work, reason="done", **options):
    values = {"lease": work.lease, "generation": 1, "run": work.run, "task": work.task, "attempt": work.attempt}
    agent.send(link.WorkDone(**values, reason=reason, **options))


def lose(agent, grant):
    """The node of a lease is gone, and its lease with it."""
    agent.send(link.Heartbeat(nonce_seq=agent.nonce.seq, lost_nodes=[grant.node]))
    assert agent.expect(link.Release).lease == grant.lease
    agent.fabric.tick(6_000)
    agent.fabric.tick(100)


def test_offers_for_several_nodes_are_those_a_run_on_them_would_find(fabric, agent):
    assert fabric.call("GET", "/v1/offers?gpu=H100:2&nodes=2")["offers"] == [], "its nodes cannot reach each other"
    able = Agent(fabric, "op-2", OTHER_KEY, nodes=pair(first=11, capabilities=["network:gang"]))
    able.connect()
    (offer,) = fabric.call("GET", "/v1/offers?gpu=H100:2&nodes=2")["offers"]
    assert (offer["operator"], offer["count_free"]) == ("op-2", 4)
    assert fabric.call("GET", "/v1/offers?gpu=H100:2&nodes=3")["offers"] == []


def test_a_gang_gets_one_lease_per_node_and_works_once_all_are_open(fabric, agent):
    run = submit(fabric)
    assert fabric.call("GET", "/v1/account")["held_dc"] == str(4 * 60_000)
    first, second = agent.expect(link.Grant), agent.expect(link.Grant)
    assert first.node != second.node
    assert {first.gang.rank, second.gang.rank} == {0, 1}
    assert first.gang.nodes == second.gang.nodes
    assert first.gang.nodes[first.gang.rank] == first.node
    agent.open(first)
    assert fabric.run(run["id"])["attempts"] == []
    agent.open(second)
    works = sorted((agent.expect(link.Work), agent.expect(link.Work)), key=lambda work: work.task)
    assert [(work.task, work.gang.rank, work.attempt) for work in works] == [(0, 0, 1), (1, 1, 1)]


def test_the_value_is_that_of_rank_0_and_comes_when_all_ranks_are_done(fabric, agent):
    run = submit(fabric)["id"]
    grants, (leader, other) = start(agent, run)
    headers = {"Authorization": f"Bearer {fabric.blobs}"}
    path = f"/v1/agent/blobs/{sha(RESULT)}"
    assert fabric.client.put(path, content=RESULT, headers=headers, params={"run": run}).status_code == 200
    end(agent, leader, result=sha(RESULT))
    agent.beat(100)
    assert fabric.run(run)["state"] == "RUNNING"
    end(agent, other, "result_not_transportable", result=sha(ARGS))
    for _ in grants:
        assert agent.expect(link.Release).reason == "done"
    for grant in grants:
        agent.receipt(grant, ReceiptKind.CLOSE, 1000)
    facts = fabric.run(run)
    assert (facts["state"], facts["result"]["blob"]) == ("SUCCEEDED", sha(RESULT))
    assert facts["cost"]["gpu_ms"] == 4 * 1000
    assert fabric.call("GET", "/v1/account")["held_dc"] == "0"
    assert fabric.audit() == []


def test_an_agent_may_fetch_and_store_for_a_gang_whose_process_waits_for_it(fabric, agent):
    run = submit(fabric, kind="run")["id"]
    start(agent, run)
    headers = {"Authorization": f"Bearer {fabric.blobs}"}
    for blob in (CODE, ARGS):
        assert fabric.client.get(f"/v1/agent/blobs/{sha(blob)}", headers=headers).content == blob
    path = f"/v1/agent/blobs/{sha(RESULT)}"
    assert fabric.client.put(path, content=RESULT, headers=headers, params={"run": run}).status_code == 200


def test_the_first_rank_that_fails_ends_all_and_is_named(fabric, agent):
    run = submit(fabric)["id"]
    grants, (_, other) = start(agent, run)
    end(agent, other, "crashed", message="the process that ran the function ended by signal 9")
    for _ in grants:
        assert agent.expect(link.Release).reason == "crashed"
    facts = fabric.run(run)
    assert (facts["state"], facts["reason"]) == ("FAILED", "crashed")
    assert facts["message"].startswith("rank 1 of 2 on node node-")
    attempts = {attempt["task"]: attempt for attempt in facts["attempts"]}
    assert attempts[0]["message"].startswith("stopped: rank 1 of 2")


def test_a_retry_after_an_error_stops_the_other_ranks_and_keeps_every_lease(fabric, agent):
    run = submit(fabric, retry={"on": ["error"], "max": 1})["id"]
    grants, (leader, _) = start(agent, run)
    end(agent, leader, "user_error", message="ValueError: no")
    stop = agent.expect(link.StopWork)
    assert (stop.task, stop.attempt) == (1, 1)
    agent.beat(10)
    again = [agent.expect(link.Work), agent.expect(link.Work)]
    assert {work.attempt for work in again} == {2}
    assert {work.lease for work in again} == {grant.lease for grant in grants}
    assert len(fabric.run(run)["leases"]) == 2


def test_a_lost_node_is_replaced_alone_and_its_rank_taken_over(fabric, agent):
    run = submit(fabric)["id"]
    grants, works = start(agent, run)
    lose(agent, grants[1])
    assert agent.expect(link.StopWork).lease == grants[0].lease
    new = agent.expect(link.Grant)
    assert new.node not in {grant.node for grant in grants}
    assert new.gang.rank == 1
    agent.open(new)
    again = sorted((agent.expect(link.Work), agent.expect(link.Work)), key=lambda work: work.task)
    assert [work.lease for work in again] == [grants[0].lease, new.lease]
    assert again[0].gang.nodes == [grants[0].node, new.node]
    end(agent, works[1], "done")  # of the lease that was lost: too late
    end(agent, again[0])
    end(agent, again[1])
    agent.expect(link.Release)
    assert fabric.run(run)["state"] == "SUCCEEDED"


def test_what_a_gang_kept_is_given_back_when_nothing_can_complete_it(fabric):
    agent = Agent(fabric, nodes=pair(count=2))
    agent.connect()
    run = submit(fabric)["id"]
    grants, _ = start(agent, run)
    lose(agent, grants[1])
    assert agent.expect(link.Release).lease == grants[0].lease
    assert fabric.run(run)["state"] == "QUEUED"


def test_a_gang_that_may_be_smaller_takes_as_many_nodes_as_there_are(fabric, agent):
    run = submit(fabric, 5, nodes_min=2)["id"]
    _, works = start(agent, run, 3)
    assert len(works[0].gang.nodes) == 3
    assert fabric.run(run)["tasks"]["total"] == 3


def test_a_gang_that_may_be_smaller_goes_on_without_a_lost_node_and_grows_again_at_its_next_start(fabric, agent):
    run = submit(fabric, 5, nodes_min=2, retry={"on": ["interruption", "error"], "max": 3})["id"]
    grants, _ = start(agent, run, 3)
    lose(agent, grants[0])
    stopped = [agent.expect(link.StopWork), agent.expect(link.StopWork)]
    assert {(stop.lease, stop.task) for stop in stopped} == {(grants[1].lease, 1), (grants[2].lease, 2)}
    smaller = sorted((agent.expect(link.Work), agent.expect(link.Work)), key=lambda work: work.task)
    assert [(work.task, work.gang.rank, work.attempt) for work in smaller] == [(0, 0, 2), (1, 1, 2)]
    assert {work.lease for work in smaller} == {grants[1].lease, grants[2].lease}
    assert set(smaller[0].gang.nodes) == {grants[1].node, grants[2].node}
    facts = fabric.run(run)
    assert (facts["state"], facts["tasks"]["total"]) == ("RUNNING", 2)
    agent.send(link.Heartbeat(nonce_seq=agent.nonce.seq))
    end(agent, smaller[1], "crashed", message="signal 9")
    fabric.tick(2_000)
    new = agent.expect(link.Grant)
    assert (new.node, new.gang.rank) == (grants[0].node, 2)
    agent.open(new)
    larger = [agent.expect(link.Work) for _ in range(3)]
    assert {(work.task, work.attempt) for work in larger} == {(0, 3), (1, 3), (2, 3)}
    for work in larger:
        end(agent, work)
    for grant in (*grants[1:], new):
        agent.receipt(grant, ReceiptKind.CLOSE, 1000)
    assert fabric.run(run)["state"] == "SUCCEEDED"
    assert fabric.audit() == []


def test_a_gang_below_its_least_size_gives_back_what_it_kept(fabric):
    agent = Agent(fabric, nodes=pair(count=2))
    agent.connect()
    run = submit(fabric, 4, nodes_min=2)["id"]
    grants, _ = start(agent, run)
    lose(agent, grants[1])
    assert agent.expect(link.Release).lease == grants[0].lease
    assert fabric.run(run)["state"] == "QUEUED"


def set_aside(fabric, run):
    with fabric.plane.database.read() as session:
        return list(session.exec(select(LeaseRow.set_aside_dc).where(LeaseRow.run == run)))


def test_money_for_a_smaller_gang_buys_that(fabric, agent):
    run = submit(fabric, 3, nodes_min=2, budget_dc=6_000)
    assert len(run["leases"]) == 2


def test_money_that_is_short_is_divided_among_a_gangs_leases_so_that_all_last_as_long(fabric, agent):
    run = submit(fabric, 3, budget_dc=121_000)["id"]
    assert set_aside(fabric, run) == [40_333] * 3
    assert fabric.audit() == []


def test_what_is_left_of_a_budget_tops_up_every_lease_of_a_gang(fabric, agent):
    run = submit(fabric, budget_dc=241_000)["id"]
    grants, _ = start(agent, run)
    agent.beat(61_000)
    for grant in grants:
        agent.receipt(grant, ReceiptKind.TICK, 61_000)
    first, second = set_aside(fabric, run)
    assert first - 120_000 == 500
    assert second - 120_000 in range(250, 501)
    assert fabric.audit() == []


def test_a_gang_is_granted_whole_or_not_at_all(fabric, agent):
    other = fabric.submit(gpu=["H100:2"])["id"]
    run = submit(fabric, 3)
    assert (run["state"], run["leases"]) == ("QUEUED", [])
    fabric.call("POST", f"/v1/runs/{other}/cancel")
    held = agent.expect(link.Grant)
    agent.send(link.Ended(lease=held.lease, generation=1, reason="cancelled_by_user"))
    agent.beat(100)
    assert len(fabric.run(run["id"])["leases"]) == 3


def test_money_for_part_of_a_gang_buys_none_of_it(fabric, agent):
    answer = submit(fabric, 3, budget_dc=6_599, expect=402)
    assert answer["type"].endswith("budget-exhausted")
    assert "3 leases need at least 6600 DC set aside" in answer["detail"]
    assert fabric.call("GET", "/v1/account")["held_dc"] == "0"


def test_a_cancel_ends_every_rank(fabric, agent):
    run = submit(fabric)["id"]
    grants, _ = start(agent, run)
    fabric.call("POST", f"/v1/runs/{run}/cancel")
    assert {agent.expect(link.Release).lease for _ in grants} == {grant.lease for grant in grants}
    for grant in grants:
        agent.receipt(grant, ReceiptKind.CLOSE, 1000)
    assert fabric.run(run)["state"] == "CANCELLED"


def test_an_attached_gang_ends_with_its_session(fabric, agent):
    run = submit(fabric, kind="run")["id"]
    grants, _ = start(agent, run)
    fabric.call("POST", "/v1/sessions/ses-alice/end")
    assert {agent.expect(link.Release).lease for _ in grants} == {grant.lease for grant in grants}
    assert (fabric.run(run)["state"], fabric.run(run)["reason"]) == ("FAILED", "client_lost")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"nodes": 2, "nodes_min": 3}, "more than `nodes` = 2"),
        ({"nodes": 2, "kind": "map"}, "a map works on one node"),
        ({"nodes": 2, "kind": "run"}, "needs `work`"),
    ],
)
def test_contradictions_are_refused(fabric, agent, members, words):
    answer = fabric.submit(gpu=["H100"], expect=422, **members)
    assert words in answer["detail"]
