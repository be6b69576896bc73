"""A control plane with a chain reads, closes and settles by itself; half a configuration is refused at its start."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from chained import EPOCH_S, bootstrap_without_test_balance, deposit
from pydantic import SecretStr
from scripted import Fabric, bootstrap_file

from api.bootstrap import BootstrapError
from ledger.chain.book import AddressBook
from ledger.chain.client import ChainClient
from ledger.chain.errors import BadAddressBook, BadKey, ChainUnreachable, Disagreement
from ledger.chain.settings import ChainSettings

pytestmark = pytest.mark.chain


def beat_until(fabric: Fabric, so: Callable[[dict], bool]) -> dict:
    deadline = time.monotonic() + 30
    while not so(found := fabric.client.get("/v1/ledger/settlement").json()):
        assert time.monotonic() < deadline, found
        fabric.tick(2000)
    return found


def test_it_closes_and_settles_epochs_of_no_usage_too_and_credits_what_a_linked_wallet_deposits(
    start_chained, chain_settings, tmp_path
):
    fabric = start_chained(chain_settings, bootstrap=bootstrap_without_test_balance(tmp_path))
    client = ChainClient.open(chain_settings.url, AddressBook.read(chain_settings.addresses))
    link = deposit(fabric, client, 100_000)
    beat_until(fabric, lambda _: fabric.call("GET", "/v1/account")["available_dc"] == "100000")
    found = beat_until(fabric, lambda found: found["finalised"] >= 1)
    assert found["settlement"].startswith("chain ")
    assert client.finalised() >= 1
    epoch = fabric.client.get("/v1/ledger/epochs/0").json()
    assert (epoch["settlement"], epoch["burned_dc"]) == (found["settlement"], "0")
    assert fabric.audit() == []
    stranger = fabric.call("PUT", "/v1/account/wallet", link, who="bob", expect=422)
    assert "this is not the signature" in stranger["detail"]


def test_without_a_price_the_close_waits_and_says_why(start_chained, chain_settings, tmp_path):
    fabric = start_chained(chain_settings, bootstrap=bootstrap_without_test_balance(tmp_path))
    found = beat_until(fabric, lambda found: "price" in found["close_waits"])
    assert "epoch 0 waits for its price: the price oracle is stale" in found["close_waits"]
    assert not fabric.client.get("/v1/ledger/epochs").json()["epochs"]


def test_what_cannot_be_settled_is_refused_before_it_starts(start_chained, chain_settings, tmp_path):
    def changed(**members: Any) -> ChainSettings:
        return chain_settings.model_copy(update=members)

    with pytest.raises(BadAddressBook, match="needs both"):
        start_chained(changed(addresses=None))
    with pytest.raises(BadKey, match="64 hexadecimal digits"):
        start_chained(changed(key=SecretStr("0x12")))
    with pytest.raises(ChainUnreachable, match="does not answer"):
        start_chained(changed(url="http://127.0.0.1:9"))
    with pytest.raises(Disagreement, match="set FABRIC_EPOCH_S to the chain's"):
        start_chained(chain_settings, epoch_s=EPOCH_S + 1)
    with pytest.raises(BootstrapError, match="only deposited DC can be burned"):
        start_chained(chain_settings, bootstrap=bootstrap_file(tmp_path))
    start_chained(chain_settings)
