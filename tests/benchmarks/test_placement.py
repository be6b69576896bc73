"""`benchmarks.placement`: the figures it promises, on the excerpts of the clone; ours fills more than the baselines."""

import json
from pathlib import Path

import pytest

from benchmarks.alibaba import Pod, TraceNode
from benchmarks.packers import BestFitPacker, FabricPacker, FgdPacker, Packer, RandomPacker
from benchmarks.placement import Stopwatch, allocation, main, seeds_of
from benchmarks.replay import replay

NODES = [TraceNode(f"n{i}", 32_000, 65_536, 4, "T4" if i % 2 else "G2") for i in range(6)]
PODS = [
    Pod(4_000, 1_024, 1, 500, (), 0, 50),
    Pod(8_000, 2_048, 1, 1000, ("T4",), 5, 60),
    Pod(8_000, 2_048, 2, 1000, (), 10, 40),
    Pod(6_000, 512, 0, 0, (), 10, 40),
    Pod(1_000, 512, 1, 300, ("G2",), 20, 90),
]


def packers() -> list[Packer]:
    return [RandomPacker(NODES, 1), BestFitPacker(NODES), FgdPacker(NODES, 1, PODS), FabricPacker(NODES, PODS)]


@pytest.mark.parametrize("packer", packers(), ids=lambda one: type(one).__name__)
def test_no_policy_gives_away_more_than_there_is_and_departures_return_all(packer: Packer) -> None:
    arrivals = PODS * 12
    placed = [index for index, pod in enumerate(arrivals) if packer.arrive(str(index), pod)]
    assert 0 < len(placed) < len(arrivals)
    assert sum(arrivals[index].gpu_milli for index in placed) <= 24_000
    assert sum(arrivals[index].cpu_milli for index in placed) <= 6 * 32_000
    for index in placed:
        packer.depart(str(index))
    again = [index for index, pod in enumerate(arrivals) if packer.arrive(f"again-{index}", pod)]
    assert len(again) > 0.8 * len(placed)


def test_the_command_prints_every_figure_and_ours_is_best(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--seeds", "42,43"]) == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["figures"]
    assert (report["name"], report["config"]["seeds"]) == ("placement", [42, 43])
    assert set(figures["alloc_pct"]) == {"random", "best_fit", "fgd", "fabric"}
    for row in figures["alloc_pct"].values():
        assert list(row) == ["80", "90", "100", "110", "120", "130"]
        assert list(row.values()) == sorted(row.values())
    full = {name: row["130"] for name, row in figures["alloc_pct"].items()}
    assert full["fabric"] > max(full["random"], full["best_fit"])
    assert full["fabric"] > full["fgd"] - 0.5
    assert figures["decisions_per_s"] > 0
    assert 0 < figures["decision_p50_ms"] <= figures["decision_p99_ms"]


def test_the_same_seed_gives_the_same_allocation() -> None:
    first, second = (allocation(NODES, PODS * 10, FabricPacker(NODES, PODS), Stopwatch()) for _ in range(2))
    assert first == second
    assert first["130"] >= first["80"] > 0


def test_replaying_departures_waits_only_when_the_cluster_is_full() -> None:
    calm = replay(NODES, PODS, FabricPacker(NODES, PODS), 1.0)
    assert (calm["waited_pct"], calm["never_placed"]) == (0.0, 0.0)
    rush = replay(NODES[:1], PODS * 4, FabricPacker(NODES[:1], PODS), 1.0)
    assert rush["waited_pct"] > 0
    assert rush["wait_p99_s"] > 0
    assert 0 < rush["mean_alloc_pct"] <= 100


def test_the_large_fleet_prints_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fleet", "800", "--decisions", "200", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["nodes"] == 100
    assert report["figures"]["decisions_per_s"] > 0


@pytest.mark.parametrize(("text", "seeds"), [("42", [42]), ("42-45", [42, 43, 44, 45]), ("1,7-8", [1, 7, 8])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "9-1", "1-", "-3"])
def test_other_seeds_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--seeds={text}"]) == 2
    assert "allowed: 42" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--fleet", "0"], ["--fleet", "800", "--decisions", "0"]])
def test_a_fleet_of_nothing_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert "is 0; at least 1" in capsys.readouterr().err


def test_a_missing_file_and_a_bad_one_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", str(tmp_path / "none.csv")]) == 2
    bad = tmp_path / "bad.csv"
    bad.write_text("sn,cpu_milli\n")
    assert main(["--nodes", str(bad)]) == 2
    error = capsys.readouterr().err
    assert "row 1: no column 'memory_mib', 'gpu', 'model'" in error
    assert len(error.splitlines()) == 2


def test_times_are_needed_to_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pods = tmp_path / "pods.csv"
    pods.write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1,1,1,1000\n")
    assert main(["--pods", str(pods), "--mode", "departures"]) == 2
    assert "no times to replay" in capsys.readouterr().err
    assert main(["--mode", "departures", "--speedup", "0"]) == 2
