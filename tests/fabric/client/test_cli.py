"""The customer's commands against a small real fabric."""

import json

import pytest

import fabric
from fabric import cli


@pytest.fixture
def finished(small_fabric):
    """A detached run that is over."""
    run = fabric.submit(lambda: 7, name="seven")
    run.wait(10)
    return run.id


def test_offers_are_a_table_or_json(small_fabric, capsys):
    assert cli.main(["offers", "--gpu", "H100"]) == 0
    assert "H100 (simulated)  80GB    2 of 2  on_demand  $2.50/h" in capsys.readouterr().out
    assert cli.main(["offers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["price_dc_per_gpu_hour"] == 250_000
    assert cli.main(["offers", "--nodes", "2"]) == 0
    assert small_fabric.wishes["nodes"] == ["2"]


def test_offers_in_groups_are_summed_with_the_lowest_price_of_each(small_fabric, capsys):
    small_fabric.more_offers = [
        {"price_dc_per_gpu_hour": "300000"},
        {"price_dc_per_gpu_hour": "240000", "region": "us"},
        {"price_dc_per_gpu_hour": "400000", "region": "us"},
    ]
    assert cli.main(["offers", "--group-by", "gpu,region"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["GPU", "REGION", "OFFERS", "FREE", "PRICE", "FROM"],
        ["H100", "(simulated)", "us", "2", "4", "$2.40/h"],
        ["H100", "(simulated)", "eu", "2", "4", "$2.50/h"],
    ]
    assert cli.main(["offers", "--group-by", "operator", "--json"]) == 0
    group = {"operator": "acme", "offers": 4, "count_free": 8, "price_dc_per_gpu_hour": 240_000}
    assert json.loads(capsys.readouterr().out) == [group]
    assert cli.main(["offers", "--group-by", "gpus"]) != 0
    assert "--group-by 'gpus' is unknown; allowed: gpu, region, tier, operator" in capsys.readouterr().err


def test_who_finds_no_offer_is_told_why(small_fabric, capsys):
    small_fabric.fits_nothing = "nothing fits now; did you mean H100?"
    assert cli.main(["offers", "--gpu", "H1O0"]) == 0
    assert capsys.readouterr().err == "fabric: no offers: nothing fits now; did you mean H100?\n"


def test_explain_and_cost_of_a_run(finished, capsys):
    assert cli.main(["explain", finished]) == 0
    assert cli.main(["cost", finished]) == 0
    assert capsys.readouterr().out.startswith(f"the only one\n{finished}: $1.23456 for 1.234 GPU-s")


def test_a_command_runs_with_its_own_exit_code(small_fabric):
    assert cli.main(["run", "--gpu", "H100", "--", "sh", "-c", "exit 3"]) == 3
    assert small_fabric.requests[0][2]["name"] == "sh"


def test_a_function_of_a_file_runs_and_its_value_is_printed(small_fabric, tmp_path, capsys):
    (tmp_path / "cli_app.py").write_text("def double(x): return 2 * x\ndef broken(): raise KeyError('gone')\n")
    assert cli.main(["run", f"{tmp_path}/cli_app.py::double", "21"]) == 0
    assert capsys.readouterr().out == "42\n"
    assert cli.main(["run", f"{tmp_path}/cli_app.py::broken"]) == 1
    assert "KeyError: 'gone'" in capsys.readouterr().err


def test_a_bad_gpu_string_is_one_line_and_exit_code_2(small_fabric, capsys):
    assert cli.main(["run", "--gpu", "H100:x8", "--", "true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fabric: gpu='H100:x8'")
    assert error.count("\n") == 1


def test_a_run_of_nobody_is_refused(small_fabric, capsys):
    assert cli.main(["stop", "run_none"]) == 2
    assert "no run run_none" in capsys.readouterr().err


def test_stopping_a_run_says_what_became_of_it(finished, capsys):
    assert cli.main(["stop", finished]) == 0
    assert capsys.readouterr().out == f"{finished} is CANCELLED\n"


def test_an_unknown_grouping_of_costs_is_refused(small_fabric, capsys):
    assert cli.main(["cost", "--by", "colour"]) == 2
    assert "allowed: gpu, operator, name, kind, tag, tag:NAME" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{}", b"[1", b"\xff", b"null"])
def test_a_file_that_holds_no_receipts_is_refused_by_its_name(tmp_path, capsys, content):
    (tmp_path / "kept.json").write_bytes(content)
    assert cli.main(["receipt", str(tmp_path / "kept.json"), "--verify"]) == 2
    errors = capsys.readouterr().err
    assert "kept.json" in errors
    assert "Traceback" not in errors


def test_costs_add_up_by_tag(small_fabric, capsys):
    assert cli.main(["run", "--tag", "team=vision", "--tag", "stage=train", "--", "true"]) == 0
    for tags in ({"team": "vision"}, {"team": "speech"}, {}):
        fabric.submit(lambda: 7, tags=tags).wait(10)
    assert cli.main(["cost", "--by", "tag:team", "--json"]) == 0
    assert {row["tag:team"]: row["runs"] for row in json.loads(capsys.readouterr().out)} == {
        "vision": 2,
        "speech": 1,
        "": 1,
    }
    assert cli.main(["cost", "--by", "tag,kind", "--json"]) == 0
    assert "stage=train, team=vision" in capsys.readouterr().out
    assert cli.main(["run", "--tag", "vision", "--", "true"]) == 2
    assert "--tag 'vision' is not NAME=VALUE" in capsys.readouterr().err
