"""The `fabric` command: a table of commands, errors as one line and an exit code."""

from importlib.util import find_spec

import pytest

from fabric import cli


def test_without_a_command_it_lists_them(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in cli.COMMANDS)


def test_an_unknown_command_is_refused_with_the_nearest_one(capsys):
    assert cli.main(["staus"]) == 2
    assert "did you mean `fabric status`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n, entry in cli.COMMANDS.items() if entry.module.startswith("fabric.")])
def test_every_command_is_where_the_table_says(name, capsys):
    assert find_spec(cli.COMMANDS[name].module) is not None
    assert cli.main([name, "--help"]) == 0
    assert f"fabric {name}" in capsys.readouterr().out


def test_an_error_of_the_product_is_one_line_and_its_own_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FABRIC_HOME", str(tmp_path))
    monkeypatch.setenv("FABRIC_PORT", "a lot")
    assert cli.main(["status"]) == 2
    error = capsys.readouterr().err
    assert error == "fabric: FABRIC_PORT='a lot' is not a number from 0 to 65535\n"


def test_a_wrong_option_is_refused_with_the_usage(capsys):
    assert cli.main(["status", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err


def test_status_of_a_machine_where_nothing_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FABRIC_HOME", str(tmp_path / "none"))
    assert cli.main(["status", "--json"]) == 1
    assert '"state": "stopped"' in capsys.readouterr().out
    assert cli.main(["down"]) == 0
    assert not (tmp_path / "none").exists()


def test_a_command_whose_packages_are_missing_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.Entry("a_package_that_is_not_installed", "", extra="demo"))
    assert cli.main(["demo"]) == cli.USAGE
    said = capsys.readouterr().err
    assert "a_package_that_is_not_installed" in said
    assert "berkeley-compute[demo]" in said
    assert said.count("\n") == 1
