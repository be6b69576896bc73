"""What a person sees: nothing for short runs, a line or two for long ones, the job's own lines always."""

from queue import SimpleQueue

import pytest

from fabric.client import display as displays
from fabric.client.display import Display, where
from fabric.client.events import AttemptEnded, Fed, Lines, Placed, Progress
from fabric.client.tasks import Ended, Task
from fabric.wire.reasons import Reason

LEASE = {
    "gpus": [{"model": "H100", "share_milli": 1000, "simulated": True}] * 2,
    "operator_name": "acme",
    "price_dc_per_gpu_hour": "250000",
    "granted_at_ms": 0,
    "opened_at_ms": None,
}


def shown(*events, total=1):
    queue = SimpleQueue()
    for event in events:
        queue.put(event)
    with Display("run_1", "train", total=total) as display:
        for _ in events:
            display.next(queue)


@pytest.fixture
def impatient(monkeypatch):
    """Every run counts as a long one."""
    monkeypatch.setattr(displays, "CALM_S", 0.0)


def test_a_short_run_shows_nothing(capsys):
    shown(Placed(LEASE), Fed(1, None))
    assert capsys.readouterr() == ("", "")


def test_the_jobs_output_goes_to_the_stream_it_was_written_to(capsys):
    shown(Lines(0, [(1, 0, "to out"), (2, 0, "to err")]))
    assert capsys.readouterr() == ("to out\n", "to err\n")


def test_quiet_silences_the_fabric_and_not_the_job(capsys, monkeypatch):
    monkeypatch.setenv("FABRIC_QUIET", "1")
    task = Task(0, [], [], 0)
    shown(Lines(0, [(1, 0, "mine")]), AttemptEnded(Ended(task, 1, Reason.OPERATOR_LOST, "", 0.0), "lease"))
    assert capsys.readouterr() == ("mine\n", "")


def test_an_attempt_that_is_tried_again_is_told(capsys):
    task = Task(0, [], [], 0)
    shown(AttemptEnded(Ended(task, 1, Reason.OPERATOR_LOST, "", 0.0), "lease"))
    assert "attempt 1 ended: the operator's node or agent was lost; trying again" in capsys.readouterr().err


def test_a_long_run_says_where_it_runs_and_about_what_it_cost(capsys, impatient):
    queue = SimpleQueue()
    with Display("run_1", "train", total=1) as display:
        queue.put(Placed(LEASE))
        display.next(queue)
        display._show()
        queue.put(Progress(0, 1, 2))
        display.next(queue)
    told = capsys.readouterr().err
    assert "train (run_1) runs on 2 × H100 (simulated) at acme" in told
    assert "train done in" in told


def test_a_lease_is_described_by_count_model_and_operator():
    assert where(LEASE) == "2 × H100 (simulated) at acme"
    assert where({**LEASE, "gpus": [{"model": "L4", "simulated": False}]}) == "L4 at acme"
