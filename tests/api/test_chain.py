"""A control plane with a chain reads, closes and settles by itself; half a configuration is refused at its start."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from pydantic import SecretStr
from scripted import Fabric, TestClient, bootstrap_file

from api.app import create_app
from api.bootstrap import BootstrapError
from api.settings import Settings
from fabric.wire.clock import ManualClock
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.errors import BadAddressBook, BadKey, ChainUnreachable, Disagreement
from ledger.chain.evm import Chain, serve
from ledger.chain.settings import ChainSettings
from ledger.chain.signer import Signer

BCT = USD = 10**18
EPOCH_S = 60
KEY = b"\1" * 32
HOUSE = Signer(KEY)

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def evm() -> Iterator[tuple[str, ManualClock]]:
    """A chain whose clock moves a second with every block."""
    clock = ManualClock()
    chain = Chain([HOUSE.address], clock)
    server, stop = serve(chain, 0), threading.Event()

    def mine() -> None:
        while not stop.wait(0.002):
            if chain.mine():
                clock.advance(1000)

    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)), threading.Thread(target=mine)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}", clock
    stop.set()
    server.shutdown()
    server.server_close()
    for thread in threads:
        thread.join()


@pytest.fixture
def settings(evm, tmp_path: Path) -> ChainSettings:
    """Of fresh contracts, all in the hands of one key."""
    url, clock = evm
    me = HOUSE.address
    book = deploy(
        url,
        HOUSE,
        Deployment(
            owner=me,
            reporters=(me,),
            registrar=me,
            genesis_holder=me,
            genesis_wei=1000 * BCT,
            poster=me,
            stakers=me,
            start_s=clock.now_ms() // 1000,
            epoch_s=EPOCH_S,
            window_s=1,
            supply_wei=500_000_000 * BCT,
            epochs=2557,
        ),
    )
    book.write(tmp_path / "book.json")
    return ChainSettings(
        url=url, addresses=tmp_path / "book.json", key=SecretStr("0x" + KEY.hex()), keystore=None, confirmations=1
    )


@pytest.fixture
def start(evm, tmp_path: Path) -> Iterator[Callable[..., Fabric]]:
    running: list[Any] = []

    def begin(chain: ChainSettings, **more: Any) -> Fabric:
        options = {"state_dir": tmp_path / "state", "epoch_s": EPOCH_S, "finality_s": 0.0} | more
        app = create_app(Settings(**options), evm[1], tick_s=None, chain=chain)
        client = TestClient(app)
        running.append(client.__enter__())
        return Fabric(app, client, evm[1])

    yield begin
    for client in running:
        client.__exit__(None, None, None)


def bootstrap_without_test_balance(folder: Path) -> Path:
    path = bootstrap_file(folder)
    declared = json.loads(path.read_text())
    for customer in declared["customers"]:
        customer["test_balance_dc"] = 0
    path.write_text(json.dumps(declared))
    return path


def beat_until(fabric: Fabric, so: Callable[[dict], bool]) -> dict:
    deadline = time.monotonic() + 30
    while not so(found := fabric.client.get("/v1/ledger/settlement").json()):
        assert time.monotonic() < deadline, found
        fabric.tick(2000)
    return found


def test_it_closes_and_settles_epochs_of_no_usage_too_and_credits_what_a_linked_wallet_deposits(
    start, settings, tmp_path
):
    fabric = start(settings, bootstrap=bootstrap_without_test_balance(tmp_path))
    client = ChainClient.open(settings.url, AddressBook.read(settings.addresses))
    client.send(HOUSE, calls.report_price(USD))
    client.send(HOUSE, calls.approve_bct(client.book.data_credits))
    client.send(HOUSE, calls.mint_dc(BCT, 1))
    client.send(HOUSE, calls.deposit_dc(100_000))
    account, health = fabric.call("GET", "/v1/account"), fabric.call("GET", "/healthz")
    address = HOUSE.address.lower()
    text = f"wallet {address} is account {account['id']} of fabric {health['fabric_id']}"
    signed = Account.sign_message(encode_defunct(text=text), KEY)
    link = {"address": HOUSE.address, "signature": "0x" + bytes(signed.signature).hex()}
    assert fabric.call("PUT", "/v1/account/wallet", link) == {"address": address}
    beat_until(fabric, lambda _: fabric.call("GET", "/v1/account")["available_dc"] == "100000")
    found = beat_until(fabric, lambda found: found["finalised"] >= 1)
    assert found["settlement"].startswith("chain ")
    assert client.finalised() >= 1
    epoch = fabric.client.get("/v1/ledger/epochs/0").json()
    assert (epoch["settlement"], epoch["burned_dc"]) == (found["settlement"], "0")
    assert fabric.audit() == []
    stranger = fabric.call("PUT", "/v1/account/wallet", link, who="bob", expect=422)
    assert "this is not the signature" in stranger["detail"]


def test_without_a_price_the_close_waits_and_says_why(start, settings, tmp_path):
    fabric = start(settings, bootstrap=bootstrap_without_test_balance(tmp_path))
    found = beat_until(fabric, lambda found: "price" in found["close_waits"])
    assert "epoch 0 waits for its price: the price oracle is stale" in found["close_waits"]
    assert not fabric.client.get("/v1/ledger/epochs").json()["epochs"]


def test_what_cannot_be_settled_is_refused_before_it_starts(start, settings, tmp_path):
    def changed(**members: Any) -> ChainSettings:
        return settings.model_copy(update=members)

    with pytest.raises(BadAddressBook, match="needs both"):
        start(changed(addresses=None))
    with pytest.raises(BadKey, match="64 hexadecimal digits"):
        start(changed(key=SecretStr("0x12")))
    with pytest.raises(ChainUnreachable, match="does not answer"):
        start(changed(url="http://127.0.0.1:9"))
    with pytest.raises(Disagreement, match="set FABRIC_EPOCH_S to the chain's"):
        start(settings, epoch_s=EPOCH_S + 1)
    with pytest.raises(BootstrapError, match="only deposited DC can be burned"):
        start(settings, bootstrap=bootstrap_file(tmp_path))
    start(settings)
