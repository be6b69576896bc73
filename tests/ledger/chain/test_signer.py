"""Keys come from a keystore or the environment and never show themselves."""

import json
import pickle

import pytest
from eth_account import Account
from pydantic import SecretStr

from fabric.wire.hashing import keccak256
from ledger.chain.errors import BadKey
from ledger.chain.settings import ChainSettings
from ledger.chain.signer import Signer

KEY = keccak256(b"a test's key")
ADDRESS = Account.from_key(KEY).address


@pytest.fixture(scope="module")
def keystore(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key.json"
    path.write_text(json.dumps(Account.encrypt(KEY, "right", iterations=2)), "utf-8")
    return path


def test_a_keystore_opens_with_its_password_only(keystore):
    assert Signer.from_keystore(keystore, SecretStr("right")).address == ADDRESS
    with pytest.raises(BadKey, match=r"wrong password"):
        Signer.from_keystore(keystore, SecretStr("wrong"))


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense"])
def test_a_file_that_is_no_keystore_is_refused(tmp_path, content):
    path = tmp_path / "key.json"
    path.write_text(content, "utf-8")
    with pytest.raises(BadKey):
        Signer.from_keystore(path, SecretStr("right"))


def test_a_missing_keystore_is_named(tmp_path):
    with pytest.raises(BadKey, match=r"none.json cannot be read"):
        Signer.from_keystore(tmp_path / "none.json", SecretStr("right"))


@pytest.mark.parametrize("prefix", ["", "0x"])
def test_a_key_is_read_from_hex(prefix):
    assert Signer.from_hex(SecretStr(prefix + KEY.hex())).address == ADDRESS


@pytest.mark.parametrize("text", ["", "0x12", "secret words", "00" * 32, "ff" * 32])
def test_a_key_that_is_none_is_refused_and_not_repeated(text):
    with pytest.raises(BadKey) as refused:
        Signer.from_hex(SecretStr(text))
    assert not text or text not in str(refused.value)
    assert refused.value.__cause__ is None


def test_settings_prefer_the_keystore_and_name_what_is_missing(keystore, monkeypatch):
    with pytest.raises(BadKey, match=r"FABRIC_CHAIN_KEYSTORE"):
        Signer.from_settings(ChainSettings())
    monkeypatch.setenv("FABRIC_CHAIN_KEY", KEY.hex())
    assert Signer.from_settings(ChainSettings()).address == ADDRESS
    monkeypatch.setenv("FABRIC_CHAIN_KEYSTORE", str(keystore))
    with pytest.raises(BadKey, match=r"FABRIC_CHAIN_KEYSTORE_PASSWORD"):
        Signer.from_settings(ChainSettings())
    monkeypatch.setenv("FABRIC_CHAIN_KEYSTORE_PASSWORD", "right")
    assert Signer.from_settings(ChainSettings()).address == ADDRESS


def test_a_key_shows_itself_nowhere(monkeypatch):
    monkeypatch.setenv("FABRIC_CHAIN_KEY", KEY.hex())
    settings = ChainSettings()
    signer = Signer.from_settings(settings)
    assert repr(signer) == f"Signer({ADDRESS})"
    assert KEY.hex() not in repr(settings) + str(settings) + settings.model_dump_json()
    with pytest.raises(TypeError, match=r"does not travel"):
        pickle.dumps(signer)
