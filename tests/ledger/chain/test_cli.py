"""`fabric chain` against the product's own EVM: the way through, and each bad input with its exit code and words."""

import json
from collections.abc import Callable

import pytest

from fabric import cli
from fabric.wire.hashing import keccak256
from ledger.chain.book import AddressBook

KEY = "0x" + keccak256(b"test key of", b"deployer").hex()
POOR = "0x" + keccak256(b"nobody").hex()
REFUSED, NO_KEY, NO_FUNDS, SERVICE = 2, 3, 4, 9


@pytest.fixture
def chain(evm, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs `fabric chain …` with a chain and a key in the environment; keys of it are changed by keyword."""
    given = {"URL": evm.url, "ADDRESSES": str(tmp_path / "book.json"), "KEY": KEY}

    def run(*words: str, **changed: str | None) -> tuple[int, str, str]:
        for name, value in (given | changed).items():
            if value is None:
                monkeypatch.delenv(f"FABRIC_CHAIN_{name}", raising=False)
            else:
                monkeypatch.setenv(f"FABRIC_CHAIN_{name}", value)
        monkeypatch.setenv("FABRIC_HOME", str(tmp_path / "home"))
        code = cli.main(["chain", *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def deployed_by_command(chain, evm, tmp_path) -> AddressBook:
    start = str(evm.clock.now_ms() // 1000)
    code, _, errors = chain("deploy", "--out", str(tmp_path / "book.json"), "--genesis-bct", "1000", "--start-s", start)
    assert (code, errors) == (0, "")
    return AddressBook.read(tmp_path / "book.json")


def test_what_deploy_wrote_is_what_status_reads(chain, deployed_by_command):
    code, said, _ = chain("status", "--json")
    found = json.loads(said)
    assert code == 0
    assert found["settlement"] == deployed_by_command.settlement
    assert (found["posted"], found["finalised"], found["bct_supply_wei"]) == (0, 0, str(1000 * 10**18))
    assert "stale" in found["oracle"]
    assert "epochs finalised: 0, posted: 0" in chain("status")[1]


def test_a_deployment_is_not_overwritten(chain, deployed_by_command, tmp_path):
    code, _, errors = chain("deploy", "--out", str(tmp_path / "book.json"), "--genesis-bct", "1")
    assert (code, "exists" in errors) == (REFUSED, True)


@pytest.mark.parametrize(
    ("changed", "exit_code", "words"),
    [
        ({"URL": None, "ADDRESSES": None}, REFUSED, "no chain is configured; set FABRIC_CHAIN_URL"),
        ({"ADDRESSES": None}, REFUSED, "needs both FABRIC_CHAIN_URL and FABRIC_CHAIN_ADDRESSES"),
        ({"ADDRESSES": "/nowhere/book.json"}, REFUSED, "cannot be read"),
        ({"URL": "http://127.0.0.1:9"}, SERVICE, "does not answer"),
        ({"KEY": "0x12"}, NO_KEY, "not 0x and 64 hexadecimal digits"),
        ({"KEYSTORE": "/nowhere/key.json", "KEYSTORE_PASSWORD": "x"}, NO_KEY, "the keystore /nowhere/key.json"),
        ({"CONFIRMATIONS": "many"}, REFUSED, "FABRIC_CHAIN_CONFIRMATIONS"),
    ],
)
def test_a_wrong_setting_is_told_with_what_to_do(chain, deployed_by_command, changed, exit_code, words):
    code, said, errors = chain("status", **changed)
    assert (code, said) == (exit_code, "")
    assert words in errors
    assert "Traceback" not in errors
    assert KEY[2:] not in errors


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [("chain_id", 1, "the address book names chain 1"), ("settlement", "0x" + "00" * 19 + "01", "no code")],
)
def test_another_chain_and_an_empty_address_are_told(chain, deployed_by_command, tmp_path, member, value, words):
    book = json.loads((tmp_path / "book.json").read_text())
    (tmp_path / "book.json").write_text(json.dumps(book | {member: value}))
    code, _, errors = chain("status")
    assert (code, words in errors) == (REFUSED, True)


def test_nothing_is_deployed_without_a_key_with_an_empty_one_or_for_a_wrong_address(chain, tmp_path):
    words = ("deploy", "--out", str(tmp_path / "book.json"), "--genesis-bct", "1")
    code, _, errors = chain(*words, KEY=None)
    assert (code, "no key to sign with" in errors) == (NO_KEY, True)
    code, _, errors = chain(*words, KEY=POOR)
    assert (code, "wei" in errors) == (NO_FUNDS, True)
    code, _, errors = chain(*words, "--owner", "0x12")
    assert (code, "--owner: '0x12' is not an address" in errors) == (REFUSED, True)
    code, _, errors = chain(*words, URL=None)
    assert (code, "no chain to deploy on" in errors) == (REFUSED, True)
    assert not (tmp_path / "book.json").exists()


def test_nothing_is_settled_without_a_key_or_a_control_plane(chain, deployed_by_command):
    code, _, errors = chain("settle", KEY=None)
    assert (code, "no key to settle with" in errors) == (NO_KEY, True)
    code, _, errors = chain("settle")
    assert (code, "no fabric runs on this machine" in errors) == (REFUSED, True)
    code, _, errors = chain("settle", "--url", "http://127.0.0.1:9")
    assert (code, "is the control plane running?" in errors) == (SERVICE, True)
