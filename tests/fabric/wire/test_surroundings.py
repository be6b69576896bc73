"""Environments and networks: what is legal, in one form; what is not, with the reason."""

import pytest

from fabric.wire.surroundings import check_env, check_network


@pytest.mark.parametrize(
    "requirement",
    [
        "torch",
        "numpy>=1.26,<3",
        "ruamel.yaml==0.18.*",
        "fastapi[standard, all]~=0.120",
        "x===1.0+cu124",
        "tomli>=2; python_version < '3.11'",
        "a (>=1)",
    ],
)
def test_a_name_with_versions_is_a_requirement(requirement):
    assert check_env("", [requirement]).pip == [requirement]


@pytest.mark.parametrize(
    "requirement",
    [
        "",
        "-e .",
        "--index-url=https://evil",
        "./local",
        "/etc/passwd",
        "pkg @ https://evil/x.whl",
        "git+https://evil/x",
        "https://evil/x.whl",
        "a\n--pre",
        "a && b",
        "x.whl/../y",
        "a" * 201,
    ],
)
def test_what_could_come_from_elsewhere_or_be_an_option_is_refused(requirement):
    with pytest.raises(ValueError, match=r"is not a requirement such as|at most"):
        check_env("", [requirement])


def test_equal_environments_have_one_form():
    assert check_env("", ["b", " a >=  1", "b"]) == check_env("", ["a >= 1", "b"])


@pytest.mark.parametrize("python", ["2.7", "3", "3.11.4", "python3"])
def test_only_a_minor_is_a_python(python):
    with pytest.raises(ValueError, match="not a minor version"):
        check_env(python, [])
    assert check_env("3.12", []).python == "3.12"


def test_words_and_hosts_are_networks():
    assert check_network("none") == ("none", [])
    assert check_network("open") == ("open", [])
    assert check_network(["PyPI.org", "*.acme.org", "db.acme.org:5432", "10.0.0.7:80"]) == (
        "hosts",
        ["*.acme.org", "10.0.0.7:80", "db.acme.org:5432", "pypi.org"],
    )


@pytest.mark.parametrize(
    "network", ["host", [], ["*"], ["a b"], ["http://x"], ["x:0"], ["x:99999"], ["*.*"], ["x"] * 65]
)
def test_anything_else_is_no_network(network):
    with pytest.raises(ValueError, match="network"):
        check_network(network)
