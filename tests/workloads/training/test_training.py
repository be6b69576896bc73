"""Trainings for real: two ranks on two nodes, and on one; lost ranks, wrong loops, budgets."""

import json
from decimal import Decimal

import pytest

import fabric
from tests.api.serving.town import ADMIN
from tests.workloads.training import loops
from workloads import Training
from workloads.examples import digits
from workloads.training import plan

pytestmark = pytest.mark.slow
pytest.importorskip("torch")

TWO_NODES = {"gpu": "L4", "nodes": 2}
ONE_NODE = {"gpu": "L4:2"}


def are_in_the_ledger(town, run, attempts):
    """Signed receipts hold these (rank, attempt) and no others, what they claim was charged, and the books agree."""
    run = fabric.attach(run)

    def signed():
        return {(line.task, line.attempt) for one in run.receipt().receipts for line in one.tasks}

    town.wait(lambda: signed() == attempts and all(lease["state"] == "CLOSED" for lease in run.leases))
    assert len(run.receipt().verify()) == len(run.receipt().receipts)
    assert run.receipt().gpu_ms == sum(lease["gpu_ms"] for lease in run.leases)
    for lease in run.leases:
        price = int(lease["price_dc_per_gpu_hour"])
        assert int(lease["charged_dc"]) == -(-max(lease["gpu_ms"], 1_000) * price // 3_600_000)
    town.wait(lambda: town.get("/v1/audit", key=ADMIN)["ok"])


def test_two_ranks_on_two_nodes_learn_the_digits_and_keep_their_records(town, tmp_path, capsys):
    assert digits.main(20, folder=tmp_path, **TWO_NODES) >= 0.97
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 20 * (1437 // 64)
    assert records[-1]["loss"] < 0.2 < records[0]["loss"]
    assert records[-1]["cost_usd"] > 0
    assert "<polyline" in (tmp_path / "report.html").read_text()
    assert "samples/s" in capsys.readouterr().out
    town.wait(lambda: town.get("/v1/audit", key=ADMIN)["ok"])


def test_a_rank_killed_midway_ends_as_good_as_an_undisturbed_run(town):
    undisturbed = Training(loops.digits, quiet=True, **ONE_NODE).run(6)
    killed = Training(loops.digits, quiet=True, checkpoint_every=0.01, **TWO_NODES).run(6, kwargs={"kill_at": (1, 70)})
    assert (undisturbed.attempts, killed.attempts) == (1, 2)
    assert 0 < killed.value[2] <= 70
    assert killed.value[0] == pytest.approx(undisturbed.value[0], rel=0.01)
    assert killed.value[1] == pytest.approx(undisturbed.value[1], abs=0.01)
    assert undisturbed.value[1] > 0.8, "accuracies of what has learnt something"
    assert killed.metrics[-1]["step"] == undisturbed.metrics[-1]["step"] == 6 * (1437 // 64)
    are_in_the_ledger(town, killed.run, {(rank, attempt) for rank in (0, 1) for attempt in (1, 2)})


def test_a_killed_rank_of_one_node_is_named_and_resumed_sharded(town, capsys):
    trained = Training(loops.digits, checkpoint_every=0.01, **ONE_NODE).run(
        2, kwargs={"kill_at": (1, 30), "sharded": True}
    )
    assert trained.attempts == 2
    assert 0 < trained.value[2] <= 30
    said = capsys.readouterr().out
    assert "rank-1 ended by signal 9" in said or "rank 1 of 2 is gone" in said  # whichever process saw it first


def test_a_training_stops_in_good_order_on_its_budget_with_a_checkpoint_and_its_best_record(town, monkeypatch):
    monkeypatch.setattr(plan, "MARGIN", 0.05)  # a slow start must not use it up: 2 of the 60 s that it pays for
    trained = Training(loops.endless, budget=0.006, quiet=True, gpu="L4", ranks_per_node=2).run()
    steps, stored = trained.value
    assert (trained.stopped, trained.world_size, trained.attempts) == ("budget", 2, 1)
    assert stored == [steps], "the first is due after a minute"
    assert steps == trained.metrics[-1]["step"] == trained.best["step"] >= 1
    assert trained.cost.accrued <= Decimal("0.006")
    assert [one["reason"] for one in fabric.attach(trained.run).attempts] == ["done"]

    later = Training(loops.endless, time_limit=1, quiet=True, gpu="L4", checkpoint=trained.run).run()
    assert (later.stopped, later.world_size, later.attempts) == ("time_limit", 1, 1)
    assert later.metrics[0]["step"] > steps, "it goes on, on another number of ranks, with a time of its own"
    assert fabric.run(loops.stored, gpu="L4", checkpoint=trained.run) == [steps], "any run may begin with it"
    with pytest.raises(fabric.InvalidRequest, match="there is no run run_none"):
        Training(loops.endless, gpu="L4", checkpoint="run_none").run()


def test_a_budget_becomes_the_time_that_it_pays_for_where_the_training_would_be_placed(town):
    members = Training(loops.endless, budget=1, **TWO_NODES)._within_budget()  # two GPUs at USD 0.36 per hour
    assert members.stopped_by == "budget"
    assert members.limit_s == pytest.approx(0.9 * (5_000 - 11))
    with pytest.raises(fabric.InvalidRequest, match=r"budget=0.002 pays 2 GPUs .* give more"):
        Training(loops.endless, budget=0.002, **ONE_NODE).run()


def test_a_budget_of_what_has_to_wait_counts_at_the_highest_price_it_may_have(town):
    waits = {"gpu": "H100:2", "nodes": (2, 4), "budget": 16}
    assert Training(loops.endless, max_price=2, **waits)._within_budget().limit_s == pytest.approx(0.9 * (3_600 - 11))
    with pytest.raises(fabric.NoCapacity) as caught:
        Training(loops.endless, **waits).run()
    assert "max_price" in caught.value.__notes__[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_of_any_rank_is_raised_as_itself_and_not_tried_again(town, rank):
    with pytest.raises(LookupError, match=f"rank {rank} found nothing") as caught:
        Training(loops.wrong_on, **ONE_NODE).run(rank)
    assert f"on rank {rank} of 2" in caught.value.__notes__[0]


def test_a_rank_that_hangs_is_named_in_the_error(town):
    with pytest.raises(Exception, match="rank 0 of 2 did not take part within 3 s"):
        Training(loops.one_hangs, collective_timeout=3, restarts=0, **ONE_NODE).run(0)


def test_a_training_of_one_or_two_nodes_goes_on_from_its_checkpoint_without_a_lost_one(town):
    training = Training(loops.digits, quiet=True, checkpoint_every=0.01, gpu="L4", nodes=(1, 2))
    run = training.submit(2, kwargs={"wait_at": 15})
    next(line for line in run.logs(follow=True) if "waiting" in line)
    facts = town.get(f"/v1/runs/{run.id}")
    of_rank_0 = next(attempt["lease"] for attempt in facts["attempts"] if attempt["task"] == 0)
    with town.without(next(lease["node"] for lease in facts["leases"] if lease["id"] == of_rank_0)):
        trained = training.follow(run)
    assert (trained.attempts, trained.world_size) == (2, 1)
    assert 0 < trained.value[2] <= 15


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"retry": 1}, "sets retry itself"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"ranks_per_node": 0}, "ranks_per_node=0"),
        ({"gpu": ["H100:8", "L4:2"]}, "leaves open"),
        ({"gpu": "H100:2.."}, "leaves open"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_sent(keywords, words):
    with pytest.raises(fabric.InvalidRequest, match=words):
        Training(loops.endless, **keywords)
