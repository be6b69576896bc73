"""Spot leases leave when a higher tier needs their GPUs: with notice, for somebody, and for nothing never."""

import pytest
from scripted import H100_PRICE, OTHER_KEY, Agent, gpu, nodes

from api import notices
from api.tables import LeaseRow, RunRow
from fabric.wire import link
from fabric.wire.reasons import Reason
from fabric.wire.receipts import ReceiptKind

CLOSE = ReceiptKind.CLOSE
WORK = {"code": "0" * 64, "args": "1" * 64}


@pytest.fixture
def agent(fabric):
    """Two H100, no more."""
    agent = Agent(fabric, nodes=nodes(gpu(1), gpu(2)))
    assert isinstance(agent.connect(), link.Welcome)
    return agent


def spot(fabric, agent, who="bob", gpus="H100:1", **members):
    """A spot run that is running; (run id, its grant)."""
    run = fabric.submit(who=who, gpu=[gpus], tier="spot", **members)["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return run, grant


def closes(agent, grant, gpu_ms=1_000, reason="preempted"):
    """What the agent says when the node has kept the deadline."""
    agent.receipt(grant, CLOSE, gpu_ms, reason=reason)
    agent.send(link.Ended(lease=grant.lease, generation=grant.generation, reason=reason))
    agent.beat()


def test_spot_gets_its_notice_and_the_run_that_needs_the_gpu_gets_it(fabric, agent):
    evicted, grant = spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])
    assert wants["state"] == "QUEUED"
    assert "1 spot lease must leave first" in wants["explain"]["text"]
    notice = agent.expect(link.Notice)
    assert (notice.lease, notice.reason, notice.notice_ms) == (grant.lease, "preempted", 30_000)
    assert fabric.run(evicted, who="bob")["state"] == "PREEMPTING"
    agent.beat(10_000)
    closes(agent, grant)
    fabric.tick()
    assert fabric.run(wants["id"])["state"] == "STARTING"
    again = fabric.run(evicted, who="bob")
    assert (again["state"], again["reason"]) == ("QUEUED", "preempted")
    assert fabric.audit() == []


def evicting(fabric, agent, gpus="H100:2", **members):
    """A run that evicted and got its lease, open; (run id, its grant)."""
    _, grant = spot(fabric, agent, gpus=gpus)
    wants = fabric.submit(gpu=[gpus], **members)
    assert "at least 10 minutes are billed" in wants["explain"]["text"]
    agent.expect(link.Notice)
    agent.beat(10_000)
    closes(agent, grant)
    fabric.tick()
    won = agent.expect(link.Grant)
    agent.open(won)
    return wants["id"], won


def test_a_lease_that_evicted_costs_ten_minutes_at_least(fabric, agent):
    run, grant = evicting(fabric, agent)
    agent.beat(2_000)
    fabric.call("POST", f"/v1/runs/{run}/finish", {"state": "SUCCEEDED", "reason": "done"})
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": grant.generation, "reason": "done"})
    closes(agent, grant, 2_000, "done")
    assert fabric.run(run)["cost"]["accrued_dc"] == str(2 * H100_PRICE // 6)
    assert fabric.audit() == []


def test_a_lease_that_evicted_and_lasts_longer_costs_its_time(fabric, agent):
    run, grant = evicting(fabric, agent)
    for minute in range(1, 13):
        agent.beat(60_000)
        fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
        agent.receipt(grant, ReceiptKind.TICK, minute * 60_000)
    closes(agent, grant, 720_000, "done")
    assert fabric.run(run)["cost"]["accrued_dc"] == str(2 * H100_PRICE // 5)
    assert fabric.audit() == []


@pytest.mark.parametrize("reason", ["operator_drain", "gpu_unhealthy", "internal_error"])
def test_a_lease_that_evicted_and_that_no_customer_ended_costs_its_time(fabric, agent, reason):
    run, grant = evicting(fabric, agent)
    agent.beat(2_000)
    closes(agent, grant, 2_000, reason)
    assert int(fabric.run(run)["cost"]["accrued_dc"]) <= H100_PRICE * 2 * 2 // 3600
    assert fabric.audit() == []


@pytest.mark.parametrize("first", ["receipt", "word"])
@pytest.mark.parametrize("reason", ["done", "cancelled_by_user", "user_error", "budget_exhausted", "deps_install"])
def test_no_agent_bills_the_least_by_saying_that_its_customer_ended_the_lease(fabric, agent, reason, first):
    run, grant = evicting(fabric, agent)
    agent.beat(2_000)
    if first == "word":
        agent.send(link.Ended(lease=grant.lease, generation=grant.generation, reason=reason))
        agent.beat()
    closes(agent, grant, 2_000, reason)
    assert int(fabric.run(run)["cost"]["accrued_dc"]) <= H100_PRICE * 2 * 2 // 3600
    assert fabric.run(run)["leases"][0]["reason"] in ("internal_error", "deps_install", "user_error")
    assert fabric.audit() == []


def test_who_lets_the_budget_run_out_pays_the_least(fabric, agent):
    run, grant = evicting(fabric, agent)
    with fabric.plane.database.write() as session:
        notices.give(fabric.plane, session, session.get_one(LeaseRow, grant.lease), Reason.BUDGET_EXHAUSTED, 0)
    agent.beat(2_000)
    closes(agent, grant, 2_000, "budget_exhausted")
    assert fabric.run(run)["cost"]["accrued_dc"] == str(2 * H100_PRICE // 6)


@pytest.mark.parametrize("reason", ["preempted", "operator_drain", "internal_error", "startup_timeout"])
def test_who_gives_it_back_pays_the_least_whatever_reason_they_state(fabric, agent, reason):
    run, grant = evicting(fabric, agent)
    agent.beat(2_000)
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": grant.generation, "reason": reason})
    closes(agent, grant, 2_000, reason)
    assert fabric.run(run)["cost"]["accrued_dc"] == str(2 * H100_PRICE // 6)
    assert fabric.audit() == []


def test_who_is_told_to_leave_and_does_pays_no_more_than_the_time(fabric, agent):
    run, grant = evicting(fabric, agent)
    with fabric.plane.database.write() as session:
        notices.give(fabric.plane, session, session.get_one(LeaseRow, grant.lease), Reason.OPERATOR_DRAIN, 30_000)
    agent.beat(2_000)
    ended = {"generation": grant.generation, "reason": "operator_drain"}
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", ended)
    closes(agent, grant, 2_000, "operator_drain")
    assert int(fabric.run(run)["cost"]["accrued_dc"]) <= H100_PRICE * 2 * 2 // 3600
    assert fabric.audit() == []


def test_only_the_lease_for_which_somebody_had_to_leave_costs_ten_minutes(fabric, agent):
    run, grant = evicting(fabric, agent)
    fabric.call("POST", f"/v1/runs/{run}/cancel")
    closes(agent, grant, 1_000, "cancelled_by_user")
    agent.expect(link.Grant)  # the one that was evicted is back
    other = fabric.submit(gpu=["H100:2"], budget_dc=10**6, tier="spot")["id"]
    assert fabric.run(run)["cost"]["accrued_dc"] == str(2 * H100_PRICE // 6)
    assert fabric.run(other)["cost"]["accrued_dc"] == "0"


def test_who_evicted_and_was_placed_elsewhere_pays_for_the_eviction_nowhere_later(fabric, agent):
    _, grant = spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])["id"]
    agent.expect(link.Notice)
    other = Agent(
        fabric, operator="op-2", key=OTHER_KEY, nodes=nodes(gpu(8), gpu(9)), prices={"H100": {"on_demand": 100}}
    )
    other.connect()
    closes(agent, grant)
    fabric.tick()
    assert other.expect(link.Grant).run == wants
    with fabric.plane.database.read() as session:
        assert session.get_one(RunRow, wants).evicted_gpus == []


def test_the_one_that_loses_least_goes_and_only_as_many_as_needed(fabric, agent):
    long_ago, _ = spot(fabric, agent)
    agent.beat(30_000)
    lately, grant = spot(fabric, agent)
    fabric.submit(gpu=["H100"])
    assert agent.expect(link.Notice).lease == grant.lease
    states = [fabric.run(run, who="bob")["state"] for run in (long_ago, lately)]
    assert states == ["RUNNING", "PREEMPTING"]


def test_the_room_is_kept_for_who_evicted_while_others_still_leave(fabric, agent):
    grants = [spot(fabric, agent)[1] for _ in range(2)]
    wants = fabric.submit(gpu=["H100:2"])["id"]
    for _ in grants:
        agent.expect(link.Notice)
    closes(agent, grants[0])
    quick = fabric.submit(who="carol", gpu=["H100"])
    assert quick["state"] == "QUEUED"
    fabric.tick()
    assert [fabric.run(wants)["state"], fabric.run(quick["id"], who="carol")["state"]] == ["QUEUED", "QUEUED"]
    closes(agent, grants[1])
    fabric.tick()
    assert fabric.run(wants)["state"] == "STARTING"


def test_on_demand_is_never_evicted_and_spot_evicts_nobody(fabric, agent):
    holder = fabric.submit(who="bob", gpu=["H100:2"])["id"]
    agent.open(agent.expect(link.Grant))
    waits = [fabric.submit(gpu=["H100:2"], tier=tier)["id"] for tier in ("on_demand", "spot")]
    fabric.tick(1_000)
    assert fabric.run(holder, who="bob")["state"] == "RUNNING"
    assert {fabric.run(run)["state"] for run in waits} == {"QUEUED"}


def test_who_may_not_wait_evicts_nobody(fabric, agent):
    evicted, _ = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"], queue_timeout_ms=0, expect=409)
    assert fabric.run(evicted, who="bob")["state"] == "RUNNING"


def test_who_cannot_pay_ten_minutes_evicts_nobody(fabric, agent):
    evicted, _ = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"], budget_dc=60_000)
    assert fabric.run(evicted, who="bob")["state"] == "RUNNING"
    fabric.submit(gpu=["H100:2"], budget_dc=120_000)
    assert fabric.run(evicted, who="bob")["state"] == "PREEMPTING"


def held(fabric, who="alice"):
    return int(fabric.call("GET", "/v1/account", who=who)["held_dc"])


def test_what_an_eviction_will_cost_at_least_is_held_while_it_waits(fabric, agent):
    _, grant = spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])["id"]
    assert held(fabric) == 2 * H100_PRICE // 6
    agent.expect(link.Notice)
    agent.beat(10_000)
    closes(agent, grant)
    fabric.tick()
    assert fabric.run(wants)["state"] == "STARTING"
    assert held(fabric) == 2 * H100_PRICE // 6  # of the lease now
    assert fabric.audit() == []


def test_the_winner_gets_its_money_back_when_it_waits_no_more(fabric, agent):
    spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])["id"]
    fabric.call("POST", f"/v1/runs/{wants}/cancel")
    fabric.tick(1_000)
    assert held(fabric) == 0
    assert fabric.audit() == []


def test_money_that_stays_held_for_an_eviction_which_is_over_is_found(fabric, agent):
    with fabric.plane.database.write() as session:
        fabric.plane.ledger(session).hold("eviction/run-1/lease-1", "run-1", "alice", 5, "hold/eviction/run-1/lease-1")
    (check,) = fabric.audit()
    assert "nobody waits for it any more" in check["first_bad"]


def test_two_evictions_are_not_paid_with_the_same_money(fabric, agent):
    second = Agent(fabric, cluster="second", nodes=nodes(gpu(8), gpu(9), name="node-8"))
    second.connect()
    for _ in range(2):
        fabric.submit(who="bob", gpu=["H100:2"], tier="spot")
    for one in (agent, second):
        one.open(one.expect(link.Grant))
    balance = int(fabric.call("GET", "/v1/account")["available_dc"])
    cost = 2 * H100_PRICE // 6
    with fabric.plane.database.write() as session:
        fabric.plane.ledger(session).hold("spent", "spent", "alice", balance - cost - 1, "hold/spent")
    runs = [fabric.submit(gpu=["H100:2"])["id"] for _ in range(2)]
    texts = [fabric.run(run)["explain"]["text"] for run in runs]
    assert ["must leave" in text for text in texts] == [True, False]


def test_a_dry_run_says_who_would_have_to_leave_and_evicts_nobody(fabric, agent):
    evicted, _ = spot(fabric, agent, gpus="H100:2")
    plan = fabric.submit(gpu=["H100:2"], dry_run=True, expect=200)
    assert plan["explain"]["chosen"]["evicts"] == 1
    assert "1 spot lease must leave first" in plan["explain"]["text"]
    assert fabric.run(evicted, who="bob")["state"] == "RUNNING"


def test_a_lease_that_is_not_open_yet_goes_at_once(fabric, agent):
    evicted = fabric.submit(who="bob", gpu=["H100:2"], tier="spot")["id"]
    agent.expect(link.Grant)
    fabric.submit(gpu=["H100:2"])
    assert agent.expect(link.Release).reason == "preempted"
    assert fabric.run(evicted, who="bob")["state"] == "STARTING"


def test_one_eviction_for_one_run_and_a_second_run_waits(fabric, agent):
    spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"])
    agent.expect(link.Notice)
    second = fabric.submit(gpu=["H100:2"])
    assert second["state"] == "QUEUED"
    assert "must leave" not in second["explain"]["text"]


def test_a_winner_that_is_cancelled_leaves_the_notice_standing_and_the_room_to_others(fabric, agent):
    evicted, grant = spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])["id"]
    agent.expect(link.Notice)
    fabric.call("POST", f"/v1/runs/{wants}/cancel")
    agent.beat(1_000)
    assert fabric.run(evicted, who="bob")["state"] == "PREEMPTING"
    closes(agent, grant)
    fabric.tick(1_000)
    assert fabric.run(evicted, who="bob")["state"] == "STARTING"


def test_who_evicted_and_left_evicts_nobody_for_ten_minutes(fabric, agent):
    evicted, grant = spot(fabric, agent, gpus="H100:2")
    wants = fabric.submit(gpu=["H100:2"])["id"]
    fabric.call("POST", f"/v1/runs/{wants}/cancel")
    agent.expect(link.Notice)
    closes(agent, grant)
    fabric.tick(1_000)
    agent.open(agent.expect(link.Grant))
    again = fabric.submit(gpu=["H100:2"], queue_timeout_ms=3_600_000)
    assert "must leave" not in again["explain"]["text"]
    assert fabric.submit(gpu=["H100:2"], dry_run=True, expect=409)["type"].endswith("no-capacity")
    for _ in range(29):
        agent.beat(20_000)
        for who in ("alice", "bob"):
            fabric.call("POST", f"/v1/sessions/ses-{who}/heartbeat", who=who)
        assert fabric.run(evicted, who="bob")["state"] in ("STARTING", "RUNNING")
    agent.beat(20_000)
    fabric.tick(1_000)
    assert "must leave" in fabric.run(again["id"])["explain"]["text"]
    assert agent.expect(link.Notice).reason == "preempted"


def test_a_node_that_keeps_no_deadline_is_ended_by_the_control_plane_and_the_rest_is_not_billed(fabric, agent):
    evicted, grant = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"])
    agent.beat(31_000)
    assert fabric.run(evicted, who="bob")["state"] == "PREEMPTING"
    agent.beat(1_000)
    assert agent.expect(link.Release).reason == "preempted"
    agent.beat(30_000)
    agent.receipt(grant, CLOSE, 62_000)
    assert fabric.run(evicted, who="bob")["cost"]["gpu_ms"] <= 2 * 37_000
    assert fabric.audit() == []


def test_a_run_that_ends_within_its_notice_ends_as_what_it_is(fabric, agent):
    evicted, _ = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"])
    agent.expect(link.Notice)
    fabric.call("POST", f"/v1/runs/{evicted}/finish", {"state": "SUCCEEDED", "reason": "done"}, who="bob")
    assert fabric.run(evicted, who="bob")["state"] == "SUCCEEDED"


def test_an_agent_that_comes_back_is_told_of_the_notice_with_what_is_left(fabric, agent):
    _, grant = spot(fabric, agent, gpus="H100:2")
    fabric.submit(gpu=["H100:2"])
    agent.expect(link.Notice)
    agent.close()
    fabric.tick(10_000)
    agent.connect(held=[link.LeaseRef(lease=grant.lease, generation=grant.generation)])
    assert agent.expect(link.Notice).notice_ms == 20_000


def test_a_preempted_map_that_asks_for_more_leases_queues_before_its_last_one_ends(fabric, agent):
    evicted, _ = spot(fabric, agent, gpus="H100:2", kind="map")
    fabric.submit(gpu=["H100:2"])
    agent.expect(link.Notice)
    asked = fabric.call("POST", f"/v1/runs/{evicted}/leases", {"count": 1, "exclude_nodes": []}, who="bob")
    assert asked["state"] == "QUEUED"
    again = Agent(fabric, cluster="second", nodes=nodes(gpu(8), gpu(9), name="node-8"))
    again.connect()
    fabric.tick(1_000)
    assert again.expect(link.Grant).run == evicted
