"""Receipts at the control plane: what is billed, what is refused, and what changes nothing."""

import base64
import json
from dataclasses import replace

import msgpack
import pytest
from scripted import OTHER_KEY, Agent, done, gpu, nodes
from sqlmodel import select

from api.metering import Arrived
from api.tables import EquivocationRow, LeaseRow, LeaseRunRow, TaskRow
from fabric import cli
from fabric.client.runs import RunReceipt
from fabric.wire import link
from fabric.wire.receipts import GENESIS_HASH, ReceiptKind, RunLine, SignedReceipt

TICK, CLOSE = ReceiptKind.TICK, ReceiptKind.CLOSE


@pytest.fixture
def opened(fabric, agent):
    """(run, grant) of an open lease of one H100 at 100 DC a second."""
    run = fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return run["id"], grant


UNFIT = {
    "a run that is none": lambda run: {"runs": (RunLine("run_\0", 1_000),)},
    "a run longer than an index takes": lambda run: {"runs": (RunLine("r" * 5_000, 1_000),)},
    "a task of a run that is none": lambda run: {"tasks": (done("run_\0"),)},
    "a task's reason": lambda run: {"tasks": (done(run, reason="done\0"),)},
    "a task's attempt": lambda run: {"tasks": (done(run, attempt=2**31),)},
    "a task's number": lambda run: {"tasks": (done(run, 10**9 + 1),)},
    "a task's GPU": lambda run: {"tasks": (replace(done(run), gpus=("GPU-\0",)),)},
}
"""Receipts that are signed and chained as they should be, with something that no record can hold."""


def charged(fabric, run):
    return int(fabric.run(run)["cost"]["accrued_dc"])


def test_the_claim_is_billed_up_to_the_window(fabric, agent, opened):
    run, grant = opened
    agent.beat(10_000)
    agent.receipt(grant, TICK, 4_000)
    assert charged(fabric, run) == 400
    agent.receipt(grant, TICK, 3_600_000)
    assert charged(fabric, run) == 1000


def test_sending_a_receipt_twice_changes_no_bill(fabric, agent, opened):
    run, grant = opened
    agent.beat(5_000)
    first = agent.signed(grant, TICK, 5_000)
    for _ in range(3):
        agent.send(link.Receipts(receipts=[first.to_bytes()]))
        assert agent.expect(link.Ack).seq == 1
    assert charged(fabric, run) == 500


def test_a_receipt_sent_early_is_answered_with_where_to_go_on(fabric, agent, opened):
    run, grant = opened
    agent.beat(5_000)
    one, two = agent.signed(grant, TICK, 2_000), agent.signed(grant, TICK, 4_000)
    agent.send(link.Receipts(receipts=[two.to_bytes()]))
    assert agent.expect(link.Ack).seq == 0
    assert charged(fabric, run) == 0
    agent.send(link.Receipts(receipts=[one.to_bytes(), two.to_bytes(), one.to_bytes()]))
    assert agent.expect(link.Ack).seq == 2
    assert charged(fabric, run) == 400


def test_another_body_under_the_same_number_is_refused_and_kept_as_proof(fabric, agent, opened):
    _, grant = opened
    agent.beat(5_000)
    agent.receipt(grant, TICK, 2_000)
    seq, _ = agent.chains[grant.lease]
    agent.chains[grant.lease] = (seq - 1, GENESIS_HASH)
    refusal = agent.receipt(grant, TICK, 3_000)
    assert isinstance(refusal, link.RejectReceipt)
    with fabric.plane.database.read() as session:
        assert [(row.lease, row.seq) for row in session.exec(select(EquivocationRow))] == [(grant.lease, 1)]


def test_an_equivocation_is_handed_to_the_customer_as_a_proof_that_verifies_offline(
    fabric, agent, opened, tmp_path, capsys
):
    run, grant = opened
    agent.beat(5_000)
    agent.receipt(grant, TICK, 2_000)
    agent.chains[grant.lease] = (1, agent.chains[grant.lease][1])
    agent.receipt(grant, TICK, 3_000, advance=False)
    answer = fabric.call("GET", f"/v1/runs/{run}/receipt")
    kept = RunReceipt.from_answer(json.loads(json.dumps(answer)))
    assert kept.to_answer() == answer
    [proof] = kept.equivocations
    kept.verify()
    assert [line.gpu_ms for said in proof.verify() for line in said.gpus] == [2_000, 3_000]

    (tmp_path / "kept.json").write_text(json.dumps(answer))
    assert cli.main(["receipt", str(tmp_path / "kept.json"), "--verify"]) == 0
    assert f"EQUIVOCATION proven: operator op-1 signed 0x{proof.verify()[0].hash.hex()}" in capsys.readouterr().out

    answer["equivocations"][0]["second"] = answer["equivocations"][0]["first"]
    (tmp_path / "kept.json").write_text(json.dumps(answer))
    assert cli.main(["receipt", str(tmp_path / "kept.json"), "--verify"]) == 2
    assert "no equivocation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": OTHER_KEY},
        {"operator": "op-2"},
        {"fabric_id": "another"},
        {"generation": 2},
        {"simulated": False},
        {"nonce": bytes(32)},
        {"nonce_seq": 10_000},
        {"previous": bytes(31) + b"x"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_receipt_that_lies_is_refused_and_bills_nothing(fabric, agent, opened, wrong):
    run, grant = opened
    agent.beat(5_000)
    assert isinstance(agent.receipt(grant, TICK, 5_000, advance=False, **wrong), link.RejectReceipt)
    assert charged(fabric, run) == 0
    assert fabric.audit() == []


def test_one_operators_nonsense_keeps_nobody_elses_receipts_waiting(fabric, agent, opened):
    run, grant = opened
    agent.beat(5_000)
    good = agent.signed(grant, TICK, 5_000).to_bytes()
    nonsense = [msgpack.packb([b"", b"", [[*done(run).to_list()[:10], counters]]]) for counters in ([1], [["a", "x"]])]
    arrived = [Arrived("op-2", (), bytes(data or b"")) for data in nonsense] + [
        Arrived("op-1", (bytes(agent.key.verify_key),), good)
    ]
    answers = fabric.app.state.ingest.metering.take(arrived)
    assert [(index, answer.seq) for index, answer in answers] == [(2, 1)]
    assert charged(fabric, run) == 500


def test_a_receipt_gives_another_customers_run_no_part_and_no_result(fabric, agent, opened):
    run, grant = opened
    theirs = fabric.submit(who="bob", gpu=["H100"])["id"]
    agent.beat(2_000)
    agent.receipt(grant, TICK, 2_000, runs=(RunLine(run, 500), RunLine(theirs, 1_500)), tasks=(done(theirs),))
    with fabric.plane.database.read() as session:
        assert [row.accepted for row in session.exec(select(TaskRow))] == [False]
        parts = session.exec(select(LeaseRunRow).where(LeaseRunRow.lease == grant.lease)).all()
    assert [(part.run, part.gpu_ms) for part in parts] == [(run, 500)]
    assert (charged(fabric, run), fabric.run(theirs, who="bob")["cost"]["accrued_dc"]) == (200, "0")
    assert fabric.audit() == []


def test_a_receipt_of_another_operators_lease_is_refused(fabric, agent, opened):
    _, grant = opened
    thief = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(9)))
    thief.connect()
    thief.chains = dict(agent.chains)
    assert isinstance(thief.receipt(grant, TICK, 1_000), link.RejectReceipt)
    thief.close()


def test_a_lease_with_a_receipt_that_cannot_be_accepted_is_released(fabric, agent, opened):
    run, grant = opened
    agent.beat(5_000)
    agent.receipt(grant, TICK, 5_000, advance=False, previous=bytes(31) + b"x")
    assert agent.expect(link.Release).reason == "verification_failed"
    agent.receipt(grant, CLOSE, 2_000)
    assert fabric.run(run)["leases"][0]["state"] == "CLOSED"


def test_a_receipt_ten_minutes_after_its_nonce_is_refused_while_the_control_plane_was_up(fabric, agent, opened):
    run, grant = opened
    nonce = agent.nonce
    for _ in range(12):
        agent.beat(50_000)
        fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
    agent.nonce = nonce
    late = agent.receipt(grant, TICK, 1_000)
    assert isinstance(late, link.Ack)
    bill = charged(fabric, run)
    agent.beat(1_000)
    agent.nonce = nonce
    late = agent.receipt(grant, TICK, 2_000)
    assert isinstance(late, link.RejectReceipt)
    assert charged(fabric, run) == bill


def test_after_a_release_at_most_five_seconds_are_billed(fabric, agent, opened):
    run, grant = opened
    agent.beat(10_000)
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1})
    agent.expect(link.Release)
    agent.beat(30_000)
    agent.receipt(grant, CLOSE, 40_000)
    assert charged(fabric, run) == 1_500


def test_the_window_starts_at_the_grant_and_not_at_an_older_nonce(fabric, agent):
    old = agent.nonce
    agent.beat(50_000)
    run = fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.nonce = old
    agent.open(grant)
    agent.beat(2_000)
    agent.receipt(grant, TICK, 52_000)
    assert charged(fabric, run["id"]) == 200


def test_a_lease_that_was_open_costs_a_second_at_least_and_an_unopened_one_nothing(fabric, agent, opened):
    run, grant = opened
    agent.receipt(grant, CLOSE, 0)
    assert charged(fabric, run) == 100
    other = fabric.submit(gpu=["H100"])["id"]
    second = agent.expect(link.Grant)
    agent.send(link.Ended(lease=second.lease, generation=1, reason="internal_error"))
    agent.expect(link.Grant)
    assert charged(fabric, other) == 0


def test_a_skewed_wall_clock_changes_no_bill(fabric, agent, opened):
    run, grant = opened
    fabric.clock.skew(3_600_000)
    agent.beat(10_000)
    agent.receipt(grant, TICK, 3_600_000)
    assert charged(fabric, run) == 1_000
    fabric.clock.skew(-7_200_000)
    agent.beat(10_000)
    agent.receipt(grant, TICK, 3_600_000)
    assert charged(fabric, run) == 2_000


def test_one_task_has_one_accepted_result_whatever_receipts_say(fabric, agent, opened):
    run, grant = opened
    agent.beat(1_000)
    agent.receipt(grant, TICK, 500, tasks=(done(run, 0), done(run, 1, reason="user_error"), done(run, 0, attempt=2)))
    agent.receipt(grant, TICK, 600, tasks=(done(run, 0), done(run, 0, attempt=3), done(run, 2)))
    with fabric.plane.database.read() as session:
        rows = session.exec(select(TaskRow).where(TaskRow.accepted)).all()
    assert sorted((row.task, row.attempt) for row in rows) == [(0, 1), (2, 1)]
    assert fabric.run(run)["tasks"] == {"total": 1, "done": 2, "failed": 1}
    assert fabric.audit() == []


def test_runs_that_share_a_lease_split_its_bill_to_the_last_dc(fabric, agent, opened):
    run, grant = opened
    other = fabric.submit(lease={"id": grant.lease, "generation": 1})["id"]
    agent.beat(7_000)
    agent.receipt(grant, TICK, 6_990, runs=(RunLine(run, 2_330, 10, 5), RunLine(other, 4_660)))
    costs = [fabric.run(name)["cost"] for name in (run, other)]
    assert [int(cost["accrued_dc"]) for cost in costs] == [233, 466]
    assert [cost["gpu_ms"] for cost in costs] == [2_330, 4_660]
    assert (costs[0]["idle_ms"], costs[0]["setup_ms"]) == (10, 5)


def test_receipts_of_a_run_verify_offline(fabric, agent, opened):
    run, grant = opened
    agent.beat(1_000)
    agent.receipt(grant, TICK, 500, tasks=(done(run),))
    answer = fabric.call("GET", f"/v1/runs/{run}/receipt")
    key = bytes.fromhex(answer["operators"]["op-1"]["session_keys"][0])
    signed = [SignedReceipt.from_bytes(base64.b64decode(one["receipt"])) for one in answer["receipts"]]
    assert [one.verify(key).seq for one in signed] == [0, 1]


def test_a_malformed_receipt_is_dropped_and_the_connection_lives(fabric, agent, opened):
    run, grant = opened
    agent.send(link.Receipts(receipts=[b"junk"]))
    agent.beat(1_000)
    assert isinstance(agent.receipt(grant, TICK, 1_000), link.Ack)
    assert charged(fabric, run) == 100


@pytest.mark.parametrize("make", UNFIT.values(), ids=UNFIT)
def test_a_receipt_that_no_record_can_hold_is_refused_and_what_comes_beside_it_is_taken(fabric, agent, opened, make):
    run, grant = opened
    other = fabric.submit(gpu=["H100"])["id"]
    beside = agent.expect(link.Grant)
    agent.open(beside)
    agent.beat(1_000)
    refuse_unfit(agent, agent.signed(grant, TICK, 1_000, **make(run)).to_bytes(), grant, beside)
    assert agent.expect(link.Release).lease == grant.lease
    assert (charged(fabric, run), charged(fabric, other)) == (0, 100)
    assert fabric.audit() == []


def refuse_unfit(agent, unfit, grant, beside):
    """Send it with a good receipt of another lease behind it."""
    agent.send(link.Receipts(receipts=[unfit, agent.signed(beside, TICK, 1_000).to_bytes()]))
    refusal = agent.expect(link.RejectReceipt)
    assert (refusal.lease, refusal.generation, refusal.seq) == (grant.lease, 1, 1)
    assert agent.expect(link.Ack).lease == beside.lease


def test_a_receipt_with_text_that_is_none_is_refused_by_the_name_that_it_gives(fabric, agent, opened):
    run, grant = opened
    fabric.submit(gpu=["H100"])
    beside = agent.expect(link.Grant)
    agent.open(beside)
    agent.beat(1_000)
    fine = agent.signed(grant, TICK, 1_000, tasks=(done(run),), advance=False).to_bytes()
    half_a_pair = fine.replace(run.encode(), run[:-3].encode() + "\ud800".encode(errors="surrogatepass"))
    assert half_a_pair != fine
    refuse_unfit(agent, half_a_pair, grant, beside)
    agent.send(link.Receipts(receipts=[fine[:-1], b"\x93\xc4\x01\x90\xc4\x00\x90", b"\x90", b"\x01"]))
    assert isinstance(agent.receipt(grant, TICK, 1_000), link.Ack)


def test_an_old_generation_cannot_bill(fabric, agent, opened):
    run, grant = opened
    agent.beat(2_000)
    agent.receipt(grant, TICK, 2_000, tasks=(done(run, end_ms=2_000),))
    fabric.tick(300_000)
    agent.expect(link.Nonce)
    with fabric.plane.database.read() as session:
        lease = session.get(LeaseRow, grant.lease)
    assert (lease.state, lease.generation) == ("LOST", 2)
    assert isinstance(agent.receipt(grant, TICK, 3_000), link.RejectReceipt)
    assert charged(fabric, run) == 200
    assert fabric.audit() == []


def test_the_time_since_the_last_finished_task_is_not_billed_when_the_operator_is_lost(fabric, agent, opened):
    run, grant = opened
    agent.beat(2_000)
    agent.receipt(grant, TICK, 2_000, tasks=(done(run, end_ms=1_500),))
    agent.beat(8_000)
    agent.receipt(grant, TICK, 10_000)
    assert charged(fabric, run) == 1_000
    fabric.tick(300_000)
    assert charged(fabric, run) == 150
    assert fabric.call("GET", "/v1/account")["available_dc"] == str(100_000_000 - 150)
    assert fabric.audit() == []


def test_a_crash_of_the_childs_sandbox_is_billed_and_a_sick_gpu_is_not(fabric, agent, opened):
    run, grant = opened
    agent.beat(5_000)
    agent.receipt(grant, CLOSE, 5_000, reason="gpu_unhealthy")
    assert charged(fabric, run) == 0
    second = agent.expect(link.Grant)
    assert fabric.run(run)["state"] == "STARTING"
    agent.open(second)
    agent.beat(5_000)
    agent.receipt(second, CLOSE, 5_000, reason="crashed")
    assert charged(fabric, run) == 500
    assert fabric.run(run)["state"] == "FAILED"
