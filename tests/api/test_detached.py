"""Detached runs: the agent does the work, any process reads the result."""

import hashlib

import pytest
from scripted import Agent, gpu, nodes

from fabric.wire import link
from fabric.wire.receipts import ReceiptKind

CLOSE = ReceiptKind.CLOSE
CODE, ARGS, RESULT = b"code", b"args", b"result"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def put(fabric, data, *, who="alice", expect=200, sha256=None):
    headers = {"Authorization": f"Bearer key-{who}"}
    answer = fabric.client.put(f"/v1/blobs/{sha256 or sha(data)}", content=data, headers=headers)
    assert answer.status_code == expect, answer.text
    return answer.json()


def blob(fabric, method, data, token, *, path="agent/blobs", **options):
    headers = {"Authorization": f"Bearer {token}"}
    return fabric.client.request(method, f"/v1/{path}/{sha(data)}", headers=headers, **options)


@pytest.fixture
def token(fabric):
    """The blob token of an agent that is connected; the agent is at `fabric.agent`."""
    fabric.agent = Agent(fabric)
    return fabric.agent.connect().blob_token


def submit(fabric, *, secret=False, **members):
    put(fabric, CODE)
    put(fabric, ARGS)
    work = {"code": sha(CODE), "args": sha(ARGS), "secret": secret}
    return fabric.submit(kind="submit", gpu=["H100"], work=work, **members)["id"]


def work_done(grant, work, reason, **options):
    return link.WorkDone(
        lease=grant.lease, generation=1, run=work.run, task=0, attempt=work.attempt, reason=reason, **options
    )


def start(fabric, **members):
    run = submit(fabric, **members)
    grant = fabric.agent.expect(link.Grant)
    fabric.agent.open(grant)
    return run, grant, fabric.agent.expect(link.Work)


def test_a_detached_run_is_worked_on_by_the_agent_and_its_result_kept(fabric, token):
    run, grant, work = start(fabric, timeout_ms=5_000)
    assert (work.run, work.attempt, work.code, work.timeout_ms) == (run, 1, sha(CODE), 5_000)
    assert blob(fabric, "GET", CODE, token).content == CODE
    assert blob(fabric, "PUT", RESULT, token, content=RESULT, params={"run": run}).status_code == 200
    fabric.agent.send(work_done(grant, work, "done", result=sha(RESULT)))
    assert fabric.agent.expect(link.Release).reason == "done"
    fabric.agent.receipt(grant, CLOSE, 0)
    ended = fabric.run(run)
    assert (ended["state"], ended["result"]) == ("SUCCEEDED", {"blob": sha(RESULT), "message": ""})
    assert blob(fabric, "GET", RESULT, "key-alice", path="blobs").content == RESULT
    assert fabric.audit() == []


def test_a_detached_run_without_a_budget_gets_a_days_worth_bounded_by_the_balance(fabric, token):
    run = submit(fabric)
    assert fabric.run(run)["cost"]["budget_dc"] == str(24 * 360_000)


def test_an_error_ends_a_detached_run_and_a_covered_one_is_tried_again(fabric, token):
    run, grant, work = start(fabric)
    fabric.agent.send(work_done(grant, work, "user_error", message="ValueError: no", result=sha(RESULT)))
    fabric.agent.expect(link.Release)
    fabric.agent.receipt(grant, CLOSE, 0)
    assert (fabric.run(run)["state"], fabric.run(run)["message"]) == ("FAILED", "ValueError: no")

    run, grant, work = start(fabric, retry={"on": ["error"], "max": 1})
    fabric.agent.send(work_done(grant, work, "crashed"))
    second = fabric.agent.expect(link.Grant)
    assert second.run == run
    fabric.agent.open(second)
    assert fabric.agent.expect(link.Work).attempt == 2
    assert [one["state"] for one in fabric.run(run)["attempts"]] == ["FAILED", "SENT"]


def test_the_late_close_of_an_earlier_attempts_lease_does_not_end_the_present_attempt(fabric, token):
    run, grant, work = start(fabric, retry={"on": ["error"], "max": 2})
    fabric.agent.send(work_done(grant, work, "crashed"))
    assert fabric.agent.expect(link.Release).lease == grant.lease
    second = fabric.agent.expect(link.Grant)
    fabric.agent.open(second)
    again = fabric.agent.expect(link.Work)
    fabric.agent.receipt(grant, CLOSE, 0)
    assert fabric.run(run)["state"] == "RUNNING"
    assert [one["state"] for one in fabric.run(run)["attempts"]] == ["FAILED", "SENT"]
    fabric.agent.send(work_done(second, again, "done", result=sha(RESULT)))
    fabric.agent.expect(link.Release)
    assert fabric.run(run)["state"] == "SUCCEEDED"


def test_a_lost_operator_queues_a_detached_run_again_and_its_old_answer_is_fenced(fabric, token):
    run, grant, work = start(fabric)
    fabric.agent.send(link.Ended(lease=grant.lease, generation=1, reason="operator_lost"))
    fabric.agent.expect(link.Release)
    fabric.agent.beat(5_000)
    second = fabric.agent.expect(link.Grant)
    fabric.agent.open(second)
    again = fabric.agent.expect(link.Work)
    assert again.attempt == 2
    fabric.agent.send(work_done(grant, work, "done", result=sha(RESULT)))
    fabric.agent.send(work_done(second, again, "done", result=sha(ARGS)))
    fabric.agent.expect(link.Release)
    assert fabric.run(run)["result"]["blob"] == sha(ARGS)


@pytest.mark.parametrize("code", [2**31, -(2**63), 2**63])
def test_an_exit_code_that_no_process_has_is_not_kept_and_ends_the_run(fabric, token, code):
    run, grant, work = start(fabric)
    fabric.agent.send(work_done(grant, work, "user_error", exit_code=code))
    fabric.agent.expect(link.Release)
    ended = fabric.run(run)
    assert (ended["state"], ended["reason"], ended["attempts"][0]["exit_code"]) == ("FAILED", "user_error", None)


@pytest.mark.parametrize("first", ["receipt", "word"])
def test_an_agent_that_ends_the_lease_as_done_strands_no_detached_run(fabric, token, first):
    run, grant, _ = start(fabric)
    if first == "word":
        fabric.agent.send(link.Ended(lease=grant.lease, generation=1, reason="done"))
        fabric.agent.beat()
    fabric.agent.receipt(grant, CLOSE, 1_000, reason="done")
    again = fabric.agent.expect(link.Grant)
    assert again.run == run
    reasons = {lease["id"]: lease["reason"] for lease in fabric.run(run)["leases"]}
    assert reasons[grant.lease] == "internal_error"


def test_the_words_of_a_failed_task_have_a_length(fabric, token):
    run, grant, work = start(fabric, retry={"on": [], "max": 0})
    fabric.agent.send(work_done(grant, work, "user_error", message="x" * 1_000_000))
    fabric.agent.beat()
    assert len(fabric.run(run)["message"]) <= 20_000


def test_work_is_sent_again_after_a_reconnect(fabric, token):
    _, grant, work = start(fabric)
    fabric.agent.close()
    fabric.agent.connect(held=[link.LeaseRef(lease=grant.lease, generation=1)])
    assert fabric.agent.expect(link.Work) == work


@pytest.mark.parametrize("secret", [True, False])
def test_arguments_with_secrets_are_gone_when_the_run_is_over_and_others_stay(fabric, token, secret):
    run, grant, work = start(fabric, secret=secret)
    assert blob(fabric, "GET", ARGS, "key-alice", path="blobs").status_code == 200
    fabric.agent.send(work_done(grant, work, "user_error", exit_code=3))
    fabric.agent.receipt(grant, CLOSE, 1000)
    assert fabric.run(run)["state"] == "FAILED"
    assert fabric.run(run)["attempts"][0]["exit_code"] == 3
    assert blob(fabric, "GET", ARGS, "key-alice", path="blobs").status_code == (404 if secret else 200)
    assert blob(fabric, "GET", CODE, "key-alice", path="blobs").status_code == 200
    fabric.plane.blobs.expire()
    stored = list(fabric.plane.settings.state_dir.rglob(sha(ARGS)))
    assert bool(stored) is not secret


def test_a_detached_run_outlives_its_session(fabric, token):
    run, grant, _ = start(fabric)
    fabric.call("POST", "/v1/sessions/ses-alice/end")
    for _ in range(5):
        fabric.agent.beat(50_000)
    assert fabric.run(run)["state"] == "RUNNING"
    fabric.call("POST", f"/v1/runs/{run}/cancel")
    assert fabric.agent.expect(link.Release).lease == grant.lease


def test_an_agent_sees_blobs_of_its_runs_only(fabric, token):
    run, _, _ = start(fabric)
    put(fabric, b"other")
    assert blob(fabric, "GET", b"other", token).status_code == 404
    assert blob(fabric, "GET", CODE, token + "x").status_code == 401
    assert blob(fabric, "GET", CODE, "key-alice").status_code == 401
    assert blob(fabric, "PUT", RESULT, token, content=RESULT, params={"run": "run_x"}).status_code == 404
    from scripted import OTHER_KEY

    stranger = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(50)))
    foreign = stranger.connect().blob_token
    assert blob(fabric, "GET", CODE, foreign).status_code == 404
    assert blob(fabric, "PUT", RESULT, foreign, content=RESULT, params={"run": run}).status_code == 404


def test_finish_is_not_for_detached_runs(fabric, token):
    run = submit(fabric)
    answer = fabric.call("POST", f"/v1/runs/{run}/finish", {"state": "SUCCEEDED"}, expect=409)
    assert answer["type"].endswith("conflict")


def test_logs_stream_in_order_and_end_with_the_run(fabric, token):
    run, grant, work = start(fabric)
    lines = [link.LogLine(task=0, stream=1, at_ms=number, text=f"line {number} é") for number in range(3)]
    fabric.agent.send(link.Logs(run=run, lines=lines))
    fabric.agent.send(link.Logs(run="run_of_nobody", lines=lines))
    fabric.agent.send(work_done(grant, work, "done"))
    fabric.agent.expect(link.Release)
    headers = {"Authorization": "Bearer key-alice"}
    text = fabric.client.get(f"/v1/runs/{run}/logs?follow=true", headers=headers).text
    events = [event for event in text.split("\n\n") if event]
    assert [event.startswith("data: ") for event in events] == [True, True, True, False]
    assert '"text": "line 2 é"' in events[2]
    assert events[3].startswith("event: end")


def test_an_agent_touches_nothing_of_a_customer_whose_lease_was_over_long_ago(fabric, token):
    run, grant, work = start(fabric)
    fabric.agent.send(work_done(grant, work, "done"))
    fabric.agent.expect(link.Release)
    fabric.agent.receipt(grant, CLOSE, 1000)
    fabric.agent.send(link.Ended(lease=grant.lease, generation=1, reason="done"))
    fabric.agent.beat()
    late = {"content": RESULT, "params": {"run": run}}
    assert blob(fabric, "GET", CODE, token).status_code == 200
    assert blob(fabric, "PUT", RESULT, token, **late).status_code == 200
    fabric.clock.advance(600_001)
    assert blob(fabric, "GET", CODE, token).status_code == 404
    assert blob(fabric, "PUT", RESULT, token, **late).status_code == 404


def test_a_log_expires_seven_days_after_its_run(fabric, token):
    run, grant, work = start(fabric)
    fabric.agent.send(link.Logs(run=run, lines=[link.LogLine(task=0, stream=1, at_ms=0, text="kept")]))
    fabric.agent.send(work_done(grant, work, "done"))
    fabric.agent.expect(link.Release)
    logs, days = fabric.plane.logs, 86_400_000
    headers = {"Authorization": "Bearer key-alice"}
    files = fabric.plane.settings.state_dir / "logs"
    assert logs.expire(fabric.plane.now_ms() + 6 * days) == 0
    assert "kept" in fabric.client.get(f"/v1/runs/{run}/logs", headers=headers).text
    assert logs.expire(fabric.plane.now_ms() + 7 * days) == 1
    assert list(files.iterdir()) == []
    assert fabric.client.get(f"/v1/runs/{run}/logs", headers=headers).text.startswith("event: end")
