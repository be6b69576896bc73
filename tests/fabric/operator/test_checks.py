import re
from ipaddress import ip_address

import pytest

from fabric.operator import checks
from fabric.operator.checks import RayFacts, start_refusals
from fabric.operator.facts import packages_problem
from fabric.operator.findings import Verdict
from fabric.operator.listeners import Listener

PUBLIC = ip_address("203.0.113.5")
EVERYWHERE = ip_address("::")


def facts(**changed) -> RayFacts:
    sound = {
        "version": "2.60.0",
        "auth_mode": "token",
        "token_set": False,
        "token_mode": 0o600,
        "listeners": (Listener(EVERYWHERE, 6379, 1, "gcs_server"),),
        "addresses": (ip_address("127.0.0.1"), ip_address("10.0.0.1")),
    }
    return RayFacts(**{**sound, **changed})


def test_a_sound_host_is_not_refused():
    assert start_refusals(facts()) == []


@pytest.mark.parametrize(
    ("changed", "check", "says"),
    [
        ({"version": "2.51.9"}, "ray-version", "too old"),
        ({"version": None}, "ray-version", "not installed"),
        ({"auth_mode": ""}, "ray-token", "not set"),
        ({"auth_mode": "disabled"}, "ray-token", "disabled"),
        ({"token_mode": None}, "ray-token", "does not exist"),
        ({"token_mode": 0o644}, "ray-token", "0644"),
        ({"addresses": (PUBLIC,)}, "ray-ports", r"gcs_server on 203\.0\.113\.5:6379"),
        ({"addresses": (ip_address("2001:db8::1"),)}, "ray-ports", r"\[2001:db8::1\]:6379"),
        ({"listeners": (Listener(PUBLIC, 20001, 1, "ray::IDLE"),)}, "ray-ports", "ray::IDLE"),
    ],
)
def test_the_agent_is_refused_where_strangers_could_command_ray(changed, check, says):
    (refusal,) = start_refusals(facts(**changed))
    assert refusal.check == check
    assert refusal.mend
    assert re.search(says, refusal.detail)


def test_a_token_in_the_environment_needs_no_file():
    assert start_refusals(facts(token_set=True, token_mode=None)) == []
    assert start_refusals(facts(token_set=True, token_mode=None, auth_mode=""))


def test_an_allowed_public_address_is_the_operators_decision():
    assert start_refusals(facts(addresses=(PUBLIC,)), ["203.0.113.0/24"]) == []


def test_a_socket_on_a_private_address_alone_does_not_matter_to_the_public_one():
    quiet = Listener(ip_address("10.0.0.1"), 6379, 1, "gcs_server")
    assert start_refusals(facts(listeners=(quiet,), addresses=(PUBLIC, ip_address("10.0.0.1")))) == []


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (checks.check_ray_version("2.60.0"), Verdict.OK),
        (checks.check_ray_version("2.61.0rc1"), Verdict.WARNING),
        (checks.check_ray_version("3.0"), Verdict.WARNING),
        (checks.check_gpus(["H100"], "550", ""), Verdict.OK),
        (checks.check_gpus([], "", "Driver Not Loaded"), Verdict.BAD),
        (checks.check_gpus([], "", "Driver Not Loaded", expected=0), Verdict.OK),
        (checks.check_gpus([], "550", ""), Verdict.BAD),
        (checks.check_gpus(["H100"], "550", "", expected=1), Verdict.OK),
        (checks.check_gpus(["H100"], "550", "", expected=2), Verdict.BAD),
        (checks.check_disk("/", checks.MIN_FREE_BYTES), Verdict.OK),
        (checks.check_disk("/", checks.MIN_FREE_BYTES - 1), Verdict.BAD),
        (checks.check_clock(None), Verdict.WARNING),
        (checks.check_clock(-5_000), Verdict.OK),
        (checks.check_clock(5_001), Verdict.BAD),
        (checks.check_sandbox("", tun=True), Verdict.OK),
        (checks.check_sandbox("", tun=False), Verdict.WARNING),
        (checks.check_sandbox("No permissions", tun=True), Verdict.BAD),
        (checks.check_control_plane("u", ""), Verdict.OK),
        (checks.check_control_plane("u", "refused"), Verdict.BAD),
        (checks.check_ssh("10.0.0.1", ""), Verdict.OK),
        (checks.check_ssh("10.0.0.1", "Permission denied"), Verdict.BAD),
        (checks.check_secret_modes({"a": 0o600}), Verdict.OK),
        (checks.check_secret_modes({"a": 0o640}), Verdict.BAD),
        (checks.check_secret_modes({"a": None}), Verdict.BAD),
        (checks.check_delegation(30 * 86_400_000, 0), Verdict.OK),
        (checks.check_delegation(13 * 86_400_000, 0), Verdict.WARNING),
        (checks.check_delegation(5, 5), Verdict.BAD),
    ],
)
def test_each_check_knows_good_from_bad_and_how_to_mend_it(finding, verdict):
    assert finding.verdict is verdict
    assert bool(finding.mend) is (verdict is not Verdict.OK)


def test_an_index_that_does_not_answer_is_a_warning_that_shows_no_password(tmp_path):
    index = "http://user:s3cret@127.0.0.1:9/simple"
    finding = checks.check_packages(*packages_problem(index, ""))
    assert finding.verdict is Verdict.WARNING
    assert "s3cret" not in f"{finding}"
    assert checks.check_packages(*packages_problem("", str(tmp_path))).verdict is Verdict.OK
    assert checks.check_packages(*packages_problem("", "/no/such")).verdict is Verdict.WARNING


def test_a_host_that_does_not_answer_gets_another_mend_than_one_that_refuses_the_key():
    assert "authorized_keys" in checks.check_ssh("10.0.0.1", "user@10.0.0.1: Permission denied (publickey).").mend
    away = checks.check_ssh("10.0.0.1", "ssh: connect to host 10.0.0.1 port 22: No route to host").mend
    assert "switch it on" in away
    assert "worker_ips" in away
