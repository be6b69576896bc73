"""Who goes first when something gets free, where a failed run goes next, and what a customer is told of it."""

import pytest
from scripted import H100_PRICE, OTHER_KEY, Agent, gpu, nodes

from fabric.wire import link
from fabric.wire.reasons import Reason
from fabric.wire.receipts import ReceiptKind


def occupy(fabric, agent, who="bob", **wishes):
    """A run whose lease is open."""
    run = fabric.submit(who=who, gpu=["H100"], **wishes)
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return run, grant


def give_back(fabric, agent, grant, who="bob"):
    """The lease's customer releases it, its node closes it, and the queue is tried."""
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1}, who=who)
    assert isinstance(agent.receipt(grant, ReceiptKind.CLOSE, 1000), link.Ack)
    fabric.tick()


def wait(fabric, agent, ms, who=("alice", "bob")):
    """Time passes while everybody is there."""
    while ms > 0:
        agent.beat(min(ms, 30_000))
        ms -= 30_000
        for one in who:
            fabric.call("POST", f"/v1/sessions/ses-{one}/heartbeat", {}, who=one)


def fail(fabric, agent, reason=Reason.INTERNAL_ERROR):
    """The next grant ends before it opened; the node that it was for."""
    grant = agent.expect(link.Grant)
    agent.send(link.Ended(lease=grant.lease, generation=grant.generation, reason=reason))
    return grant.node


@pytest.fixture
def one_gpu(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1)))
    agent.connect()
    return agent


@pytest.mark.parametrize(("waited_ms", "first"), [(30_000, "on_demand"), (90_000, "spot")])
def test_spot_waits_behind_on_demand_until_it_has_waited_a_minute_longer(fabric, one_gpu, waited_ms, first):
    _, grant = occupy(fabric, one_gpu)
    runs = {"spot": fabric.submit(gpu=["H100"], tier="spot")["id"]}
    wait(fabric, one_gpu, waited_ms)
    runs["on_demand"] = fabric.submit(gpu=["H100"])["id"]
    give_back(fabric, one_gpu, grant)
    states = {tier: fabric.run(run)["state"] for tier, run in runs.items()}
    assert [tier for tier, state in states.items() if state == "STARTING"] == [first]


def big_waits(fabric, one_node, waited_ms):
    """One of two GPUs is taken, a run that wants both waits."""
    _, grant = occupy(fabric, one_node)
    big = fabric.submit(gpu=["H100:2"], queue_timeout_ms=3_600_000)
    assert big["state"] == "QUEUED"
    wait(fabric, one_node, waited_ms)
    return big["id"], grant


def test_room_is_kept_for_a_run_that_has_waited_too_long(fabric, agent):
    big, grant = big_waits(fabric, agent, 600_000)
    late = fabric.submit(who="bob", gpu=["H100"], queue_timeout_ms=3_600_000)
    assert late["state"] == "QUEUED"
    assert "room is kept" in late["explain"]["text"]
    give_back(fabric, agent, grant)
    assert (fabric.run(big)["state"], fabric.run(late["id"], who="bob")["state"]) == ("STARTING", "QUEUED")
    assert fabric.audit() == []


def test_offers_and_a_dry_run_show_no_room_that_is_kept_for_others(fabric, agent):
    big_waits(fabric, agent, 540_000)
    assert fabric.submit(who="bob", gpu=["H100"], dry_run=True, expect=200)["explain"]["chosen"]
    assert [offer["count_free"] for offer in fabric.call("GET", "/v1/offers?gpu=H100")["offers"]] == [1]
    wait(fabric, agent, 60_000)
    refusal = fabric.submit(who="bob", gpu=["H100"], dry_run=True, expect=409)
    assert "room is kept" in refusal["detail"]
    assert fabric.call("GET", "/v1/offers?gpu=H100")["offers"] == []


def test_what_an_offer_and_a_dry_run_show_is_where_the_run_goes_and_what_it_pays(fabric, agent):
    other = Agent(
        fabric, operator="op-2", key=OTHER_KEY, nodes=nodes(gpu(8), name="node-8"), prices={"H100": {"on_demand": 100}}
    )
    other.connect()
    seen = []
    while offers := fabric.call("GET", "/v1/offers?gpu=H100")["offers"]:
        plan = fabric.submit(gpu=["H100"], dry_run=True, expect=200)["explain"]["chosen"]
        bought = fabric.submit(gpu=["H100"])["explain"]["chosen"]
        assert plan == bought
        assert bought["price_dc_per_gpu_hour"] == offers[0]["price_dc_per_gpu_hour"]
        seen.append(bought["price_dc_per_gpu_hour"])
    assert seen == ["100", str(H100_PRICE), str(H100_PRICE)]
    fabric.submit(gpu=["H100"], dry_run=True, expect=409)


def test_until_then_smaller_runs_pass(fabric, agent):
    big_waits(fabric, agent, 540_000)
    assert fabric.submit(who="bob", gpu=["H100"])["state"] == "STARTING"


def test_a_failed_attempt_is_followed_by_one_on_another_node(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1)) + nodes(gpu(2), name="node-2"))
    agent.connect()
    fabric.submit(gpu=["H100"])
    first = fail(fabric, agent)
    assert agent.expect(link.Grant).node != first


def test_a_bad_node_is_tried_twice_when_it_is_the_only_one_and_never_three_times_in_a_row(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1)))
    agent.connect()
    run = fabric.submit(gpu=["H100"], retry={"max": 9})["id"]
    assert [fail(fabric, agent), fail(fabric, agent)] == ["node-1", "node-1"]
    agent.beat()
    agent.beat()
    assert fabric.run(run)["state"] == "QUEUED"
    agent.send(link.Inventory(nodes=nodes(gpu(1)) + nodes(gpu(2), name="node-2")))
    assert fail(fabric, agent) == "node-2"
    assert agent.expect(link.Grant).node == "node-1"


def test_a_preempted_run_may_come_back_to_its_node(fabric, one_gpu):
    fabric.submit(gpu=["H100"], retry={"max": 9})
    assert {fail(fabric, one_gpu, Reason.PREEMPTED) for _ in range(3)} == {"node-1"}


def test_a_run_on_a_held_lease_shows_the_decision_for_that_lease(fabric, one_gpu):
    run, grant = occupy(fabric, one_gpu)
    again = fabric.submit(who="bob", lease={"id": grant.lease, "generation": 1})
    assert again["explain"]["chosen"] == run["explain"]["chosen"] != None  # noqa: E711 - a chain of comparisons
    assert again["explain"]["text"].startswith(f"on lease {grant.lease}, which {run['id']} had opened: 1 × H100")


def test_who_waited_in_vain_is_told_what_would_have_done(fabric, agent):
    occupy(fabric, agent)
    run = fabric.submit(gpu=["H100:2"], queue_timeout_ms=1000)["id"]
    agent.beat(1000)
    over = fabric.run(run)
    assert (over["state"], over["reason"]) == ("FAILED", "no_capacity")
    assert "nearest: 1 instead of 2 × H100 per node" in over["message"]
    assert over["explain"]["next_best"]["change"] == "gpu"


def test_a_refusal_says_when_a_lease_with_a_budget_ends(fabric, one_gpu):
    occupy(fabric, one_gpu, budget_dc=H100_PRICE * 2 // 3)
    answer = fabric.submit(gpu=["H100"], queue_timeout_ms=0, expect=409)
    assert answer["next_best"] == {"change": "wait", "text": "free in about 40 min", "needed": 2_400_000, "count": 1}


def test_a_cap_below_the_price_says_by_how_much(fabric, one_gpu):
    answer = fabric.submit(gpu=["H100"], max_price_dc=H100_PRICE - 20_000, expect=409)
    assert "H100 at $0.20 above your cap per GPU-hour" in answer["detail"]
    assert fabric.submit(gpu=["H100"], max_price_dc=H100_PRICE)["state"] == "STARTING"


def test_operators_are_allowed_and_denied(fabric, one_gpu):
    for members in ({"operators_deny": ["op-1"]}, {"operators_allow": ["op-2"]}):
        answer = fabric.submit(gpu=["H100"], **members, expect=409)
        assert (answer["next_best"]["change"], answer["next_best"]["needed"]) == ("operators", "op-1")
    assert fabric.submit(gpu=["H100"], operators_allow=["op-1"], operators_deny=["op-2"])["state"] == "STARTING"
