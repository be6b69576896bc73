"""A chain on this machine and control planes that settle on it, for the tests of `api`."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct
from pydantic import SecretStr
from scripted import Fabric, TestClient, bootstrap_file

from api.app import create_app
from api.settings import Settings
from fabric.wire.clock import ManualClock
from ledger.chain import calls
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.evm import Chain, serve
from ledger.chain.settings import ChainSettings
from ledger.chain.signer import Signer

BCT = USD = 10**18
EPOCH_S = 60
KEY = b"\1" * 32
HOUSE, HEIDI, IVAN = Signer(KEY), Signer(b"\2" * 32), Signer(b"\3" * 32)

Evm = tuple[str, ManualClock]


def running_evm() -> Iterator[Evm]:
    """A chain whose clock moves a second with every block."""
    clock = ManualClock()
    chain = Chain([signer.address for signer in (HOUSE, HEIDI, IVAN)], clock)
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


def fresh_contracts(evm: Evm, folder: Path) -> ChainSettings:
    """Settings of fresh contracts, all in the hands of one key."""
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
    book.write(folder / "book.json")
    return ChainSettings(
        url=url, addresses=folder / "book.json", key=SecretStr("0x" + KEY.hex()), keystore=None, confirmations=1
    )


def control_planes(evm: Evm, folder: Path) -> Iterator[Callable[..., Fabric]]:
    """Gives a function that starts one with a chain."""
    running: list[Fabric] = []

    def begin(chain: ChainSettings, **more: Any) -> Fabric:
        options = {"state_dir": folder / "state", "epoch_s": EPOCH_S, "finality_s": 0.0} | more
        app = create_app(Settings(**options), evm[1], tick_s=None, chain=chain)
        client = TestClient(app)
        running.append(Fabric(app, client.__enter__(), evm[1]))
        return running[-1]

    yield begin
    for fabric in running:
        fabric.hang_up()
        fabric.client.__exit__(None, None, None)


def bootstrap_without_test_balance(folder: Path) -> Path:
    path = bootstrap_file(folder)
    declared = json.loads(path.read_text())
    for customer in declared["customers"]:
        customer["test_balance_dc"] = 0
    path.write_text(json.dumps(declared))
    return path


def deposit(fabric: Fabric, client: ChainClient, dc: int) -> dict[str, str]:
    """Alice links the house's wallet and deposits so much, at a price of one dollar; answers what she signed."""
    client.send(HOUSE, calls.report_price(USD))
    client.send(HOUSE, calls.approve_bct(client.book.data_credits))
    client.send(HOUSE, calls.mint_dc(-(-dc * BCT // 100_000), 1))
    client.send(HOUSE, calls.deposit_dc(dc))
    account, health = fabric.call("GET", "/v1/account"), fabric.call("GET", "/healthz")
    address = HOUSE.address.lower()
    text = f"wallet {address} is account {account['id']} of fabric {health['fabric_id']}"
    signed = Account.sign_message(encode_defunct(text=text), KEY)
    link = {"address": HOUSE.address, "signature": "0x" + bytes(signed.signature).hex()}
    assert fabric.call("PUT", "/v1/account/wallet", link) == {"address": address}
    return link
