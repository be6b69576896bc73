"""Runs as customers submit them: placed, queued, refused, cancelled, given back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted import GIB, Agent, done, gpu, nodes
from sqlalchemy import event
from sqlmodel import select
from test_detached import ARGS, CODE, put, sha

from api.tables import GpuRow, LeaseRow, RunRow, UntoldRunRow
from fabric.wire import link
from fabric.wire.ids import new_id
from fabric.wire.receipts import ReceiptKind, RunLine

TICK, CLOSE = ReceiptKind.TICK, ReceiptKind.CLOSE


def problem(answer):
    return answer["type"].rsplit("/", 1)[-1]


def account(fabric, who="alice"):
    answer = fabric.call("GET", "/v1/account", who=who)
    return int(answer["available_dc"]), int(answer["held_dc"])


def test_offers_show_what_place_would_take_and_what_is_left(fabric, agent):
    before = fabric.call("GET", "/v1/offers?gpu=H100")["offers"]
    assert [(one["model"], one["count_free"], one["count_total"]) for one in before] == [("H100", 2, 2)]
    assert (before[0]["price_dc_per_gpu_hour"], before[0]["simulated"]) == ("360000", True)
    fabric.submit(gpu=["H100"])
    after = fabric.call("GET", "/v1/offers?gpu=H100")["offers"]
    assert after[0]["count_free"] == 1


def test_any_gpu_is_the_cheapest_and_an_order_is_kept(fabric, agent):
    assert fabric.submit()["explain"]["chosen"]["model"] == "L4"
    assert fabric.submit(gpu=["H100", "L4"])["explain"]["chosen"]["model"] == "H100"


def test_a_dry_run_says_what_it_would_cost_and_stores_nothing(fabric, agent):
    plan = fabric.submit(expect=200, dry_run=True, gpu=["H100:2"])
    assert plan["cost"]["rate_dc_per_hour"] == "720000"
    assert fabric.call("GET", "/v1/runs")["runs"] == []
    assert account(fabric) == (100_000_000, 0)


def test_what_never_fits_is_refused_at_once_and_holds_nothing(fabric, agent):
    answer = fabric.submit(gpu=["B300"], expect=409)
    assert problem(answer) == "no-capacity"
    assert answer["considered"] == 2
    assert problem(fabric.submit(gpu=["H100:8"], expect=409)) == "no-capacity"
    assert account(fabric) == (100_000_000, 0)
    assert fabric.call("GET", "/v1/runs")["runs"] == []


def test_a_price_cap_below_every_offer_is_refused_with_the_offers(fabric, agent):
    answer = fabric.submit(gpu=["H100"], max_price_dc="100", expect=409)
    assert problem(answer) == "price-exceeded"
    assert answer["max_price_dc"] == "100"
    assert answer["offers"][0]["price_dc_per_gpu_hour"] == "360000"
    assert fabric.submit(gpu=["H100"], max_price_dc=360_000)["state"] == "STARTING"


@pytest.mark.parametrize(
    "cursor",
    ["x", "1.", "\u00b2.run", "9" * 30 + ".run", "9" * 5000 + ".run"],
    ids=["word", "half", "sup", "big", "huge"],
)
def test_a_cursor_that_no_page_gave_is_refused(fabric, cursor):
    assert problem(fabric.call("GET", "/v1/runs", params={"cursor": cursor}, expect=422)) == "invalid-request"


def test_offers_for_too_many_alternatives_are_refused(fabric, agent):
    assert fabric.call("GET", "/v1/offers?" + "&".join(["gpu=L4"] * 32))["offers"]
    answer = fabric.call("GET", "/v1/offers?" + "&".join(["gpu=L4"] * 33), expect=422)
    assert problem(answer) == "invalid-request"


@pytest.mark.parametrize(
    ("asked", "name"), [("region=" + "x" * 201, "region"), ("max_rtt_ms=1e400", "max_rtt_ms"), ("caller=a:b", "caller")]
)
def test_offers_refuse_what_no_run_may_ask(fabric, agent, asked, name):
    refused = fabric.call("GET", f"/v1/offers?{asked}", expect=422)
    assert refused["detail"].startswith(name)


def test_a_bad_gpu_string_says_which_character(fabric, agent):
    answer = fabric.submit(gpu=["H100:x"], expect=422)
    assert (problem(answer), answer["position"]) == ("invalid-request", 5)
    assert "legal here" in answer["detail"]


def test_an_unknown_member_is_refused_with_the_nearest_name(fabric, agent):
    answer = fabric.submit(maxprice_dc=1, expect=422)
    assert answer["detail"] == "maxprice_dc is unknown; did you mean max_price_dc?"
    nested = fabric.submit(retry={"onn": []}, expect=422)
    assert "did you mean on?" in nested["detail"]


@pytest.mark.parametrize(
    "members",
    [
        {"budget_dc": 1.5},
        {"budget_dc": "1e3"},
        {"tier": "reserved"},
        {"nodes": 0},
        {"kind": "submit"},
        {"leases": 2},
        {"work": {"code": "a" * 64, "args": "b" * 64}},
        {"network": ["no host"]},
        {"env": {"pip": ["pkg @ https://x"]}},
        {"env": {"pip": ["b", "a"]}},
        {"env": {"python": "2"}},
        {"operators_allow": ["op-1"], "operators_deny": ["op-1"]},
        {"id": "../x"},
        {"timeout_ms": 10**30},
        {"retry": {"exit_codes": [1] * 300}},
        {"region": ["eu"] * 300},
        {"operators_deny": ["x" * 300]},
    ],
    ids=lambda members: next(iter(members)),
)
def test_requests_that_make_no_sense_are_refused(fabric, agent, members):
    assert problem(fabric.submit(expect=422, **members)) == "invalid-request"


def test_without_money_for_the_reserve_nothing_is_leased(fabric, agent):
    answer = fabric.submit(who="poor", gpu=["H100"], expect=402)
    assert (problem(answer), answer["available_dc"]) == ("insufficient-funds", "50")
    with fabric.plane.database.read() as session:
        assert session.exec(select(LeaseRow)).all() == []
        assert {row.used_milli for row in session.exec(select(GpuRow))} == {0}


def test_a_budget_below_the_reserve_is_refused_and_a_small_one_bounds_the_hold(fabric, agent):
    assert problem(fabric.submit(gpu=["H100"], budget_dc=100, expect=402)) == "budget-exhausted"
    fabric.submit(gpu=["H100"], budget_dc=5_000)
    assert account(fabric)[1] == 5_000


def test_a_taken_gpu_makes_the_run_wait_until_it_is_free(fabric, agent):
    first = fabric.submit(gpu=["L4"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    second = fabric.submit(gpu=["L4"])
    assert (second["state"], second["leases"]) == ("QUEUED", [])
    assert "taken" in second["explain"]["rejected"]
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1})
    agent.receipt(grant, CLOSE, 1_000)
    assert agent.expect(link.Grant).run == second["id"]
    assert fabric.run(first["id"])["state"] == "RUNNING"


def test_one_customers_long_queue_keeps_nobody_else_waiting(fabric, agent, monkeypatch):
    monkeypatch.setattr("api.queueing._BATCH", 2)
    for wanted in ("L4", "H100:2"):
        fabric.submit(gpu=[wanted])
        agent.open(grant := agent.expect(link.Grant))
    for _ in range(3):
        assert fabric.submit(who="poor", gpu=["L4"])["state"] == "QUEUED"
    agent.beat(1_000)
    waits = fabric.submit(who="bob", gpu=["H100"])
    assert waits["state"] == "QUEUED"
    fabric.call("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1})
    agent.receipt(grant, CLOSE, 1_000)
    assert agent.expect(link.Grant).run == waits["id"]


def test_a_run_that_may_not_wait_is_refused_when_taken(fabric, agent):
    fabric.submit(gpu=["L4"])
    assert problem(fabric.submit(gpu=["L4"], queue_timeout_ms=0, expect=409)) == "no-capacity"


def test_the_queue_ends_with_no_capacity_and_retry_covers_it(fabric, agent):
    grant_holder = fabric.submit(gpu=["L4"])
    agent.open(agent.expect(link.Grant))
    waits = fabric.submit(gpu=["L4"], queue_timeout_ms=20_000)
    again = fabric.submit(gpu=["L4"], queue_timeout_ms=20_000, retry={"on": ["no_capacity"], "max": 1})
    agent.beat(20_000)
    assert (fabric.run(waits["id"])["state"], fabric.run(waits["id"])["reason"]) == ("FAILED", "no_capacity")
    assert fabric.run(again["id"])["state"] == "QUEUED"
    agent.beat(20_000)
    assert fabric.run(again["id"])["state"] == "FAILED"
    assert fabric.run(grant_holder["id"])["state"] == "RUNNING"


def test_an_agent_that_is_away_makes_its_gpus_taken_and_not_impossible(fabric):
    agent = Agent(fabric)
    agent.connect()
    agent.close()
    run = fabric.submit(gpu=["H100"])
    assert run["state"] == "QUEUED"
    agent.connect()
    assert agent.expect(link.Grant).run == run["id"]
    agent.close()


def test_a_fleet_without_gpus_is_no_capacity(fabric):
    assert problem(fabric.submit(expect=409)) == "no-capacity"


def test_a_map_gets_at_most_four_unopened_leases_and_more_when_they_open(fabric):
    agent = Agent(fabric, nodes=nodes(*(gpu(number, "L4") for number in range(6))))
    agent.connect()
    run = fabric.submit(kind="map", gpu=["L4"], leases=6, tasks=100)
    assert len(run["leases"]) == 4
    for _ in range(4):
        agent.open(agent.expect(link.Grant))
    more = fabric.call("POST", f"/v1/runs/{run['id']}/leases", {"count": 6})
    assert len(more["leases"]) == 6
    assert len({lease["gpus"][0]["uuid"] for lease in more["leases"]}) == 6
    agent.close()


def test_more_leases_can_avoid_a_node(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1, "L4")) + nodes(gpu(2, "L4"), gpu(3, "L4"), name="node-2"))
    agent.connect()
    run = fabric.submit(kind="map", gpu=["L4"], leases=1)
    first = run["leases"][0]["node"]
    more = fabric.call("POST", f"/v1/runs/{run['id']}/leases", {"count": 3, "exclude_nodes": [first]})
    known = run["leases"][0]["id"]
    assert first not in {lease["node"] for lease in more["leases"] if lease["id"] != known}
    assert len(more["leases"]) > 1
    agent.close()


def test_a_gang_gets_all_its_nodes_or_none(fabric):
    agent = Agent(fabric, nodes=nodes(gpu(1)) + nodes(gpu(2), name="node-2"))
    agent.connect()
    put(fabric, CODE)
    put(fabric, ARGS)
    work = {"code": sha(CODE), "args": sha(ARGS)}
    run = fabric.submit(gpu=["H100"], nodes=2, work=work)
    assert {lease["node"] for lease in run["leases"]} == {"node-1", "node-2"}
    assert fabric.submit(gpu=["H100"], nodes=2, work=work)["leases"] == []
    assert problem(fabric.submit(gpu=["H100"], nodes=3, work=work, expect=409)) == "no-capacity"
    agent.close()


def test_cpu_and_memory_of_a_node_are_not_oversold(fabric, agent):
    assert fabric.submit(gpu=["H100"], cpu_milli=10_000, memory_bytes=GIB)["state"] == "STARTING"
    assert fabric.submit(gpu=["H100"], cpu_milli=10_000)["state"] == "QUEUED"


def test_another_python_than_the_nodes_is_no_capacity(fabric, agent):
    assert problem(fabric.submit(python="3.12", expect=409)) == "no-capacity"


def test_the_same_run_sent_twice_is_one_run_and_another_body_is_a_conflict(fabric, agent):
    name = new_id("run")
    first = fabric.submit(id=name, gpu=["H100"])
    assert fabric.submit(id=name, gpu=["H100"])["leases"][0]["id"] == first["leases"][0]["id"]
    assert problem(fabric.submit(id=name, gpu=["L4"], expect=409)) == "conflict"
    assert problem(fabric.submit(id=name, gpu=["H100"], who="bob", expect=409)) == "conflict"


def test_cancelling_stops_the_lease_and_ends_with_it(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    assert fabric.call("POST", f"/v1/runs/{run}/cancel")["state"] == "CANCELLING"
    assert agent.expect(link.Release).reason == "cancelled_by_user"
    agent.receipt(grant, CLOSE, 500)
    assert fabric.run(run)["state"] == "CANCELLED"
    assert fabric.call("POST", f"/v1/runs/{run}/cancel")["state"] == "CANCELLED"
    assert account(fabric)[1] == 0


def test_cancelling_a_run_on_a_shared_lease_leaves_the_lease_to_the_others(fabric, agent):
    run = fabric.submit(gpu=["H100"])["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    other = fabric.submit(lease={"id": grant.lease, "generation": 1})
    assert other["state"] == "RUNNING"
    assert fabric.call("POST", f"/v1/runs/{other['id']}/cancel")["state"] == "CANCELLED"
    assert fabric.run(run)["leases"][0]["state"] == "OPEN"


def test_a_queued_run_is_cancelled_at_once(fabric, agent):
    fabric.submit(gpu=["L4"])
    waits = fabric.submit(gpu=["L4"])["id"]
    assert fabric.call("POST", f"/v1/runs/{waits}/cancel")["state"] == "CANCELLED"


def test_registering_on_a_lease_needs_the_session_the_generation_and_the_price(fabric, agent):
    grant = _opened(fabric, agent)
    lease = {"id": grant.lease, "generation": 1}
    assert problem(fabric.submit(lease=lease, session="another", expect=404)) == "not-found"
    assert problem(fabric.submit(lease=lease, who="bob", session="x", expect=404)) == "not-found"
    assert problem(fabric.submit(lease=lease | {"generation": 2}, expect=409)) == "conflict"
    assert problem(fabric.submit(lease=lease, max_price_dc=10, expect=409)) == "price-exceeded"
    assert problem(fabric.submit(lease=lease, budget_dc=10_000, expect=422)) == "invalid-request"
    assert fabric.submit(lease=lease, max_price_dc=360_000)["state"] == "RUNNING"


def test_runs_are_told_of_in_bulk_and_again_only_their_state_moves_on(fabric, agent):
    grant = _opened(fabric, agent)
    names = [new_id("run") for _ in range(3)]

    def tell(state):
        requests = [
            {"id": name, "session": "ses-alice", "lease": {"id": grant.lease, "generation": 1}} for name in names
        ]
        body = {"runs": [{"request": one, "state": state, "reason": "done"} for one in requests]}
        return fabric.call("POST", "/v1/sessions/ses-alice/runs", body)

    assert tell("RUNNING") == {"runs": names}
    assert {fabric.run(name)["state"] for name in names} == {"RUNNING"}
    tell("SUCCEEDED")
    tell("SUCCEEDED")
    assert {fabric.run(name)["state"] for name in names} == {"SUCCEEDED"}


def test_a_hundred_runs_told_of_together_are_as_many_questions_to_the_database_as_two(fabric, agent):
    """Warm runs come by the thousand: what is the same for all runs of a lease is read once."""
    lease = {"id": _opened(fabric, agent).lease, "generation": 1}

    def questions(runs):
        asked = []
        note = lambda _connection, _cursor, statement, *_: asked.append(statement.split(None, 1)[0])
        event.listen(fabric.plane.database.writer, "before_cursor_execute", note)
        requests = [{"id": new_id("run"), "session": "ses-alice", "lease": lease} for _ in range(runs)]
        told = {"runs": [{"request": one, "state": "SUCCEEDED"} for one in requests]}
        assert len(fabric.call("POST", "/v1/sessions/ses-alice/runs", told)["runs"]) == runs
        event.remove(fabric.plane.database.writer, "before_cursor_execute", note)
        return asked.count("SELECT")

    few, many = (min(questions(runs) for _ in range(3)) for runs in (2, 100))  # others ask meanwhile
    assert few == many > 0


def test_a_run_told_of_after_its_lease_closed_still_bears_its_part(fabric, agent):
    grant = _opened(fabric, agent)
    late = new_id("run")
    agent.beat(2_000)
    agent.receipt(grant, CLOSE, 2_000, runs=(RunLine(grant.run, 500), RunLine(late, 1_500)))
    request = {"id": late, "session": "ses-alice", "lease": {"id": grant.lease, "generation": 1}, "tags": {"team": "a"}}
    fabric.call("POST", "/v1/sessions/ses-alice/runs", {"runs": [{"request": request, "state": "SUCCEEDED"}]})
    assert fabric.run(late)["cost"]["accrued_dc"] == "150"
    assert fabric.run(late)["tags"] == {"team": "a"}


def test_a_part_that_a_receipt_named_early_waits_for_its_run_and_later_receipts_need_not_name_it(fabric, agent):
    grant = _opened(fabric, agent)
    late, later = new_id("run"), new_id("run")
    agent.beat(3_000)
    agent.receipt(grant, TICK, 1_000, runs=(RunLine(late, 400), RunLine(grant.run, 600)))
    agent.receipt(grant, TICK, 2_000, runs=(RunLine(late, 500), RunLine(later, 900)), others_ms=600)
    for run, state in ((late, "SUCCEEDED"), (later, "RUNNING")):
        request = {"id": run, "session": "ses-alice", "lease": {"id": grant.lease, "generation": 1}}
        fabric.call("POST", "/v1/sessions/ses-alice/runs", {"runs": [{"request": request, "state": state}]})
    agent.receipt(grant, TICK, 3_000, runs=(RunLine(grant.run, 1_600),), others_ms=1_400)
    assert [fabric.run(run)["cost"]["gpu_ms"] for run in (grant.run, late, later)] == [1_600, 500, 900]
    with fabric.plane.database.read() as session:
        assert session.scalars(select(UntoldRunRow)).all() == []
    assert fabric.audit() == []


def test_a_part_that_only_the_first_receipt_of_a_batch_named_is_kept(fabric, agent):
    grant = _opened(fabric, agent)
    other = new_id("run")
    agent.beat(3_000)
    first = agent.signed(grant, TICK, 1_000)
    second = agent.signed(grant, TICK, 2_000, runs=(RunLine(other, 1_000),), others_ms=1_000)
    agent.send(link.Receipts(receipts=[first.to_bytes(), second.to_bytes()]))
    assert agent.expect(link.Ack).seq == 2
    request = {"id": other, "session": "ses-alice", "lease": {"id": grant.lease, "generation": 1}}
    fabric.call("POST", "/v1/sessions/ses-alice/runs", {"runs": [{"request": request, "state": "RUNNING"}]})
    assert [fabric.run(run)["cost"]["gpu_ms"] for run in (grant.run, other)] == [1_000, 1_000]


def test_no_word_of_a_customer_makes_used_time_the_operators_loss(fabric, agent):
    run = fabric.submit(gpu=["H100"], budget_dc=1_000_000)["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for _ in range(3):
        agent.beat(1_000)
    agent.receipt(grant, TICK, 3_000)
    for reason in ("gpu_unhealthy", "operator_lost"):
        release = {"generation": 1, "reason": reason}
        answer = fabric.call("POST", f"/v1/leases/{grant.lease}/release", release, expect=422)
        assert "'done'" in answer["detail"]
    fabric.call("POST", f"/v1/runs/{run}/finish", {"state": "FAILED", "reason": "gpu_unhealthy"})
    agent.receipt(grant, CLOSE, 3_000)
    assert fabric.run(run)["reason"] == "gpu_unhealthy"
    assert account(fabric) == (100_000_000 - 300, 0)
    assert fabric.audit() == []


def test_a_run_told_of_with_a_reason_that_does_not_exist_is_refused(fabric, agent):
    grant = _opened(fabric, agent)
    request = {"id": new_id("run"), "session": "ses-alice", "lease": {"id": grant.lease, "generation": 1}}
    path = "/v1/sessions/ses-alice/runs"
    fabric.call("POST", path, {"runs": [{"request": request, "state": "RUNNING"}]})
    told = {"request": request, "state": "FAILED", "reason": "because"}
    assert problem(fabric.call("POST", path, {"runs": [told]}, expect=422)) == "invalid-request"
    fabric.call("POST", path, {"runs": [told | {"reason": "crashed"}]})
    assert fabric.run(request["id"])["reason"] == "crashed"


def test_releasing_twice_is_one_release_and_an_old_generation_is_a_conflict(fabric, agent):
    grant = _opened(fabric, agent)
    path = f"/v1/leases/{grant.lease}/release"
    assert problem(fabric.call("POST", path, {"generation": 2}, expect=409)) == "conflict"
    assert fabric.call("POST", path, {"generation": 1})["state"] == "CLOSING"
    assert fabric.call("POST", path, {"generation": 1})["state"] == "CLOSING"
    agent.receipt(grant, CLOSE, 100)
    assert fabric.call("POST", path, {"generation": 1})["state"] == "CLOSED"


def test_finishing_twice_is_one_end_and_another_end_is_a_conflict(fabric, agent):
    grant = _opened(fabric, agent)
    path = f"/v1/runs/{grant.run}/finish"
    failed = {"state": "FAILED", "reason": "user_error", "message": "ValueError"}
    assert fabric.call("POST", path, failed)["reason"] == "user_error"
    assert fabric.call("POST", path, failed)["state"] == "FAILED"
    assert problem(fabric.call("POST", path, {"state": "SUCCEEDED"}, expect=409)) == "conflict"
    assert problem(fabric.call("POST", path, failed | {"reason": "bored"}, expect=422)) == "invalid-request"


def test_ending_a_session_releases_its_leases_and_ends_its_runs(fabric, agent):
    grant = _opened(fabric, agent)
    waiting = fabric.submit(gpu=["H100:2"])["id"]
    fabric.call("POST", "/v1/sessions/ses-alice/end")
    assert agent.expect(link.Release).reason == "done"
    agent.receipt(grant, CLOSE, 100)
    assert {fabric.run(name)["reason"] for name in (grant.run, waiting)} == {"client_lost"}
    assert account(fabric)[1] == 0
    assert problem(fabric.call("POST", "/v1/sessions/ses-alice/heartbeat", expect=409)) == "conflict"


def test_a_budget_is_never_exceeded_and_its_end_stops_the_run(fabric, agent):
    run = fabric.submit(gpu=["H100"], budget_dc=3_000)["id"]
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for second in range(1, 25):
        agent.beat(1_000)
        agent.receipt(grant, TICK, second * 1_000)
    notice = agent.expect(link.Notice)
    assert (notice.lease, notice.reason) == (grant.lease, "budget_exhausted")
    assert 0 < notice.notice_ms <= 5_000  # what is left of it when it is sent
    assert fabric.run(run)["state"] == "PREEMPTING"
    agent.beat(3_000)
    assert agent.expect(link.Release).reason == "budget_exhausted"
    agent.receipt(grant, CLOSE, 60_000)
    ended = fabric.run(run)
    assert (ended["state"], ended["reason"]) == ("FAILED", "budget_exhausted")
    assert int(ended["cost"]["accrued_dc"]) <= 3_000
    assert account(fabric) == (100_000_000 - int(ended["cost"]["accrued_dc"]), 0)
    assert fabric.audit() == []


def test_a_hold_is_topped_up_while_there_is_money(fabric, agent):
    grant = _opened(fabric, agent)
    for second in range(1, 4):
        agent.beat(50_000)
        fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
        agent.receipt(grant, TICK, second * 50_000)
    available, held = account(fabric)
    assert held >= 50_000
    assert available + held == 100_000_000 - 15_000
    assert fabric.audit() == []


def test_another_customers_objects_are_not_there(fabric, agent):
    grant = _opened(fabric, agent)
    for method, path, body in (
        ("GET", f"/v1/runs/{grant.run}", None),
        ("GET", f"/v1/runs/{grant.run}/route", None),
        ("GET", f"/v1/runs/{grant.run}/logs", None),
        ("GET", f"/v1/runs/{grant.run}/receipt", None),
        ("POST", f"/v1/runs/{grant.run}/cancel", None),
        ("POST", f"/v1/runs/{grant.run}/finish", {"state": "FAILED"}),
        ("POST", f"/v1/runs/{grant.run}/leases", {"count": 1}),
        ("POST", f"/v1/leases/{grant.lease}/release", {"generation": 1}),
        ("POST", "/v1/sessions/ses-alice/heartbeat", None),
        ("POST", "/v1/sessions/ses-alice/end", None),
    ):
        assert problem(fabric.call(method, path, body, who="bob", expect=404)) == "not-found", path
    assert fabric.call("GET", "/v1/runs", who="bob")["runs"] == []
    assert fabric.run(grant.run)["state"] == "RUNNING"


def test_runs_are_listed_newest_first_in_pages(fabric, agent):
    names = []
    for _ in range(3):
        fabric.clock.advance(5)
        names.append(fabric.submit(gpu=["L4"])["id"])
    first = fabric.call("GET", "/v1/runs?limit=2")
    rest = fabric.call("GET", f"/v1/runs?limit=2&cursor={first['next']}")
    assert [run["id"] for run in first["runs"] + rest["runs"]] == names[::-1]
    assert rest["next"] is None
    queued = fabric.call("GET", "/v1/runs?state=QUEUED")["runs"]
    assert {run["state"] for run in queued} == {"QUEUED"}
    assert problem(fabric.call("GET", "/v1/runs?cursor=x", expect=422)) == "invalid-request"


def test_many_submissions_at_once_never_oversell_a_gpu_nor_overspend_a_wallet(fabric):
    agent = Agent(fabric, nodes=nodes(*(gpu(number) for number in range(8))))
    agent.connect()
    with fabric.plane.database.write() as session:
        ledger = fabric.plane.ledger(session)
        ledger.credit_test("poor", 8_000, "test/poor")

    def submit(number):
        who = "poor" if number % 2 else f"{'alice' if number % 4 else 'bob'}"
        headers = {"Authorization": f"Bearer key-{who}"}
        body = {"id": new_id("run"), "session": f"ses-{who}", "gpu": ["H100"], "budget_dc": 3_000}
        return fabric.client.post("/v1/runs", json=body, headers=headers).status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(submit, range(64)))
    assert set(codes) <= {201, 402}
    with fabric.plane.database.read() as session:
        assert all(0 <= row.used_milli <= 1000 for row in session.exec(select(GpuRow)))
        leased = session.exec(select(LeaseRow)).all()
        assert len(leased) <= 8
        assert len(session.exec(select(RunRow)).all()) == codes.count(201)
    available, held = account(fabric, "poor")
    assert available >= 0
    assert held <= 8_050
    assert available + held == 8_050
    assert fabric.audit() == []
    agent.close()


def _opened(fabric, agent):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    return grant


def test_tasks_and_attempts_show_with_the_run(fabric, agent):
    grant = _opened(fabric, agent)
    agent.beat(1_000)
    agent.receipt(grant, TICK, 500, tasks=(done(grant.run, 0, reason="crashed"), done(grant.run, 0, attempt=2)))
    shown = fabric.run(grant.run)["attempts"]
    assert [(one["attempt"], one["state"], one["reason"]) for one in shown] == [
        (1, "FAILED", "crashed"),
        (2, "DONE", "done"),
    ]
