"""What customers' processes report, what a bill shows of it, and what all of it makes of an operator's name."""

from dataclasses import asdict

import pytest
from scripted import OTHER_KEY, Agent, gpu, nodes
from sqlmodel import select

from api import conduct, time_reports
from api.conduct_tables import OperatorDayRow
from api.notices import give
from api.pooled import let_down
from api.reputation import UNKNOWN, DayFacts, score
from api.tables import LeaseRow, OperatorRow
from api.verification_tables import ChallengeRow
from fabric.wire import link
from fabric.wire.ids import new_id
from fabric.wire.reasons import Reason
from fabric.wire.receipts import ReceiptKind

TICK, CLOSE = ReceiptKind.TICK, ReceiptKind.CLOSE


def begin(fabric, agent, who="alice", **members):
    run = fabric.submit(who=who, gpu=["H100"], **members)
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return run["id"], grant


def report(fabric, lease, observed_ms, *, final=False, who="alice", session=None, expect=200):
    body = {"times": [{"lease": lease, "observed_ms": observed_ms, "final": final}]}
    return fabric.call("POST", f"/v1/sessions/{session or 'ses-' + who}/times", body, who=who, expect=expect)


def give_back(fabric, agent, grant, claimed_ms, who="alice"):
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1}, who=who)
    agent.expect(link.Release)
    agent.receipt(grant, CLOSE, claimed_ms, reason="done")


def bill(fabric, run, who="alice"):
    [lease] = fabric.call("GET", f"/v1/runs/{run}/bill", who=who)["leases"]
    return lease


def reputation(fabric, operator="op-1"):
    """Swept now, as the rows say, which must be what anybody computes from the answer."""
    fabric.tick(conduct.SWEEP_MS)
    answer = fabric.call("GET", f"/v1/operators/{operator}/reputation", who="nobody")
    again = score([DayFacts(**day) for day in answer["days"]], answer["today"])
    assert {name: asdict(one) for name, one in again.by.items()} == answer["evidence"]
    listed = next(one for one in fabric.call("GET", "/v1/operators")["operators"] if one["id"] == operator)
    assert again.value == answer["reputation"] == listed["reputation"]
    return answer


def today(fabric, operator="op-1"):
    return reputation(fabric, operator)["days"][-1]


def test_an_operator_that_claims_more_than_the_customer_measured_is_shown_on_the_bill_and_loses_its_name(fabric, agent):
    for _ in range(3):
        run, grant = begin(fabric, agent)
        for _ in range(3):
            agent.beat(10_000)
        give_back(fabric, agent, grant, 60_000)
        report(fabric, grant.lease, 20_000, final=True)
    lease = bill(fabric, run)
    assert (lease["claimed_ms"], lease["observed_ms"], lease["over_ms"]) == (60_000, 20_000, 40_000)
    assert lease["billed_ms"] <= 31_000, "the window bounds the bill, not the customer's word"
    assert lease["flagged"]
    facts = today(fabric)
    assert (facts["kept"], facts["reported"], facts["disputed"]) == (3, 3, 3)
    assert reputation(fabric)["reputation"] < UNKNOWN
    assert fabric.audit() == []


def test_an_operator_that_claims_what_was_measured_gains(fabric, agent):
    for _ in range(3):
        run, grant = begin(fabric, agent)
        for _ in range(5):
            agent.beat(10_000)
        give_back(fabric, agent, grant, 50_000)
        report(fabric, grant.lease, 50_900, final=True)
    assert not bill(fabric, run)["flagged"]
    assert not fabric.call("GET", f"/v1/runs/{run}/bill")["flagged"]
    facts = today(fabric)
    assert (facts["reported"], facts["disputed"]) == (3, 0)
    assert facts["agreed_milli"] > 0
    assert reputation(fabric)["reputation"] > UNKNOWN


@pytest.mark.parametrize("observed", [0, 1, 10**9])
def test_no_report_moves_money(fabric, agent, observed):
    run, grant = begin(fabric, agent)
    agent.beat(10_000)
    report(fabric, grant.lease, observed)
    give_back(fabric, agent, grant, 10_000)
    report(fabric, grant.lease, observed, final=True)
    assert bill(fabric, run)["charged_dc"] == "1000"
    assert fabric.call("GET", "/v1/account")["available_dc"] == str(100_000_000 - 1000)
    assert fabric.audit() == []


def test_a_running_leases_report_is_compared_with_what_was_claimed_when_it_came(fabric, agent):
    run, grant = begin(fabric, agent)
    assert bill(fabric, run)["observed_ms"] is None
    agent.beat(60_000)
    agent.receipt(grant, TICK, 60_000)
    report(fabric, grant.lease, 60_000)
    agent.beat(30_000)
    agent.receipt(grant, TICK, 90_000)
    shown = bill(fabric, run)
    assert (shown["claimed_ms"], shown["compared_ms"], shown["over_ms"], shown["flagged"]) == (90_000, 60_000, 0, False)
    give_back(fabric, agent, grant, 90_000)
    report(fabric, grant.lease, 90_000, final=True)
    assert report(fabric, grant.lease, 5) == {"late": []}
    assert bill(fabric, run)["over_ms"] == 0, "after the final report only another final one counts"


def test_an_operator_that_claims_less_is_shown_and_loses_nothing(fabric, agent):
    run, grant = begin(fabric, agent)
    agent.beat(50_000)
    agent.beat(50_000)
    give_back(fabric, agent, grant, 50_000)
    report(fabric, grant.lease, 100_000, final=True)
    assert (bill(fabric, run)["flagged"], bill(fabric, run)["over_ms"]) == (True, -50_000)
    assert today(fabric)["disputed"] == 0


@pytest.mark.parametrize(
    ("claimed", "observed", "flagged"),
    [
        (1_000, 0, False),
        (1_001, 0, True),
        (101_999, 100_000, False),
        (102_000, 100_000, False),
        (102_001, 100_000, True),
        (97_999, 100_000, True),
        (51_000, 50_000, False),
        (51_001, 50_000, True),
    ],
)
def test_up_to_a_second_or_two_percent_are_no_difference(claimed, observed, flagged):
    assert time_reports.Difference(claimed, observed).flagged is flagged
    over = time_reports.claims_too_much(claimed, observed)
    assert over is (flagged and claimed > observed)


def test_nobody_reports_of_anothers_lease_and_none_counts_that_comes_too_late(fabric, agent):
    run, grant = begin(fabric, agent)
    agent.beat(5_000)
    for who, session in (("bob", "ses-bob"), ("alice", "ses-other")):
        assert report(fabric, grant.lease, 1, who=who, session=session) == {"late": [grant.lease]}
    assert report(fabric, "no-such-lease", 1) == {"late": ["no-such-lease"]}
    assert bill(fabric, run)["observed_ms"] is None
    fabric.call("GET", f"/v1/runs/{run}/bill", who="bob", expect=404)
    give_back(fabric, agent, grant, 5_000)
    assert report(fabric, grant.lease, 5_000, final=True) == {"late": []}
    for _ in range(6):
        fabric.tick(time_reports.TAKEN_AFTER_CLOSE_MS // 6 + 1)
        fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
    assert report(fabric, grant.lease, 1, final=True, session="ses-alice") == {"late": [grant.lease]}
    assert bill(fabric, run)["observed_ms"] == 5_000


@pytest.mark.parametrize("bad", [-1, 10**12, 1.5, "x"])
def test_a_time_that_is_none_is_refused(fabric, agent, bad):
    _, grant = begin(fabric, agent)
    report(fabric, grant.lease, bad, expect=422)


def test_a_new_operator_is_unknown_and_is_neither_kicked_nor_refused_for_it(fabric, agent):
    assert fabric.submit(min_reputation=UNKNOWN)["state"] == "STARTING"
    assert fabric.submit(min_reputation=UNKNOWN + 10, expect=409)["next_best"]["change"] == "min_reputation"
    assert fabric.call("GET", "/v1/operators")["operators"][0]["reputation"] == UNKNOWN


def test_a_lease_that_the_operator_loses_is_broken_and_its_name_suffers_where_runs_are_placed(fabric, agent):
    begin(fabric, agent)
    assert fabric.submit(gpu=["L4"], min_reputation=UNKNOWN)["state"] == "STARTING"
    fabric.tick(300_000)
    answer = reputation(fabric)
    assert answer["days"][-1]["broken"] >= 1
    assert answer["reputation"] < UNKNOWN
    agent.connect()
    refused = fabric.submit(who="bob", gpu=["L4"], min_reputation=UNKNOWN, queue_timeout_ms=0, expect=409)
    assert refused["next_best"]["change"] == "min_reputation"
    assert fabric.call("GET", "/v1/offers")["offers"][0]["reputation"] == answer["reputation"]


def test_no_customers_word_about_an_end_counts_against_the_operator(fabric, agent):
    for reason in ("startup_timeout", "verification_failed", "operator_drain"):
        _, grant = begin(fabric, agent, retry={"on": []})
        agent.beat(2_000)
        fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": reason})
        agent.receipt(grant, CLOSE, 2_000, reason=reason)
    for reason in ("startup_timeout", "verification_failed"):
        fabric.submit(gpu=["H100"], retry={"on": []})
        grant = agent.expect(link.Grant)
        fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1, "reason": reason})
        agent.send(link.Ended(lease=grant.lease, generation=1, reason=reason))
        agent.beat(1_000)
    facts = today(fabric)
    assert (facts["kept"], facts["broken"], facts["notices_broken"]) == (3, 0, 0)
    with fabric.plane.database.read() as session:
        assert let_down(session, 0, fabric.plane.now_ms() + 1) == set()


@pytest.mark.parametrize(("startup_timeout_ms", "broken"), [(1_000, 0), (120_000, 1)])
def test_who_asks_for_less_time_to_start_than_everybody_gets_makes_nobody_late(
    fabric, agent, startup_timeout_ms, broken
):
    fabric.submit(gpu=["H100"], startup_timeout_ms=startup_timeout_ms, retry={"on": []})
    grant = agent.expect(link.Grant)
    fabric.tick(30_000)
    agent.send(link.Ended(lease=grant.lease, generation=1, reason="startup_timeout"))
    fabric.tick(60_000)
    assert today(fabric)["broken"] == broken
    with fabric.plane.database.read() as session:
        assert len(let_down(session, 0, fabric.plane.now_ms() + 1)) == broken


def test_a_proof_of_two_receipts_under_one_number_ends_a_good_name(fabric, agent):
    _, grant = begin(fabric, agent)
    agent.beat(5_000)
    agent.receipt(grant, TICK, 2_000)
    agent.chains[grant.lease] = (1, agent.chains[grant.lease][1])
    agent.receipt(grant, TICK, 3_000, advance=False)
    answer = reputation(fabric)
    assert answer["days"][-1]["lies"] == 1
    assert answer["reputation"] < 250


def test_time_away_is_missed_when_the_operator_is_back_and_not_while_no_control_plane_was_up(start, fabric, agent):
    for _ in range(3):
        agent.beat(10_000)
    agent.close()
    for _ in range(30):
        fabric.tick(10_000)
    agent.connect()
    for _ in range(3):
        agent.beat(10_000)
    first = today(fabric)
    assert 3 * 300_000 <= first["missed_ms"] <= 3 * 340_000
    assert first["there_ms"] > 0
    agent.close()
    fabric.clock.advance(7_200_000)
    again = Agent(start())
    again.connect()
    for _ in range(3):
        again.beat(10_000)
    assert today(again.fabric)["missed_ms"] < first["missed_ms"] + 3 * 300_000


def test_a_promised_notice_is_kept_or_broken(fabric, agent):
    for promised, given_ms in ((0, 30_000), (60_000, 30_000)):
        _, grant = begin(fabric, agent, retry={"on": []})
        with fabric.plane.database.write() as session:
            lease = session.get_one(LeaseRow, grant.lease)
            lease.notice_ms = promised
            give(fabric.plane, session, lease, Reason.OPERATOR_DRAIN, given_ms)
        agent.expect(link.Notice)
        agent.beat(given_ms)
        agent.receipt(grant, CLOSE, given_ms, reason="operator_drain")
    _, grant = begin(fabric, agent)
    agent.beat(1_000)
    agent.receipt(grant, CLOSE, 1_000, reason="operator_drain")
    facts = today(fabric)
    assert (facts["notices_kept"], facts["notices_broken"]) == (1, 2)


def test_challenges_count(fabric, agent):
    now = fabric.plane.now_ms()
    with fabric.plane.database.write() as session:
        for stage in ("passed", "failed", "failed", "cancelled"):
            session.add(
                ChallengeRow(
                    id=new_id("chl"),
                    round="r",
                    operator="op-1",
                    cluster="op-1/main",
                    node="node-1",
                    gpu="GPU-1",
                    gpu_id="0x1",
                    stage=stage,
                    plan={},
                    seed=b"",
                    prepared_ms=now,
                    ended_ms=now,
                )
            )
    facts = today(fabric)
    assert (facts["passed"], facts["failed"]) == (1, 2)


def test_a_day_that_is_over_stays_as_it_is_and_what_was_bad_is_forgotten(fabric, agent):
    begin(fabric, agent)
    fabric.tick(300_000)
    poor = reputation(fabric)
    lost_on = poor["today"]
    for _ in range(20):
        fabric.tick(86_400_000)
    aged = reputation(fabric)
    assert next(day for day in aged["days"] if day["day"] == lost_on)["broken"] == poor["days"][-1]["broken"]
    assert poor["reputation"] < aged["reputation"] <= UNKNOWN


def test_one_operators_conduct_is_not_anothers(fabric, agent):
    other = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(21), name="there"))
    other.connect()
    begin(fabric, agent, operators_allow=["op-1"])
    fabric.tick(300_000)
    assert reputation(fabric, "op-1")["reputation"] < UNKNOWN
    assert reputation(fabric, "op-2")["reputation"] >= UNKNOWN
    assert fabric.call("GET", "/v1/operators/nobody/reputation", expect=404)["detail"].startswith(
        "there is no operator"
    )


def test_a_sweep_that_runs_again_changes_nothing(fabric, agent):
    _, grant = begin(fabric, agent)
    agent.beat(3_000)
    give_back(fabric, agent, grant, 3_000)
    fabric.tick(60_000)

    def rows():
        with fabric.plane.database.read() as session:
            found = session.scalars(select(OperatorDayRow)).all()
            return [
                (row.model_dump(exclude={"there_ms"}), session.get_one(OperatorRow, row.operator).reputation)
                for row in found
            ]

    before = rows()
    fabric.tick(60_000)
    assert rows() == before
    assert before
