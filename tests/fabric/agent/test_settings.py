"""What the agent refuses to start with, and how it says so."""

import json

import pytest

from fabric.agent.settings import AgentSettings, ConfigError, load

SETTINGS = {
    "url": "http://127.0.0.1:1",
    "operator": "op_1",
    "cluster": "c1",
    "session_key_file": "/nowhere/key",
    "state_dir": "/nowhere",
    "ray_address": "127.0.0.1:1",
    "prices": {"H100": {"on_demand": 250_000}},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a file and point the environment at it."""
    path = tmp_path / "agent.json"

    def write(text: str) -> dict[str, str]:
        path.write_text(text)
        monkeypatch.setenv("FABRIC_AGENT_CONFIG", str(path))
        return {"FABRIC_AGENT_CONFIG": str(path)}

    return write


def test_the_file_that_the_environment_names_is_read(config):
    _, settings = load(config(json.dumps(SETTINGS)))
    assert (settings.operator, settings.isolation, settings.simulated_gpus) == ("op_1", "none", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"urk": 1}, "urk"),
        ({"url": "ftp://x"}, "url"),
        ({"isolation": "docker"}, "isolation"),
        ({"simulated_gpus": "H100:0"}, "H100:2,L4:2"),
        ({"gateway_port": 70_000}, "gateway_port"),
        ({"operator": None}, "operator"),
    ],
)
def test_a_wrong_member_is_named(config, change, words):
    with pytest.raises(ConfigError, match=words):
        load(config(json.dumps(SETTINGS | change)))


def test_what_is_no_json_is_refused(config):
    with pytest.raises(ConfigError, match="not JSON"):
        load(config("{"))


def test_a_mistyped_key_of_the_environment_is_refused_with_the_nearest_one(config):
    environ = config(json.dumps(SETTINGS)) | {"FABRIC_AGENT_CONFG": "x"}
    with pytest.raises(ConfigError, match="FABRIC_AGENT_CONFIG"):
        load(environ)


def test_without_the_key_it_says_which_key_to_set(monkeypatch):
    monkeypatch.delenv("FABRIC_AGENT_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="FABRIC_AGENT_CONFIG is not set"):
        load({})


def session_key(path) -> AgentSettings:
    return AgentSettings.model_validate(SETTINGS | {"session_key_file": str(path)})


def test_a_session_key_is_read_only_from_a_file_that_is_its_owners_alone(tmp_path):
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o600)
    assert bytes(session_key(path).session_key()) == bytes.fromhex("ab" * 32)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        session_key(path).session_key()


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31])
def test_what_is_no_session_key_is_refused(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        session_key(path).session_key()


def test_a_missing_session_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        session_key(tmp_path / "key").session_key()
