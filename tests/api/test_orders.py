"""Operators take nodes out of service and change prices by what their session keys sign; nobody else does."""

import pytest
from scripted import KEY, OTHER_KEY, Agent, gpu, nodes

from api.tables import SessionKeyRow
from fabric.wire import link
from fabric.wire.operator_orders import DrainOrder, PriceOrder, payload, to_json
from fabric.wire.receipts import ReceiptKind

WORK = {"code": "0" * 64, "args": "1" * 64}


@pytest.fixture
def agent(fabric):
    """One H100 on each of two nodes."""
    agent = Agent(fabric, nodes=[*nodes(gpu(1)), *nodes(gpu(2), name="node-2", address="10.0.0.2")])
    assert isinstance(agent.connect(), link.Welcome)
    return agent


def drained(fabric, /, key=KEY, expect=201, signer=None, **members):
    now = fabric.plane.now_ms()
    sound = {"fabric": fabric.plane.fabric_id, "operator": "op-1", "cluster": "main", "node": "node-1"}
    order = DrainOrder(**{**sound, "draining": True, "notice_s": 300, "issued_ms": now, **members})
    return send(fabric, "drain", order, key, signer or key, expect)


def priced(fabric, prices, /, key=KEY, expect=201, **members):
    sound = {"fabric": fabric.plane.fabric_id, "operator": "op-1", "cluster": "main"}
    order = PriceOrder(**{**sound, "issued_ms": fabric.plane.now_ms(), **members}, prices=prices)
    return send(fabric, "price", order, key, key, expect)


def send(fabric, kind, order, key, signer, expect):
    body = {
        "order": to_json(order),
        "session_key": bytes(key.verify_key).hex(),
        "signature": signer.sign(payload(order)).signature.hex(),
    }
    answer = fabric.client.post(f"/v1/operators/orders/{kind}", json=body)
    assert answer.status_code == expect, answer.text
    return answer.json() if expect == 201 else answer.json()["detail"]


def offered(fabric, **query):
    offers = fabric.client.get("/v1/offers", params=query).json()["offers"]
    return {(one["model"], one["tier"]): (int(one["price_dc_per_gpu_hour"]), one["count_free"]) for one in offers}


def started(fabric, agent, **members):
    run = fabric.submit(gpu=["H100"], **members)["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return run, grant


def test_a_drained_node_gets_no_new_lease_until_it_is_back(fabric, agent):
    assert drained(fabric)["leases"] == []
    _, grant = started(fabric, agent)
    assert grant.node == "node-2"
    assert fabric.submit(gpu=["H100"])["state"] == "QUEUED"
    fabric.clock.advance(1)
    drained(fabric, draining=False)
    fabric.tick()
    assert agent.expect(link.Grant).node == "node-1"


def test_leases_there_get_their_notice_and_the_run_goes_on_elsewhere(fabric, agent):
    run, grant = started(fabric, agent, kind="submit", work=WORK, budget_dc="5000000")
    answer = drained(fabric, node=grant.node, notice_s=60)
    notice = agent.expect(link.Notice)
    assert (notice.lease, notice.reason, notice.notice_ms) == (grant.lease, "operator_drain", 60_000)
    assert answer["leases"] == [{"lease": grant.lease, "node": grant.node, "until_ms": fabric.plane.now_ms() + 60_000}]
    assert fabric.run(run)["state"] == "PREEMPTING"
    agent.beat(10_000)
    agent.receipt(grant, ReceiptKind.CLOSE, 10_000, reason="operator_drain")
    agent.send(link.Ended(lease=grant.lease, generation=grant.generation, reason="operator_drain"))
    agent.beat()
    fabric.tick()
    again = agent.expect(link.Grant)
    assert again.run == run
    assert again.node != grant.node
    assert fabric.audit() == []


def test_a_lease_never_gets_less_notice_than_its_offer_promised(fabric, agent):
    _, grant = started(fabric, agent, tier="spot")
    drained(fabric, node=grant.node, notice_s=0)
    assert agent.expect(link.Notice).notice_ms == grant.notice_ms > 0


def test_a_whole_cluster_is_drained_and_one_node_of_it_stays_so(fabric, agent):
    drained(fabric, node="node-1")
    drained(fabric, node="")
    assert offered(fabric) == {}
    fabric.clock.advance(1)
    drained(fabric, node="", draining=False)
    _, grant = started(fabric, agent)
    assert grant.node == "node-2"
    assert fabric.submit(gpu=["H100"])["state"] == "QUEUED"


def test_a_node_is_named_by_its_address_too(fabric, agent):
    drained(fabric, node="10.0.0.2")
    _, grant = started(fabric, agent)
    assert grant.node == "node-1"


def test_a_drained_node_says_so_among_the_gpus(fabric, agent):
    drained(fabric)
    listed = fabric.client.get("/v1/gpus").json()["gpus"]
    assert sorted(one["offered"] for one in listed) == [False, True]


def test_the_whole_of_a_drain_order_is_checked(fabric, agent):
    assert "has no node 'node-9'; there is node-1, node-2" in drained(fabric, node="node-9", expect=404)
    assert "has no cluster 'other'; there is main" in drained(fabric, cluster="other", expect=404)
    assert "speaks for operator op-2" in drained(fabric, key=OTHER_KEY, expect=403)
    assert "has no cluster" in drained(fabric, key=OTHER_KEY, operator="op-2", expect=404)
    assert "not signed by the session key" in drained(fabric, signer=OTHER_KEY, expect=401)
    assert "this is" in drained(fabric, fabric="elsewhere", expect=422)
    now = fabric.plane.now_ms()
    assert "sign it anew" in drained(fabric, issued_ms=now - 600_001, expect=422)
    assert "sign it anew" in drained(fabric, issued_ms=now + 300_001, expect=422)
    assert offered(fabric)["H100", "on_demand"][1] == 2


def test_a_notice_is_from_nothing_to_a_week(fabric, agent):
    now = fabric.plane.now_ms()
    sound = {"fabric": fabric.plane.fabric_id, "operator": "op-1", "cluster": "main", "node": "node-1", "kind": "drain"}
    for notice in (-1, 604_801, 1.5, "5", None, True):
        order = {**sound, "draining": True, "notice_s": notice, "issued_ms": now}
        body = {"order": order, "session_key": bytes(KEY.verify_key).hex(), "signature": "00" * 64}
        answer = fabric.client.post("/v1/operators/orders/drain", json=body)
        assert answer.status_code == 422
        assert "a whole number from 0 to 604800" in answer.json()["detail"]


def test_an_order_is_taken_once_and_an_older_one_never_after_a_newer(fabric, agent):
    now = fabric.plane.now_ms()
    drained(fabric, issued_ms=now)
    drained(fabric, draining=False, issued_ms=now + 1)
    assert "signed later" in drained(fabric, issued_ms=now, expect=409)
    assert "signed later" in drained(fabric, draining=False, issued_ms=now + 1, expect=409)


def test_a_revoked_key_orders_nothing(fabric, agent):
    with fabric.plane.database.write() as session:
        session.get_one(SessionKeyRow, bytes(KEY.verify_key).hex()).revoked_ms = 1
    assert "revoked" in drained(fabric, expect=401)
    assert "revoked" in priced(fabric, {"H100": {"spot": 1}}, expect=401)


def test_an_order_goes_where_it_belongs(fabric, agent):
    now = fabric.plane.now_ms()
    sound = {"fabric": fabric.plane.fabric_id, "operator": "op-1", "cluster": "main", "issued_ms": now}
    order = PriceOrder(**sound, prices={"H100": {"spot": 1}})
    assert "goes to /v1/operators/orders/price" in send(fabric, "drain", order, KEY, KEY, 422)


def test_prices_change_from_now_on_and_never_for_a_running_lease(fabric, agent):
    run, _ = started(fabric, agent)
    before = offered(fabric)["H100", "on_demand"][0]
    answer = priced(fabric, {"h100": {"on_demand": before * 2, "reserved": 7}})
    assert answer["prices"]["H100"]["on_demand"] == str(before * 2)
    now = offered(fabric)
    assert now["H100", "on_demand"][0] == before * 2
    assert fabric.run(run)["leases"][0]["price_dc_per_gpu_hour"] == str(before)
    dear = fabric.submit(gpu=["H100"])
    assert dear["leases"][0]["price_dc_per_gpu_hour"] == str(before * 2)


def test_a_tier_is_taken_out_of_the_offer(fabric, agent):
    assert ("H100", "spot") in offered(fabric, tier="spot")
    priced(fabric, {"H100": {"spot": None}})
    assert ("H100", "spot") not in offered(fabric, tier="spot")


def test_an_order_outlives_a_reconnect_and_ends_when_the_agent_is_configured_anew(fabric, agent):
    said = agent.hello(b"", []).prices
    priced(fabric, {"H100": {"on_demand": 4_321}})
    agent.close()
    agent.connect()
    assert offered(fabric)["H100", "on_demand"][0] == 4_321
    agent.close()
    agent.options["prices"] = {"H100": {**said["H100"], "on_demand": 5_000}}
    agent.connect()
    assert offered(fabric)["H100", "on_demand"][0] == 5_000
    agent.close()
    agent.options["prices"] = said
    agent.connect()
    assert offered(fabric)["H100", "on_demand"][0] == said["H100"]["on_demand"]


def test_bad_prices_are_refused_with_the_reason(fabric, agent):
    before = offered(fabric)
    assert "has no B200; there is H100" in priced(fabric, {"B200": {"spot": 5}}, expect=422)
    assert "tier 'cheap' does not exist" in priced(fabric, {"H100": {"cheap": 5}}, expect=422)
    assert "speaks for operator op-2" in priced(fabric, {"H100": {"spot": 5}}, key=OTHER_KEY, expect=403)
    now = fabric.plane.now_ms()
    for price in (0, -5, 2**41, 2.5, "7", True):
        order = {"kind": "price", "fabric": fabric.plane.fabric_id, "operator": "op-1", "cluster": "main"}
        order |= {"prices": {"H100": {"spot": price}}, "issued_ms": now}
        body = {"order": order, "session_key": bytes(KEY.verify_key).hex(), "signature": "00" * 64}
        answer = fabric.client.post("/v1/operators/orders/price", json=body)
        assert answer.status_code == 422
        assert "a whole number from 1 to" in answer.json()["detail"]
    assert offered(fabric) == before
