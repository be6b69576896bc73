"""The commands against a small HTTP server on loopback that serves what a ledger answered."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from fabric.wire.errors import InvalidRequest, ServiceError
from ledger import queries
from ledger.allocate import allocate
from ledger.cli import app
from ledger.closing import file_of
from ledger.epoch import epoch_file, facts_of, read_file, verify_file
from ledger.leaves import gpu_id_hex

GPU = gpu_id_hex("GPU-1")


@pytest.fixture
def pages(funded, session, use, clock) -> dict[str, bytes]:
    """One closed epoch, as the API shows it."""
    funded.charge("lease-1", use(1, 180_000))
    clock.advance(3_600_000)
    funded.close_epoch(0)
    row, body = queries.epoch(session, 0), file_of(session, 0)
    assert row is not None
    assert body is not None
    line = {"epoch": 0, "gpu": GPU, "holder": "0xh", "pool": "op-1", "operator": "op-1"}
    line |= {"gpu_ms": 180_000, "dc": "10000", "wei": "95", "usd": "$0.10", "bct": "0.95"}
    gpu = {"id": GPU, "model": "H100", "operator": "op-1", "simulated": True, "used_gpu_ms": 180_000}
    gpu |= {"used_usd": "$0.10", "utilised_gpu_ms": 0, "earned_bct": "0.95", "cash_flow": [line]}
    epoch = {"n": 0, "settlement": row.settlement, "burned_usd": "$0.10", "gpu_ms": row.gpu_ms, "paid_bct": "1"}
    epoch |= {"price_usd_e18": str(row.price_usd_e18), "price_source": "test", "file_hash": "0x" + row.file_hash.hex()}
    totals = json.loads(body)["totals"]
    epoch |= {"stake_bps": row.stake_bps} | {name: totals[name] for name in totals if name != "gpu_ms"}
    epoch |= {"payout_root": "0x" + row.payout_root.hex(), "usage_root": "0x" + row.usage_root.hex()}
    epoch["usage"] = [
        {"gpu": GPU, "gpu_ms": 180_000, "dc": "10000", "usd": "$0.10", "leases_root": "0x", "payers": 1,
         "largest_payer_bps": 10_000}
    ]  # fmt: skip
    party = {"gpus": 1, "epochs": 1, "gpu_ms": 180_000, "usd": "$0.10", "bct": "0.95", "cash_flow": [line]}
    return {
        f"/v1/ledger/gpus/{GPU}?limit=1000": json.dumps(gpu).encode(),
        f"/v1/ledger/gpus/{GPU}?limit=1000&format=csv": b'epoch,gpu\n0,"a"\n',
        "/v1/ledger/pools/op-1?limit=1000": json.dumps(party).encode(),
        "/v1/ledger/holders/0xh?limit=1000": json.dumps(party).encode(),
        "/v1/ledger/epochs?limit=1000": json.dumps({"epochs": [epoch], "current": {"n": 1}}).encode(),
        "/v1/ledger/epochs?cursor=0&limit=1": b'{"epochs": []}',
        "/v1/ledger/epochs?cursor=1&limit=1": json.dumps({"epochs": [epoch]}).encode(),
        "/v1/ledger/epochs/0": json.dumps(epoch).encode(),
        "/v1/ledger/epochs/0/file": body,
    }


@pytest.fixture
def keys() -> dict[str, str | None]:
    """What was asked for, and with which credential."""
    return {}


@pytest.fixture
def served(pages, keys) -> Iterator[str]:
    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path)
            keys[self.path] = self.headers["Authorization"]
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(b'{"detail": "no such thing"}' if body is None else body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fabric_ledger(served) -> Callable[..., tuple[int, str]]:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words, "--url", served])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def test_a_gpu_is_shown_with_its_cash_flow_and_marked_when_simulated(fabric_ledger):
    code, out = fabric_ledger("gpu", GPU)
    assert code == 0
    assert "H100 (simulated) of op-1" in out
    assert "0.95 BCT" in out
    assert fabric_ledger("gpu", GPU, "--csv") == (0, 'epoch,gpu\n0,"a"\n')


def test_lists_have_json(fabric_ledger):
    for words in (("gpu", GPU), ("epoch", "0"), ("epochs",), ("pool", "op-1")):
        code, out = fabric_ledger(*words, "--json")
        assert code == 0
        json.loads(out)
        assert fabric_ledger(*words)[0] == 0


def test_an_epoch_says_how_it_is_settled_and_where_its_price_is_from(fabric_ledger):
    code, out = fabric_ledger("epoch", "0")
    assert code == 0
    assert "not settled: no chain configured" in out
    assert "(test)" in out


def test_verification_recomputes_the_roots_from_the_public_file_alone(fabric_ledger):
    assert fabric_ledger("epoch", "0", "--verify") == (0, fabric_ledger("epoch", "0", "--verify")[1])
    assert "every number agrees" in fabric_ledger("epoch", "0", "--verify")[1]


@pytest.mark.parametrize(
    "name", ["payout_root", "usage_root", "file_hash", "burned_dc", "paid_wei", "gpu_ms", "price_usd_e18", "settlement"]
)
def test_verification_fails_when_the_epoch_says_something_else_than_its_file(fabric_ledger, pages, name):
    epoch = json.loads(pages["/v1/ledger/epochs/0"])
    pages["/v1/ledger/epochs/0"] = json.dumps(epoch | {name: "0x00"}).encode()
    code, out = fabric_ledger("epoch", "0", "--verify")
    assert code == 1
    assert name in out


def test_verification_fails_when_a_number_in_the_file_was_changed(fabric_ledger, pages):
    body = pages["/v1/ledger/epochs/0/file"]
    pages["/v1/ledger/epochs/0/file"] = body.replace(b'"180000","10000"', b'"180000","10001"')
    assert pages["/v1/ledger/epochs/0/file"] != body
    code, out = fabric_ledger("epoch", "0", "--verify", "--json")
    assert code == 1
    assert json.loads(out)["agrees"] is False


def test_verification_fails_when_sums_do_not_go_on_from_the_epoch_before(fabric_ledger, pages):
    def publish(epoch: int, body: bytes) -> None:
        verdict, (_, content) = verify_file(body), read_file(body)
        assert verdict.faults == ()
        row = content | content["totals"] | {"n": epoch, "file_hash": "0x" + verdict.file_hash.hex()}
        pages[f"/v1/ledger/epochs/{epoch}"] = json.dumps(row).encode()
        pages[f"/v1/ledger/epochs/{epoch}/file"] = body

    first = pages["/v1/ledger/epochs/0/file"]
    given, content = read_file(first)
    owed = {(gpu, holder): int(total) for gpu, holder, _, total in content["payouts"]}
    assert owed

    def later(epoch: int, previous: dict[tuple[str, str], int]) -> bytes:
        next_given = replace(given, epoch=epoch, lines=[], gpus=[], available=[], pools={}, previous=previous)
        return epoch_file(next_given, allocate(next_given), replace(facts_of(content), payers={}))

    publish(1, later(1, owed))
    code, out = fabric_ledger("epoch", "1", "--verify")
    assert (code, "every number agrees" in out) == (0, True)
    for wrong in ({pair: total + 1 for pair, total in owed.items()}, {}, owed | {(GPU, "0x" + "11" * 20): 1}):
        publish(1, later(1, wrong))
        code, out = fabric_ledger("epoch", "1", "--verify")
        assert (code, "payouts: the file goes on from" in out) == (1, True)
    publish(0, later(0, owed))
    assert "payouts: the file goes on from" in fabric_ledger("epoch", "0", "--verify")[1]


def test_the_first_epoch_that_was_closed_need_not_be_zero(fabric_ledger, pages):
    row = json.loads(pages["/v1/ledger/epochs/0"])
    given, content = read_file(pages["/v1/ledger/epochs/0/file"])
    seventh = replace(given, epoch=7)
    body = epoch_file(seventh, allocate(seventh), facts_of(content))
    verdict = verify_file(body)
    row |= {"n": 7, "file_hash": "0x" + verdict.file_hash.hex(), "usage_root": "0x" + verdict.usage_root.hex()}
    pages["/v1/ledger/epochs?cursor=7&limit=1"] = b'{"epochs": []}'
    pages |= {"/v1/ledger/epochs/7": json.dumps(row).encode(), "/v1/ledger/epochs/7/file": body}
    assert fabric_ledger("epoch", "7", "--verify")[0] == 0


def test_a_key_goes_only_where_one_is_needed_and_this_machines_own_to_no_other(
    fabric_ledger, keys, tmp_path, monkeypatch
):
    (tmp_path / "api.key").write_text("own")
    monkeypatch.setenv("FABRIC_HOME", str(tmp_path))
    monkeypatch.delenv("FABRIC_API_KEY", raising=False)
    with pytest.raises(InvalidRequest, match="FABRIC_API_KEY"):
        fabric_ledger("holder", "0xh")
    assert not keys
    monkeypatch.setenv("FABRIC_API_KEY", "mine")
    assert "1 GPUs in 1 epochs" in fabric_ledger("holder", "0xh")[1]
    fabric_ledger("pool", "op-1")
    assert keys == {"/v1/ledger/holders/0xh?limit=1000": "Bearer mine", "/v1/ledger/pools/op-1?limit=1000": None}


def test_what_the_control_plane_does_not_know_is_said_in_its_words(fabric_ledger):
    with pytest.raises(InvalidRequest, match="no such thing"):
        fabric_ledger("epoch", "9")


def test_without_a_control_plane_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FABRIC_HOME", str(tmp_path))
    monkeypatch.delenv("FABRIC_URL", raising=False)
    assert isinstance(CliRunner().invoke(app, ["epochs"]).exception, InvalidRequest)
    (tmp_path / "fabric.json").write_text('{"state": "ready", "url": "http://127.0.0.1:1"}')
    assert isinstance(CliRunner().invoke(app, ["epochs"]).exception, ServiceError)
