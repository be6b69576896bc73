"""`fabric chain` against the product's own EVM: the way through, and each bad input with its exit code and words."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fabric import cli
from fabric.wire.hashing import keccak256
from ledger.allocate import EpochInput, allocate
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.client import ChainClient
from ledger.chain.rpc import connect
from ledger.chain.signer import Signer
from ledger.chain.statement import settlement_of
from ledger.chain.transactions import next_nonce
from ledger.epoch import CloseFacts, epoch_file, facts_of, file_hash, read_file
from ledger.settings import LedgerSettings

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "nowhere/book.json"), "no file can be written in"),
        (("--start-s", "-5"), "Invalid value for '--start-s'"),
        (("--epochs", "100001"), "Invalid value for '--epochs'"),
        (("--stake-bps", "199"), "Invalid value for '--stake-bps'"),
        (("--freshness-s", "-1"), "Invalid value for '--freshness-s'"),
        (("--genesis-bct", str(10**70)), "Invalid value for '--genesis-bct'"),
        (("--bond-bct", "0"), "Invalid value for '--bond-bct'"),
        (("--quorum", "2"), "OutOfBounds(quorum, 2)"),
    ],
)
def test_a_deployment_that_cannot_succeed_is_refused_before_anything_is_sent(
    chain, evm, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    rpc = connect(evm.url)
    sender = Signer(bytes.fromhex(KEY[2:])).address
    before = next_nonce(rpc, sender)
    code, _, errors = chain("deploy", "--out", "book.json", "--genesis-bct", "1", *words)
    assert (code, said in " ".join(errors.split())) == (REFUSED, True), errors
    assert next_nonce(rpc, sender) == before
    assert not (tmp_path / "book.json").exists()


def test_nothing_is_settled_without_a_key_or_a_control_plane(chain, deployed_by_command):
    code, _, errors = chain("settle", KEY=None)
    assert (code, "no key to settle with" in errors) == (NO_KEY, True)
    code, _, errors = chain("settle")
    assert (code, "no fabric runs on this machine" in errors) == (REFUSED, True)
    code, _, errors = chain("settle", "--url", "http://127.0.0.1:9")
    assert (code, "is the control plane running?" in errors) == (SERVICE, True)


@pytest.fixture
def published(evm, deployed_by_command, tmp_path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A control plane's pages: one epoch without usage, closed for this deployment."""
    book = deployed_by_command
    start_ms = evm.clock.now_ms() // 1000 * 1000
    settings = LedgerSettings(genesis_ms=start_ms, epoch_ms=86_400_000)
    given = EpochInput(
        epoch=0,
        start_ms=start_ms,
        end_ms=start_ms + settings.epoch_ms,
        lines=[],
        gpus=[],
        price_usd_e18=10**18,
        price_source="oracle",
        emission_wei=settings.schedule.emission_wei(0),
        remintable_wei=0,
        stake_bps=500,
    )
    told = settlement_of(book.chain_id, book.settlement)
    facts = CloseFacts(closed_ms=given.end_ms, head=bytes(32), payers={}, settlement=told)
    result = allocate(given)
    body = epoch_file(given, result, facts)
    row = {"n": 0, "payout_root": "0x" + result.payout_root.hex(), "usage_root": "0x" + result.usage_root.hex()}
    row |= {"file_hash": "0x" + file_hash(body).hex()} | json.loads(body)["totals"]
    row |= {"price_source": "oracle", "price_usd_e18": str(10**18), "settlement": told, "stake_bps": 500}
    pages = {
        "/v1/ledger/epochs?cursor=0&limit=1": b'{"epochs": []}',
        "/v1/ledger/epochs?limit=1": json.dumps({"epochs": [row]}).encode(),
        "/v1/ledger/epochs/0": json.dumps(row).encode(),
        "/v1/ledger/epochs/0/file": body,
    }

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b"{}"))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_epoch_whose_sums_begin_with_what_nobody_was_owed_is_not_sent(chain, published):
    url, pages = published
    given, content = read_file(pages["/v1/ledger/epochs/0/file"])
    invented = replace(given, previous={("0x" + "11" * 32, "0x" + "22" * 20): 10**18})
    pages["/v1/ledger/epochs/0/file"] = epoch_file(invented, allocate(invented), facts_of(content))
    code, _, errors = chain("settle", "--url", url)
    assert (code, "does not go on from the one before" in errors) == (REFUSED, True)


def test_a_published_epoch_is_settled_once_and_verified_on_the_chain(chain, evm, published, capsys, tmp_path):
    url, pages = published
    verify = ["ledger", "epoch", "0", "--verify", "--url", url]
    assert "not over by the chain's time" in chain("settle", "--url", url)[1]
    client = ChainClient.open(evm.url, AddressBook.read(tmp_path / "book.json"))
    evm.clock.advance((client.epoch_end_s(0) - client.head().time_s - 5) * 1000)
    client.send(Signer(bytes.fromhex(KEY[2:])), calls.report_price(10**18))
    while client.head().time_s < client.epoch_end_s(0):
        evm.clock.advance(2000)
    code, _, errors = chain("settle", "--url", url, "--json")
    assert (code, errors) == (0, "")
    while client.posted() < 1:
        chain("settle", "--url", url)
    for _ in range(3):
        assert "the dispute window of epoch 0 is open" in chain("settle", "--url", url)[1]
    assert (client.posted(), client.last_post_id()) == (1, 1)
    assert cli.main(verify) == 0
    assert "every number agrees; posted on chain" in capsys.readouterr().out
    forged = pages["/v1/ledger/epochs/0/file"].replace(b'"price_source":"oracle"', b'"price_source":"mine"')
    row = json.loads(pages["/v1/ledger/epochs/0"]) | {"file_hash": "0x" + file_hash(forged).hex()}
    pages |= {"/v1/ledger/epochs/0/file": forged, "/v1/ledger/epochs/0": json.dumps(row).encode()}
    assert cli.main(verify) == 1
    assert "closing: the chain has 0x" in capsys.readouterr().out
    pages |= {"/v1/ledger/epochs/1": json.dumps(row | {"n": 1}).encode(), "/v1/ledger/epochs/1/file": forged}
    pages["/v1/ledger/epochs?cursor=1&limit=1"] = json.dumps({"epochs": [row]}).encode()
    assert cli.main(["ledger", "epoch", "1", "--verify", "--url", url]) == 1
    assert "the epoch before: closing: the chain has 0x" in capsys.readouterr().out
    code, _, errors = chain("settle", "--url", url)
    assert (code, "stands on the chain with closing" in errors) == (REFUSED, True)
