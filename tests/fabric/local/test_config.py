"""Keys, declarations and the agent's configuration of the embedded fabric."""

import hashlib
import json
import stat

import pytest

from fabric.local.config import agent_config, packages, prepare_keys, simulated_gpus
from fabric.local.settings import LocalSettings
from fabric.wire.errors import InvalidRequest, ServiceError


def test_keys_are_made_once_and_kept(home):
    prepare_keys(home)
    before = {path: path.read_bytes() for path in (home.api_key_file, home.bootstrap_file, home.ray_token_file)}
    prepare_keys(home)
    assert before == {path: path.read_bytes() for path in before}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in before)


def test_the_bootstrap_declares_the_customer_by_the_hash_of_its_key(home):
    prepare_keys(home)
    declared = json.loads(home.bootstrap_file.read_text())
    (customer,) = declared["customers"]
    assert customer["api_key_sha256"] == hashlib.sha256(home.read_api_key().encode()).hexdigest()
    assert home.read_api_key() not in home.bootstrap_file.read_text()
    assert customer["test_balance_dc"] > 0
    assert len(bytes.fromhex(declared["operators"][0]["session_key"])) == 32


def test_a_key_that_does_not_belong_to_the_declaration_is_refused(home):
    prepare_keys(home)
    home.api_key_file.write_text("fk_" + "2" * 64)
    with pytest.raises(ServiceError, match="does not belong to the API key"):
        prepare_keys(home)


def test_a_session_key_that_does_not_belong_to_the_declaration_is_refused(home):
    prepare_keys(home)
    (home.agent / "session.key").unlink()
    with pytest.raises(ServiceError, match=f"session key in agent/. Move the folder {home.root} away"):
        prepare_keys(home)


@pytest.mark.parametrize("text", ["[]", "{}", '{"customers": []}', '{"customers": [{}], "operators": 7}', "null"])
def test_a_declaration_of_something_else_is_refused(home, text):
    prepare_keys(home)
    home.bootstrap_file.write_text(text)
    with pytest.raises(ServiceError, match="declares no customer"):
        prepare_keys(home)


def test_a_damaged_declaration_is_refused(home):
    prepare_keys(home)
    home.bootstrap_file.write_text("{")
    with pytest.raises(ServiceError, match=r"bootstrap\.json"):
        prepare_keys(home)


def test_a_damaged_session_key_is_refused(home):
    (home.agent / "session.key").write_text("no key")
    with pytest.raises(ServiceError, match=r"session\.key: it is not a key"):
        prepare_keys(home)


def test_what_is_simulated_can_be_chosen_and_switched_off():
    assert simulated_gpus("A100:4") == "A100:4"
    assert simulated_gpus("none") == ""


def test_the_agent_is_told_prices_as_integers_of_dc(home):
    config = agent_config(
        home, url="http://x", ray_address="127.0.0.2:1", gateway_port=2, simulated="", isolation="none"
    )
    prices = config["prices"]
    assert all(isinstance(dc, int) for tiers in prices.values() for dc in tiers.values())
    assert all(tiers["spot"] < tiers["on_demand"] for tiers in prices.values())
    assert {"H100", "L4"} <= prices.keys()
    json.dumps(config)


def test_settings_come_from_the_environment(tmp_path):
    settings = LocalSettings.from_environ({"FABRIC_HOME": str(tmp_path), "FABRIC_EMBEDDED_LINGER_S": "2.5"})
    assert (settings.home, settings.linger_s, settings.simulated_gpus) == (tmp_path, 2.5, None)


@pytest.mark.parametrize(
    ("text", "meant"), [("", None), ("none", "none"), ("H100", "H100:1"), ("H100:2, l4", "H100:2,l4:1")]
)
def test_simulated_gpus_have_a_model_and_a_count(text, meant):
    assert LocalSettings.from_environ({"FABRIC_SIMULATED_GPUS": text}).simulated_gpus == meant


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("FABRIC_EMBEDDED_LINGER_S", "soon"),
        ("FABRIC_PORT", "70000"),
        ("FABRIC_ISOLATION", "jail"),
        ("FABRIC_EMBEDDED_NODES", "9"),
        ("FABRIC_SIMULATED_GPUS", "H100:two"),
        ("FABRIC_SIMULATED_GPUS", "H100:0"),
        ("FABRIC_SIMULATED_GPUS", ",L4"),
    ],
)
def test_a_wrong_setting_is_refused_naming_its_key(key, bad):
    with pytest.raises(InvalidRequest, match=key):
        LocalSettings.from_environ({key: bad})


def test_packages_come_from_where_this_persons_pip_takes_them(tmp_path):
    assert packages({}) == {"pip_index": ""}
    assert packages({"PIP_INDEX_URL": "https://x/simple"}) == {"pip_index": "https://x/simple"}
    folder = {"PIP_FIND_LINKS": str(tmp_path)}
    assert packages(folder) == {"pip_index": "https://pypi.org/simple", "pip_find_links": str(tmp_path)}
    assert packages(folder | {"PIP_NO_INDEX": "1"}) == {"pip_index": "", "pip_find_links": str(tmp_path)}
    assert packages({"PIP_FIND_LINKS": "wheels"}) == {"pip_index": ""}


def test_a_home_from_before_operators_had_an_account_gets_one(home):
    prepare_keys(home)
    declared = json.loads(home.bootstrap_file.read_text())
    account = declared["operators"][0].pop("account")
    home.bootstrap_file.write_text(json.dumps(declared))
    prepare_keys(home)
    assert account == declared["customers"][0]["id"]
    assert json.loads(home.bootstrap_file.read_text())["operators"][0]["account"] == account
