"""Trainings for real: two ranks on two nodes, and on one; lost ranks, wrong loops, budgets."""

import json

import pytest

import fabric
from tests.workloads.training import loops
from workloads import Training
from workloads.examples import digits

pytestmark = pytest.mark.slow
pytest.importorskip("torch")

TWO_NODES = {"gpu": "L4", "nodes": 2}
ONE_NODE = {"gpu": "L4:2"}


def test_two_ranks_on_two_nodes_learn_the_digits_and_keep_their_records(town, tmp_path, capsys):
    assert digits.main(20, folder=tmp_path, **TWO_NODES) >= 0.97
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 20 * (1437 // 64)
    assert records[-1]["loss"] < 0.2 < records[0]["loss"]
    assert records[-1]["cost_usd"] > 0
    assert "<polyline" in (tmp_path / "report.html").read_text()
    assert "samples/s" in capsys.readouterr().out
    town.wait(lambda: town.get("/v1/audit", key="fk_" + "2" * 43)["ok"])


def test_a_rank_killed_midway_ends_at_the_loss_of_an_undisturbed_run(town):
    undisturbed = Training(loops.digits, quiet=True, **ONE_NODE).run(6)
    killed = Training(loops.digits, quiet=True, checkpoint_every=0.01, **TWO_NODES).run(6, kwargs={"kill_at": (1, 70)})
    assert (undisturbed.attempts, killed.attempts) == (1, 2)
    assert 0 < killed.value[2] <= 70
    assert killed.value[0] == pytest.approx(undisturbed.value[0], rel=0.01)
    assert killed.metrics[-1]["step"] == undisturbed.metrics[-1]["step"] == 6 * (1437 // 64)


def test_a_killed_rank_of_one_node_is_named_and_resumed_sharded(town, capsys):
    trained = Training(loops.digits, checkpoint_every=0.01, **ONE_NODE).run(
        2, kwargs={"kill_at": (1, 30), "sharded": True}
    )
    assert trained.attempts == 2
    assert 0 < trained.value[2] <= 30
    said = capsys.readouterr().out
    assert "rank-1 ended by signal 9" in said or "rank 1 of 2 is gone" in said  # whichever process saw it first


def test_a_training_stops_in_good_order_when_its_time_is_over(town):
    trained = Training(loops.endless, time_limit=1, quiet=True, gpu="L4", ranks_per_node=2).run()
    assert (trained.stopped, trained.world_size) == ("time_limit", 2)
    assert trained.value == trained.metrics[-1]["step"] >= 1


def test_a_budget_becomes_the_time_that_it_pays_for_where_the_training_would_be_placed(town):
    plan = Training(loops.endless, budget=1, **TWO_NODES)._within_budget()  # two GPUs at USD 0.36 per hour
    assert plan.stopped_by == "budget"
    assert plan.limit_s == pytest.approx(0.9 * (5_000 - 11))
    with pytest.raises(fabric.InvalidRequest, match=r"budget=0.002 pays 2 GPUs .* give more"):
        Training(loops.endless, budget=0.002, **ONE_NODE).run()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_of_any_rank_is_raised_as_itself_and_not_tried_again(town, rank):
    with pytest.raises(LookupError, match=f"rank {rank} found nothing") as caught:
        Training(loops.wrong_on, **ONE_NODE).run(rank)
    assert f"on rank {rank} of 2" in caught.value.__notes__[0]


def test_a_rank_that_hangs_in_a_collective_is_named(town):
    with pytest.raises(Exception, match="rank 1 of 2 did not take part within 3 s"):
        Training(loops.one_hangs, collective_timeout=3, restarts=0, **ONE_NODE).run(1)


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
