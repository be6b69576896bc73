"""The control plane beside an EVM: what people deposit there is theirs here, also when the EVM is gone."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from scripted import Fabric, TestClient, bootstrap_file

from api.app import create_app
from api.chain_jobs import ChainJobs
from api.locks import LEASE_MS
from api.settings import Settings
from api.tables import LockRow
from fabric.wire.clock import SystemClock
from fabric.wire.hashing import keccak256
from ledger.chain import calls
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.index import Index
from ledger.chain.settings import ChainSettings
from ledger.chain.signer import Signer

pytestmark = pytest.mark.chain
BCT = 10**18
EPOCH_S = 86_400


@pytest.fixture
def evm() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The product's own EVM as a process; one person has funds."""
    command = [sys.executable, "-P", "-m", "ledger.chain.evm", "--fund", person().address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
        process.kill()


def person() -> Signer:
    return Signer(keccak256(b"somebody who does everything"))


@pytest.fixture
def world(evm, tmp_path) -> Iterator[tuple[Fabric, ChainClient, ChainJobs]]:
    url, _ = evm
    me = person().address
    deployment = Deployment(
        owner=me, reporters=(me,), registrar=me, genesis_holder=me, genesis_wei=1000 * BCT, poster=me, stakers=me,
        start_s=int(time.time()) - 5, epoch_s=EPOCH_S, window_s=60, supply_wei=500_000_000 * BCT, epochs=2557,
    )  # fmt: skip
    book = deploy(url, person(), deployment)
    book.write(tmp_path / "book.json")
    declared = json.loads(bootstrap_file(tmp_path, 0).read_text())
    for customer in declared["customers"]:
        customer["test_balance_dc"] = 0
        customer["wallet"] = me if customer["id"] == "alice" else None
    bootstrap = tmp_path / "bootstrap.json"
    bootstrap.write_text(json.dumps(declared))
    settings = Settings(state_dir=tmp_path, bootstrap=bootstrap, epoch_s=EPOCH_S)
    chain = ChainSettings(url=url, addresses=tmp_path / "book.json", confirmations=1)
    clock = SystemClock()
    app = create_app(settings, clock, tick_s=None, chain=chain)
    with TestClient(app) as client:
        fabric = Fabric(app, client, clock)
        yield fabric, ChainClient.open(url, book), ChainJobs(fabric.plane)


def until_available(fabric: Fabric, jobs: ChainJobs, dc: int) -> None:
    deadline = time.monotonic() + 60
    while fabric.call("GET", "/v1/account")["available_dc"] != str(dc):
        jobs.tick()
        assert time.monotonic() < deadline, fabric.plane.chain.settler_says


def test_what_is_deposited_on_the_chain_is_available_here_and_survives_the_chain(world, evm):
    fabric, client, jobs = world
    for call in (
        calls.report_price(BCT),
        calls.approve_bct(client.book.data_credits),
        calls.mint_dc(BCT, 1),
        calls.deposit_dc(60_000),
        calls.request_exit(10_000),
        calls.report_price(BCT),
    ):
        client.send(person(), call)
    until_available(fabric, jobs, 50_000)
    assert fabric.call("GET", "/v1/account")["exiting_dc"] == "10000"
    assert fabric.call("GET", "/readyz")["chain"]["halted"] == ""
    for call in (calls.deposit_dc(7), calls.report_price(BCT)):
        client.send(person(), call)
    until_available(fabric, ChainJobs(fabric.plane), 50_007)
    assert fabric.audit() == []
    evm[1].kill()
    evm[1].wait()
    jobs.tick()
    assert "does not answer" in fabric.plane.chain.settler_says
    assert fabric.call("GET", "/readyz")["chain"]["halted"] == ""


def test_while_the_indexer_is_halted_the_settler_does_nothing(world):
    fabric, _, jobs = world
    fabric.plane.chain.signer = person()
    jobs.tick()
    assert fabric.plane.chain.settler_says == "epoch 0 is not closed"
    with fabric.plane.database.write() as session:
        Index(session).halt("a final block is gone", 1)
    jobs.tick()
    assert "the indexer halted" in fabric.plane.chain.settler_says


def test_an_admin_lets_a_halted_indexer_go_on_and_nobody_else_does(world, evm):
    fabric, _, jobs = world
    jobs.tick()
    with fabric.plane.database.write() as session:
        Index(session).halt("a final block is gone", 1)
    fabric.call("POST", "/v1/chain/resume", expect=403)
    assert fabric.call("GET", "/readyz")["chain"]["halted"] == "a final block is gone"
    assert fabric.call("POST", "/v1/chain/resume", who="admin")["halted"] == ""
    jobs.tick()
    assert "halted" not in fabric.plane.chain.settler_says
    evm[1].kill()
    evm[1].wait()
    fabric.call("POST", "/v1/chain/resume", who="admin", expect=503)


def test_who_does_not_hold_the_chains_lock_reads_nothing(world):
    fabric, _, jobs = world
    held = LockRow(name="chain", owner="another", fence=7, until_ms=fabric.plane.now_ms() + LEASE_MS)
    with fabric.plane.database.write() as session:
        session.add(held)
    fabric.plane.database.shared = True  # alone, another owner is always a dead one
    jobs.tick()
    assert fabric.call("GET", "/readyz")["chain"] is None
    with fabric.plane.database.write() as session:
        session.get_one(LockRow, "chain").until_ms = 0
    jobs.tick()
    assert fabric.call("GET", "/readyz")["chain"]["tip"] is not None
    with fabric.plane.database.read() as session:
        assert session.get_one(LockRow, "chain").fence == 8
