"""Time slots: paid at once, used up evenly while the GPU is there, theirs alone who hold them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from scripted import BALANCE, Agent, Fabric, done
from sqlalchemy import text

from api.enrolment_tables import OperatorWalletRow
from fabric.client.runs import RunReceipt
from fabric.wire import link, receipts
from fabric.wire.slot_issue import SlotIssue
from ledger.leaves import gpu_id_hex

WALLET, THIEF = (Account.from_key(bytes([number]) * 32) for number in (1, 2))
GPU = gpu_id_hex("GPU-1")
PRICE, MINUTE = 360_000, 60_000
"""DC per GPU-hour: 6,000 a minute."""


@pytest.fixture
def market(fabric: Fabric, agent: Agent) -> Fabric:
    with fabric.plane.database.write() as session:
        session.add(OperatorWalletRow(operator="op-1", wallet=WALLET.address))
    for _ in range(2):
        agent.beat(1000)
    return fabric


def issue(
    market: Fabric, begin: int = MINUTE, end: int = 4 * MINUTE, *, expect: int = 201, who=WALLET, **options
) -> Any:
    """A slot of GPU-1; times are from now."""
    now = market.clock.now_ms()
    values = {"gpu": GPU, "from_ms": now + begin, "to_ms": now + end, "price_dc_per_gpu_hour": PRICE, "issued_ms": now}
    stated = SlotIssue(**{"fabric": market.plane.fabric_id} | values | options)
    signature = "0x" + bytes(who.sign_typed_data(full_message=stated.typed_data()).signature).hex()
    return market.call("POST", "/v1/slots", {"slot": stated.to_json(), "signature": signature}, expect=expect)


def act(market: Fabric, slot: str, verb: str, body: Any = None, *, who: str = "alice", expect: int = 200) -> Any:
    return market.call("POST", f"/v1/slots/{slot}/{verb}", body, who=who, expect=expect)


def money(market: Fabric, who: str = "alice") -> tuple[int, int]:
    """(available, held) DC."""
    account = market.call("GET", "/v1/account", who=who)
    return int(account["available_dc"]), int(account["held_dc"])


def beats(agent: Agent, ms: int) -> None:
    for _ in range(ms // 10_000):
        agent.beat(10_000)


def test_a_slot_is_paid_at_purchase_and_used_up_evenly_whether_used_or_not(market, agent):
    slot = issue(market)
    assert (slot["price_dc"], slot["sold"]) == ("18000", False)
    assert act(market, slot["id"], "buy")["paid_dc"] == "18000"
    assert act(market, slot["id"], "buy")["paid_dc"] == "18000"
    assert money(market) == (BALANCE - 18_000, 18_000)
    beats(agent, 3 * MINUTE)
    assert 18_000 - 12_000 <= money(market)[1] <= 18_000 - 5_000
    beats(agent, 2 * MINUTE)
    assert money(market) == (BALANCE - 18_000, 0)
    assert market.audit() == []


def test_what_was_not_delivered_goes_back(market, agent):
    slot = issue(market)
    act(market, slot["id"], "buy")
    beats(agent, 2 * MINUTE)
    for _ in range(3 * 6):
        market.tick(10_000)
    available, held = money(market)
    assert held == 0
    assert BALANCE - 18_000 < available < BALANCE - 4_000
    assert market.audit() == []


def test_a_slot_can_be_split_merged_and_given_away_and_no_dc_is_lost(market, agent):
    slot = issue(market, MINUTE, 4 * MINUTE + 1, price_dc_per_gpu_hour=PRICE + 1)
    paid = int(act(market, slot["id"], "buy")["paid_dc"])
    parts = act(market, slot["id"], "split", {"at_ms": slot["from_ms"] + MINUTE})["slots"]
    assert sum(int(part["paid_dc"]) for part in parts) == paid
    assert [part["from_ms"] for part in parts] == [slot["from_ms"], slot["from_ms"] + MINUTE]
    whole = act(market, parts[0]["id"], "merge", {"other": parts[1]["id"]})
    assert (int(whole["paid_dc"]), whole["to_ms"]) == (paid, slot["to_ms"])
    beats(agent, 2 * MINUTE)
    act(market, whole["id"], "transfer", {"to": "bob"})
    assert money(market)[1] == 0
    left = money(market, "bob")[1]
    assert 0 < left < paid
    assert [s["id"] for s in market.call("GET", "/v1/slots?mine=true", who="bob")["slots"]] == [whole["id"]]
    assert market.call("GET", "/v1/slots?mine=true")["slots"] == []
    beats(agent, 4 * MINUTE)
    assert money(market)[0] + money(market, "bob")[0] == 2 * BALANCE - paid
    assert market.audit() == []


def test_the_holders_runs_cost_no_more_and_others_are_kept_off(market, agent):
    slot = issue(market)
    act(market, slot["id"], "buy")
    early = market.submit(gpu=["H100"], tier="reserved", slot=slot["id"], expect=422)
    assert "it is" in early["detail"]
    beats(agent, MINUTE + 10_000)
    run = market.submit(gpu=["H100"], tier="reserved", slot=slot["id"])
    assert run["leases"][0]["price_dc_per_gpu_hour"] == "0"
    grant = agent.expect(link.Grant)
    assert [share.uuid for share in grant.gpus] == ["GPU-1"]
    agent.open(grant)
    beats(agent, MINUTE)
    agent.receipt(grant, receipts.ReceiptKind.TICK, MINUTE)
    assert market.run(run["id"])["cost"]["accrued_dc"] == "0"
    assert market.submit(who="bob", gpu=["H100"], tier="reserved", slot=slot["id"], expect=404)
    others = [market.submit(who="bob", gpu=["H100"]), market.submit(who="bob", gpu=["H100"])]
    assert [one["state"] for one in others] == ["STARTING", "QUEUED"]
    for _ in range(2):
        market.call("POST", "/v1/sessions/ses-alice/heartbeat")
        beats(agent, MINUTE)
    agent.expect(link.Release)
    assert market.run(run["id"])["leases"][0]["state"] == "CLOSING"
    agent.receipt(grant, receipts.ReceiptKind.CLOSE, 3 * MINUTE, reason="slot_ended")
    assert market.run(run["id"])["reason"] == "slot_ended"
    assert market.audit() == []


def test_on_demand_ends_when_a_sold_slot_begins_and_its_offer_says_when(market, agent):
    slot = issue(market, 3 * MINUTE, 6 * MINUTE)
    act(market, slot["id"], "buy", who="bob")
    offers = market.call("GET", "/v1/offers?gpu=H100")["offers"]
    ends = {offer["ends_at_ms"] for offer in offers}
    assert ends == {None, slot["from_ms"] - 10_000}
    runs = [market.submit(gpu=["H100"]) for _ in range(2)]
    grants = [agent.expect(link.Grant) for _ in range(2)]
    on_slot = next(grant for grant in grants if grant.gpus[0].uuid == "GPU-1")
    for grant in grants:
        agent.open(grant)
    beats(agent, 2 * MINUTE + 50_000)
    assert agent.expect(link.Release).lease == on_slot.lease
    states = {run["leases"][0]["id"]: run["leases"][0]["state"] for run in (market.run(run["id"]) for run in runs)}
    assert [states[grant.lease] == "OPEN" for grant in grants] == [grant is not on_slot for grant in grants]


def test_no_slot_is_sold_over_a_lease_that_may_still_run_or_over_another_slot(market, agent):
    slot, later = issue(market), issue(market, 8 * 86_400_000, 8 * 86_400_000 + MINUTE)
    assert "never overlap" in issue(market, 2 * MINUTE, 5 * MINUTE, expect=409)["detail"]
    market.submit(gpu=["H100"])
    market.submit(gpu=["H100"])
    assert "on-demand lease" in act(market, slot["id"], "buy", expect=409)["detail"]
    assert act(market, later["id"], "buy")["sold"] is True


def test_what_makes_no_sense_is_refused(market, agent):
    assert "operator's wallet" in issue(market, who=THIEF, expect=403)["detail"]
    assert "sign it anew" in issue(market, issued_ms=5, expect=422)["detail"]
    assert "after now" in issue(market, -MINUTE, MINUTE, expect=422)["detail"]
    assert "DC per GPU-hour" in issue(market, price_dc_per_gpu_hour=0, expect=422)["detail"]
    assert "no GPU" in issue(market, gpu=gpu_id_hex("GPU-99"), expect=404)["detail"]
    assert "for fabric" in issue(market, fabric="other", expect=422)["detail"]
    slot = issue(market)
    assert act(market, slot["id"], "buy", who="poor", expect=402)["available_dc"] == "50"
    assert "no slot" in act(market, "slot_x", "buy", expect=404)["detail"]
    act(market, slot["id"], "buy")
    assert "sold" in act(market, slot["id"], "buy", who="bob", expect=409)["detail"]
    assert "holds no slot" in act(market, slot["id"], "transfer", {"to": "bob"}, who="bob", expect=404)["detail"]
    assert "no account" in act(market, slot["id"], "transfer", {"to": "nobody"}, expect=404)["detail"]
    assert "can be split" in act(market, slot["id"], "split", {"at_ms": slot["to_ms"]}, expect=422)["detail"]
    assert "not of one GPU" in act(market, slot["id"], "merge", {"other": slot["id"]}, expect=422)["detail"]
    assert market.submit(gpu=["H100"], tier="spot", slot=slot["id"], expect=422)
    assert market.audit() == []


def test_a_reserved_runs_tasks_are_proven_by_its_slots_usage(market, agent):
    slot = issue(market)
    act(market, slot["id"], "buy")
    beats(agent, MINUTE + 10_000)
    run = market.submit(gpu=["H100"], tier="reserved", slot=slot["id"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    beats(agent, 10_000)
    agent.receipt(grant, receipts.ReceiptKind.TICK, 10_000, tasks=(done(run["id"], 0),))
    for number in (1, 2):
        market.call("POST", "/v1/sessions/ses-alice/heartbeat")
        beats(agent, MINUTE)
        agent.receipt(grant, receipts.ReceiptKind.TICK, number * MINUTE, tasks=(done(run["id"], number),))
    beats(agent, MINUTE)
    agent.receipt(grant, receipts.ReceiptKind.CLOSE, 2 * MINUTE, tasks=(done(run["id"], 3),), reason="slot_ended")
    agent.close()
    market.tick(2 * 86_400_000)
    market.call("POST", "/v1/ledger/epochs/close", who="admin", params={"wait_s": 5})
    answer = market.call("GET", f"/v1/runs/{run['id']}/receipt")
    receipt = RunReceipt.from_answer(json.loads(json.dumps(answer)))
    proof = receipt.proof()
    assert [line.task for line in proof.tasks] == [0, 1, 2]
    assert [line.task for line in proof.open_tasks] == [3]
    (counted,) = proof.epochs
    assert counted.bound[0][0] == grant.lease
    assert counted.dc == int(slot["price_dc"])
    epoch = market.call("GET", f"/v1/ledger/epochs/{counted.epoch}")
    assert epoch["usage_root"] == "0x" + counted.usage_root.hex()
    assert RunReceipt.from_answer(receipt.to_answer()).proof() == proof
    assert market.audit() == []
    for changed in (
        {"bound": ((grant.lease, bytes(32)),)},
        {"bound": ()},
        {"receipt_hash": bytes(32)},
        {"gpu": bytes(32)},
        {"dc": 1},
        {"bound": (*counted.bound, ("lea_other", bytes(32)))},
    ):
        with pytest.raises(receipts.ReceiptError):
            replace(receipt, epochs=(replace(counted, **changed),)).proof()


def test_a_slot_that_nobody_runs_on_binds_nothing(market, agent):
    slot = issue(market)
    act(market, slot["id"], "buy")
    beats(agent, 4 * MINUTE + 20_000)
    with market.plane.database.read() as session:
        rows = session.execute(text("SELECT receipt_hash, dc FROM ledger_usage")).all()
    assert rows
    assert {digest for digest, _ in rows} == {bytes(32)}


def test_a_slot_split_just_before_each_look_is_charged_as_one_that_is_whole(market, agent):
    """The seconds since the last look go with the part that they lie in, and are paid."""
    slot = issue(market)
    paid = int(act(market, slot["id"], "buy")["paid_dc"])
    beats(agent, MINUTE - 10_000)
    agent.beat(9_000)
    for _ in range(7):
        agent.beat(10_000)
        agent.beat(9_000)
        slot = act(market, slot["id"], "split", {"at_ms": market.clock.now_ms() + 1})["slots"][1]
    beats(agent, 2 * MINUTE)
    available, held = money(market)
    assert (BALANCE - available, held) == (paid, 0)
    assert market.audit() == []
