"""The client against the product's own EVM: one epoch from purchase to claim, and every bad input in clear words."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fabric.wire import merkle
from fabric.wire.hashing import keccak256
from ledger.chain import calls
from ledger.chain.calls import Closing, Hosting, Payout
from ledger.chain.client import ChainClient
from ledger.chain.errors import (
    ChainUnreachable,
    NoContract,
    NoFunds,
    NotEnoughBct,
    NotMined,
    PriceUnavailable,
    Reverted,
    WrongChain,
)
from ledger.chain.signer import Signer
from ledger.leaves import address_bytes, payout_leaf

BCT = USD = 10**18
GPUS = (keccak256(b"gpu 1"), keccak256(b"gpu 2"))
EMPTY = merkle.EMPTY_ROOT


def _closing(epoch: int = 0, **members) -> Closing:
    return replace(Closing(epoch, 0, 0, 0, 0, EMPTY, EMPTY, EMPTY, EMPTY), **members)


def test_an_epoch_goes_from_purchase_to_claim(deployed):
    client, evm = deployed.client, deployed.evm
    heidi, ivan = evm.address("heidi"), evm.address("ivan")
    hosting = Hosting(EMPTY, EMPTY, evm.address("registrar"), 1)
    deployed.send("registrar", calls.register_gpu(heidi, GPUS[0], keccak256(b"serial 1"), hosting))
    assert client.gpu_holder(GPUS[0]) == heidi
    assert client.gpu_holder(GPUS[1]) is None
    assert deployed.buy_dc(10 * BCT) == 1_000_000 == client.dc_deposited_total()
    assert client.bct_burned_wei() == client.remintable_wei() == 10 * BCT

    deployed.wait_until(client.epoch_end_s(0))
    paid = client.value_wei(0, 400_000)
    stake = paid * client.stake_bps(0) // 10_000
    earned = [(GPUS[0], heidi, (paid - stake) // 4), (GPUS[1], ivan, paid - stake - (paid - stake) // 4)]
    leaves = [payout_leaf(gpu, address_bytes(holder), wei) for gpu, holder, wei in earned]
    closing = _closing(burned_dc=400_000, rewards_wei=paid - stake, stake_wei=stake, payout_root=merkle.root(leaves))
    deployed.send("poster", calls.post(closing))
    assert (client.finalised(), client.posted()) == (0, 1)
    deployed.wait_until(client.ready_at_s(0))
    deployed.send("customer", calls.finalise(closing))
    assert (client.finalised(), client.payout_root()) == (1, closing.payout_root)
    assert client.settled_at_s() == client.head().time_s

    deployed.send("registrar", calls.transfer_bct(heidi, 0))
    deployed.send("heidi", calls.transfer_gpu(heidi, ivan, GPUS[0]))
    for i, (gpu, holder, wei) in enumerate(earned):
        deployed.send("customer", calls.claim(holder, [Payout(gpu, wei, merkle.proof(leaves, i))]))
        assert client.bct_balance_wei(holder) == client.claimed_wei(gpu, holder) == wei
    assert client.totals_wei() == (paid, paid - stake, paid - stake)
    assert client.dc_burned_total() == 400_000
    assert client.bct_supply_wei() == 1_000_000 * BCT - 10 * BCT + paid


def test_an_exit_is_paid_by_the_next_epoch(deployed):
    client, customer = deployed.client, deployed.evm.address("customer")
    deployed.buy_dc(BCT)
    deployed.send("customer", calls.request_exit(30_000))
    leaf = merkle.leaf(merkle.tag("fabric.exit.v1"), address_bytes(customer), 30_000)
    closing = _closing(exited_total_dc=30_000, exit_root=leaf)
    deployed.wait_until(client.epoch_end_s(0))
    deployed.send("poster", calls.post(closing))
    deployed.wait_until(client.ready_at_s(0))
    deployed.send("poster", calls.finalise(closing))
    before = client.dc_balance(customer)
    deployed.send("heidi", calls.claim_exit(customer, 30_000, []))
    assert client.dc_balance(customer) - before == client.exit_paid_dc(customer) == 30_000


def test_a_transaction_broadcast_twice_is_one(deployed):
    evm, client = deployed.evm, deployed.client
    signed = client.sign(
        evm.people["customer"], calls.transfer_bct(evm.address("ivan"), 5), client.next_nonce(evm.address("customer"))
    )
    client.broadcast(signed)
    mined = client.wait(signed.hash)
    client.broadcast(signed)
    assert client.receipt(signed.hash) == mined
    assert client.bct_balance_wei(evm.address("ivan")) == 5


def test_of_two_transactions_with_one_nonce_only_one_is_mined(deployed):
    evm, client = deployed.evm, deployed.client
    nonce = client.next_nonce(evm.address("customer"))
    first, second = (
        client.sign(evm.people["customer"], calls.transfer_bct(evm.address("heidi"), n), nonce) for n in (7, 9)
    )
    client.broadcast(first)
    client.wait(first.hash)
    client.broadcast(second)
    with pytest.raises(NotMined, match=r"look for its receipt"):
        client.wait(second.hash, timeout_s=0.05)
    assert client.bct_balance_wei(evm.address("heidi")) == 7


# Bad input


def test_another_chain_than_the_books_is_refused(deployed):
    with pytest.raises(WrongChain, match=r"serves chain 131277322940537, the address book names chain 1;"):
        ChainClient.open(deployed.evm.url, replace(deployed.book, chain_id=1))


def test_an_address_without_code_is_refused(deployed):
    empty = deployed.evm.address("ivan")
    with pytest.raises(NoContract, match=f"no code of Settlement at {empty}"):
        ChainClient.open(deployed.evm.url, replace(deployed.book, settlement=empty))


def test_a_chain_that_was_reset_under_the_client_is_named(deployed):
    gone = ChainClient(deployed.client._web3, replace(deployed.book, bct=deployed.evm.address("ivan")))
    with pytest.raises(NoContract, match=r"BCT.totalSupply.*address book"):
        gone.bct_supply_wei()


def test_an_rpc_that_is_down_is_named(deployed):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(
            ChainUnreachable, match=r"chain id: .*does not answer \(ConnectionError\); check FABRIC_CHAIN_URL"
        ):
            ChainClient.open(url, deployed.book)


@contextmanager
def _rpc(answer: bytes | None):
    """A server that gives everybody the same answer, or none at all until it ends."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if answer is None:
                ended.wait(10)
                return
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"jsonrpc":"2.0","id":0,"result":null}', "null"),
        (b'{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"too many requests"}}', "too many requests"),
        (b"<html>it works</html>", "nonsense"),
        (b'{"jsonrpc":"2.0","id":0,"result":"what"}', "nonsense"),
    ],
)
def test_an_rpc_that_answers_null_an_error_or_nonsense_is_named(deployed, answer, message):
    with _rpc(answer) as url, pytest.raises(ChainUnreachable, match=message):
        ChainClient.open(url, deployed.book)


def test_a_slow_rpc_is_named(deployed):
    with _rpc(None) as url, pytest.raises(ChainUnreachable, match=r"did not answer in time"):
        ChainClient.open(url, deployed.book, timeout_s=0.1)


def test_a_key_without_funds_is_named_with_what_it_needs(deployed):
    poor = Signer(keccak256(b"poor"))
    with pytest.raises(NoFunds, match=rf"{poor.address} has 0 wei .* may need \d+ for gas"):
        deployed.client.send(poor, calls.transfer_bct(deployed.evm.address("ivan"), 0))


def test_too_little_bct_or_allowance_is_named_with_the_amounts(deployed):
    heidi = deployed.evm.address("heidi")
    with pytest.raises(NotEnoughBct, match=rf"(?i){heidi} has a balance of 0 wei BCT and needs 3"):
        deployed.send("heidi", calls.transfer_bct(deployed.evm.address("ivan"), 3))
    with pytest.raises(NotEnoughBct, match=r"allowance of 0 wei BCT and needs 5"):
        deployed.send("heidi", calls.mint_dc(5, 0))


def test_a_halted_oracle_is_named_and_nothing_is_booked(deployed):
    deployed.send("customer", calls.approve_bct(deployed.book.data_credits))
    deployed.send("reporter", calls.report_price(2 * USD))
    assert deployed.client.oracle_halted()
    with pytest.raises(PriceUnavailable, match=r"halted.*resume"):
        deployed.send("customer", calls.mint_dc(BCT, 0))
    assert deployed.client.bct_burned_wei() == 0
    deployed.send("deployer", calls.resume_oracle())
    deployed.send("customer", calls.mint_dc(BCT, 0))
    assert deployed.client.price_and_average(deployed.client.head().time_s)[0] == 2 * USD


def test_a_stale_oracle_is_named(deployed):
    deployed._advance(3 * 3600)
    with pytest.raises(PriceUnavailable, match=r"stale"):
        deployed.client.price_and_average(deployed.client.head().time_s)


def test_a_claim_that_no_leaf_grants_is_refused_by_name(deployed):
    with pytest.raises(Reverted, match=r"WrongProof\(0x[0-9a-f]{64}\)"):
        deployed.send("heidi", calls.claim(deployed.evm.address("heidi"), [Payout(GPUS[0], 1, [])]))


def test_a_post_out_of_order_or_by_a_stranger_is_refused_by_name(deployed):
    with pytest.raises(Reverted, match=r"NotPoster"):
        deployed.send("heidi", calls.post(_closing()))
    with pytest.raises(Reverted, match=r"OutOfOrder\(0, 1\)"):
        deployed.send("poster", calls.post(_closing(1)))
