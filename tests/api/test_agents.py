"""Agents' connections: who may connect, what is sent again after a reconnect, what silence does."""

import hashlib

import pytest
from scripted import KEY, OTHER_KEY, Agent, gpu, nodes
from sqlmodel import select
from structlog.testing import capture_logs

from api.tables import GpuRow, LeaseRow, NonceRow
from fabric.wire import link
from fabric.wire.reasons import EXPLANATIONS, Reason
from fabric.wire.receipts import ReceiptKind

TICK, CLOSE = ReceiptKind.TICK, ReceiptKind.CLOSE


def lease_state(fabric, lease):
    with fabric.plane.database.read() as session:
        return session.get(LeaseRow, lease).state


def test_an_enrolled_agent_is_welcomed_and_its_gpus_are_listed_by_public_id(fabric, agent):
    gpus = fabric.client.get("/v1/gpus").json()["gpus"]
    assert len(gpus) == 3
    assert all(one["id"].startswith("0x") and one["offered"] for one in gpus)
    assert "GPU-1" not in str(gpus)
    assert fabric.client.get(f"/v1/gpus/{gpus[0]['id']}").json() == gpus[0]
    operators = fabric.client.get("/v1/operators").json()["operators"]
    assert [(one["id"], one["connected"], one["gpus"]) for one in operators] == [("op-1", True, 3), ("op-2", False, 0)]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"protocol": 0}, "protocol"),
        ({"operator": "nobody"}, "not known"),
        ({"key": OTHER_KEY}, "not one of operator"),
        ({"proof": bytes(64)}, "not signed"),
        ({"cluster": "a/b"}, "characters"),
        ({"nodes": nodes(python="3.10")}, "Python"),
        ({"nodes": nodes() + nodes()}, "twice"),
        ({"prices": {"H100": {"gold": 5}}}, "tier"),
        ({"prices": {"H100": {"spot": 0}}}, "price"),
    ],
    ids=["protocol", "operator", "key", "proof", "cluster", "python", "twice", "tier", "price"],
)
def test_who_may_not_connect_is_told_why(fabric, options, word):
    named = {name: options.pop(name) for name in ("operator", "key", "cluster") if name in options}
    answer = Agent(fabric, **named, **options).connect()
    assert isinstance(answer, link.Refuse)
    assert word in answer.reason
    assert answer.final


def test_a_cluster_without_gpus_is_told_so_and_may_come_again_with_some(fabric, agent):
    before = fabric.call("GET", "/v1/gpus")
    empty = [one.model_copy(update={"gpus": []}) for one in nodes(gpu(9), name="node-9")]
    for offered in ([], empty):
        with capture_logs() as logs:
            answer = Agent(fabric, "op-2", OTHER_KEY, nodes=offered).connect()
        assert isinstance(answer, link.Refuse)
        assert "no GPU to offer" in answer.reason
        assert not answer.final
        assert any("no GPU to offer" in line.get("reason", "") for line in logs)
    assert fabric.call("GET", "/v1/gpus") == before
    assert isinstance(Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(9), name="node-9")).connect(), link.Welcome)


def test_an_agent_whose_gpus_are_all_gone_comes_back_while_it_has_leases(fabric, agent):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.close()
    agent.options["nodes"] = []
    held = link.LeaseRef(lease=grant.lease, generation=1)
    assert isinstance(agent.connect(held=[held]), link.Welcome)
    agent.close()
    assert isinstance(agent.connect(), link.Refuse)


def test_simulated_gpus_are_refused_unless_allowed(start):
    answer = Agent(start(allow_simulated=False)).connect()
    assert isinstance(answer, link.Refuse)
    assert "FABRIC_ALLOW_SIMULATED" in answer.reason
    real = Agent(start(allow_simulated=False), nodes=nodes(gpu(1, simulated=False)))
    assert isinstance(real.connect(), link.Welcome)


def test_a_gpu_of_another_operator_is_refused_and_flagged_and_stays_with_the_first(fabric, agent):
    second = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(1), gpu(77)))
    assert isinstance(second.connect(), link.Welcome)
    with fabric.plane.database.read() as session:
        row = session.get(GpuRow, "GPU-1")
        assert (row.operator, row.disputed_by) == ("op-1", "op-2")
        assert session.get(GpuRow, "GPU-77").operator == "op-2"
    assert [one["count_total"] for one in fabric.call("GET", "/v1/offers?gpu=H100")["offers"]] == [2, 1]


def test_a_newer_connection_of_a_cluster_ends_the_older(fabric, agent):
    newer = Agent(fabric)
    assert isinstance(newer.connect(), link.Welcome)
    fabric.submit(gpu=["L4"])
    assert newer.expect(link.Grant)


def test_each_beat_brings_a_nonce_whose_issue_is_recorded(fabric, agent):
    agent.beat(1_000)
    with fabric.plane.database.read() as session:
        row = session.get(NonceRow, agent.nonce.seq)
        assert (row.value, row.issued_ms) == (agent.nonce.value, fabric.plane.now_ms())


def test_after_a_reconnect_the_agent_learns_how_far_its_leases_are_durable(fabric, agent):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.receipt(grant, TICK, 0)
    agent.close()
    welcome = agent.connect(held=[link.LeaseRef(lease=grant.lease, generation=1)])
    assert [(ack.lease, ack.seq) for ack in welcome.leases] == [(grant.lease, 1)]
    assert isinstance(agent.receipt(grant, CLOSE, 0), link.Ack)


def test_a_grant_and_a_release_are_sent_again_after_a_reconnect(fabric, agent):
    fabric.submit(gpu=["H100"])
    first = agent.expect(link.Grant)
    agent.close()
    agent.connect()
    assert agent.expect(link.Grant) == first
    agent.open(first)
    agent.close()
    fabric.call("POST", f"/v1/leases/{first.lease}/release", {"generation": 1})
    agent.connect(held=[link.LeaseRef(lease=first.lease, generation=1)])
    assert agent.expect(link.Release).lease == first.lease


def test_a_grant_that_never_opens_ends_the_run_with_startup_timeout(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.beat(29_000)
    assert lease_state(fabric, grant.lease) == "GRANTED"
    agent.beat(1_000)
    assert agent.expect(link.Release).reason == "startup_timeout"
    agent.send(link.Ended(lease=grant.lease, generation=1, reason="startup_timeout"))
    agent.beat()
    agent.beat()
    assert fabric.run(run)["reason"] == "startup_timeout"
    assert fabric.call("GET", "/v1/account")["held_dc"] == "0"
    assert fabric.audit() == []


def test_an_agent_silent_for_a_minute_gets_no_lease_and_after_five_it_loses_its_own(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    fabric.tick()
    fabric.tick(60_000)
    assert fabric.submit(gpu=["L4"], session="s2")["state"] == "QUEUED"
    for _ in range(4):
        fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
        fabric.tick(60_000)
    lost = fabric.run(run)
    assert lost["leases"][0]["state"] == "LOST"
    assert (lost["state"], lost["reason"]) == ("QUEUED", "operator_lost")
    assert fabric.call("GET", "/v1/account")["held_dc"] == "0"
    agent.beat()
    agent.beat()
    assert fabric.run(run)["state"] == "STARTING"
    assert fabric.audit() == []


def test_a_release_to_a_silent_agent_loses_the_lease_at_once(fabric, agent):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    fabric.tick()
    fabric.tick(61_000)
    assert fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1})["state"] == "LOST"


def test_a_lease_that_its_customer_cannot_reach_ends_as_a_lost_operator_and_not_as_a_fault(fabric, agent):
    reached, lost = (fabric.submit(gpu=["H100"], retry={"on": ["interruption"], "max": 0})["id"] for _ in range(2))
    grants = [agent.expect(link.Grant) for _ in range(2)]
    for grant in grants:
        agent.open(grant)
        agent.receipt(grant, TICK, 1000)
        fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": "internal_error"})
    agent.receipt(grants[0], CLOSE, 1000)
    agent.close()
    fabric.tick(61_000)
    for run in (reached, lost):
        found = fabric.run(run)
        assert (found["state"], found["reason"]) == ("FAILED", "operator_lost"), found
        assert "could not be reached" in found["message"] or found["message"] == EXPLANATIONS[Reason.OPERATOR_LOST]
    states = [fabric.run(run)["leases"][0] for run in (reached, lost)]
    assert [(one["state"], one["reason"]) for one in states] == [
        ("CLOSED", "internal_error"),
        ("LOST", "operator_lost"),
    ]
    assert int(fabric.run(reached)["cost"]["accrued_dc"]) > 0
    assert fabric.audit() == []


@pytest.mark.parametrize("word", ["ended", "heartbeat", "receipt"])
@pytest.mark.parametrize("first", ["customer", "agent"])
def test_an_agents_word_that_its_node_is_lost_is_the_reason_even_if_its_customer_was_first(fabric, agent, first, word):
    fabric.submit(gpu=["H100"], retry={"on": ["interruption"], "max": 0})
    grant = agent.expect(link.Grant)
    agent.open(grant)

    def give_back():
        fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": "internal_error"})

    if first == "customer":
        give_back()
    if word == "ended":
        agent.send(link.Ended(lease=grant.lease, generation=1, reason="operator_lost"))
    elif word == "heartbeat":
        agent.send(link.Heartbeat(nonce_seq=1, lost_nodes=["node-1"]))
    else:
        agent.receipt(grant, CLOSE, 1000, reason="operator_lost")
    agent.beat()
    if first == "agent":
        give_back()
    if word != "receipt":
        agent.receipt(grant, CLOSE, 1000, reason="operator_lost")
    with fabric.plane.database.read() as session:
        lease = session.get_one(LeaseRow, grant.lease)
    assert (lease.state, lease.reason) == ("CLOSED", "operator_lost")
    assert not lease.given_back, "it counts as the operator's fault"
    assert fabric.audit() == []


def test_a_lease_that_the_agent_came_back_without_is_lost_unless_a_receipt_of_it_comes(fabric, agent):
    for _ in range(2):
        fabric.submit(gpu=["H100"])
    lost, kept = agent.expect(link.Grant), agent.expect(link.Grant)
    agent.open(lost)
    agent.open(kept)
    agent.close()
    agent.connect()
    agent.receipt(kept, TICK, 0)
    agent.beat(30_000)
    assert (lease_state(fabric, lost.lease), lease_state(fabric, kept.lease)) == ("LOST", "OPEN")


def test_a_lease_that_ended_without_a_close_receipt_is_lost_after_five_seconds(fabric, agent):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.send(link.Ended(lease=grant.lease, generation=1, reason="operator_lost"))
    agent.expect(link.Release)
    assert lease_state(fabric, grant.lease) == "CLOSING"
    agent.beat(5_000)
    assert lease_state(fabric, grant.lease) == "LOST"


def test_a_lost_node_ends_its_leases_and_is_not_offered_until_it_is_back(fabric, agent):
    run = fabric.submit(gpu=["H100"], retry={"max": 0})["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.send(link.Heartbeat(nonce_seq=1, lost_nodes=["node-1"]))
    assert agent.expect(link.Release).reason == "operator_lost"
    agent.receipt(grant, CLOSE, 0, reason="operator_lost")
    assert (fabric.run(run)["state"], fabric.run(run)["reason"]) == ("FAILED", "operator_lost")
    assert fabric.call("GET", "/v1/offers")["offers"] == []
    agent.send(link.Inventory(nodes=nodes()))
    agent.send(link.Ended(lease=grant.lease, generation=1, reason="done"))
    agent.receipt(grant, CLOSE, 0, advance=False)
    assert fabric.call("GET", "/v1/offers")["offers"] != []


def test_an_inventory_withdraws_what_it_no_longer_names(fabric, agent):
    agent.send(link.Inventory(nodes=nodes(gpu(3, "L4"), gpu(1, healthy=False, problem="fell off the bus"))))
    run = fabric.submit(gpu=["L4"])
    assert agent.expect(link.Grant).run == run["id"]
    assert fabric.submit(gpu=["H100"], expect=409)["type"].endswith("no-capacity")


def test_a_message_that_is_none_ends_the_connection_with_the_reason(fabric, agent):
    agent.socket.send_bytes(b"\xc1")
    assert "not a message" in agent.expect(link.Refuse).reason


def test_a_customer_silent_for_three_minutes_is_released(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for _ in range(3):
        agent.beat(50_000)
    assert fabric.run(run)["state"] == "RUNNING"
    agent.beat(50_000)
    assert agent.expect(link.Release).reason == "client_lost"
    agent.receipt(grant, CLOSE, 0)
    ended = fabric.run(run)
    assert (ended["reason"], "fabric.submit" in ended["message"]) == ("client_lost", True)


def test_a_silent_customers_lingering_lease_is_released_though_a_detached_run_goes_on(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    fabric.call("POST", f"/v1/runs/{run}/finish", {"state": "SUCCEEDED"})
    digest = hashlib.sha256(b"work").hexdigest()
    headers = {"Authorization": "Bearer key-alice"}
    assert fabric.client.put(f"/v1/blobs/{digest}", content=b"work", headers=headers).status_code == 200
    detached = fabric.submit(kind="submit", gpu=["L4"], work={"code": digest, "args": digest})["id"]
    agent.open(agent.expect(link.Grant))
    for _ in range(4):
        agent.beat(50_000)
    released = agent.expect(link.Release)
    assert (released.lease, released.reason) == (grant.lease, "client_lost")
    assert fabric.run(detached)["state"] == "RUNNING"


def test_a_restart_of_the_control_plane_loses_nothing_it_acknowledged(start):
    fabric = start()
    agent = Agent(fabric)
    agent.connect()
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(3_000)
    agent.receipt(grant, TICK, 3_000)
    fabric_id = fabric.plane.fabric_id
    fabric = start()
    assert fabric.plane.fabric_id == fabric_id
    agent.fabric = fabric
    fabric.clock.advance(600_000)
    welcome = agent.connect(held=[link.LeaseRef(lease=grant.lease, generation=1)])
    assert welcome.leases[0].seq == 1
    fabric.call("POST", f"/v1/runs/{run}/finish", {"state": "SUCCEEDED", "reason": "done"})
    assert isinstance(agent.receipt(grant, CLOSE, 3_500), link.Ack)
    assert fabric.run(run)["cost"]["gpu_ms"] == 3_500
    with fabric.plane.database.read() as session:
        assert {row.used_milli for row in session.exec(select(GpuRow))} == {0}
    assert fabric.audit() == []
    assert KEY is agent.key
