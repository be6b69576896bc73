"""The product's own EVM: blocks and time, refusals like other nodes', and an end with its parent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from fabric.wire.clock import ManualClock
from fabric.wire.hashing import keccak256
from ledger.chain.evm import AHEAD_S, FUND_WEI, Chain, RpcError
from ledger.chain.rpc import connect
from ledger.contracts import artifact

ROOT = Path(__file__).parents[3]
KEY = keccak256(b"somebody")
SOMEBODY = Account.from_key(KEY).address
FEES = {"gas": 21_000, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**9}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000_000)


@pytest.fixture
def chain(clock) -> Chain:
    return Chain([SOMEBODY], clock)


def _raw(chain: Chain, nonce: int, key: bytes = KEY, **members) -> str:
    bare = {"chainId": chain.chain_id, "nonce": nonce, "to": "0x" + "11" * 20, "value": 1, **FEES, **members}
    return "0x" + Account.sign_transaction(bare, key).raw_transaction.hex()


def _time(chain: Chain) -> int:
    return int(chain.answer("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)


def test_the_named_accounts_have_funds_and_nobody_else(chain):
    assert int(chain.answer("eth_getBalance", [SOMEBODY, "latest"]), 16) == FUND_WEI
    assert chain.answer("eth_getBalance", ["0x" + "11" * 20, "latest"]) == "0x0"


def test_a_transaction_waits_for_the_next_block_and_has_no_receipt_before(chain):
    sent = chain.answer("eth_sendRawTransaction", [_raw(chain, 0)])
    assert chain.answer("eth_getTransactionReceipt", [sent]) is None
    assert chain.answer("eth_getTransactionCount", [SOMEBODY, "latest"]) == "0x0"
    assert chain.answer("eth_getTransactionCount", [SOMEBODY, "pending"]) == "0x1"
    assert chain.mine()
    assert chain.answer("eth_getTransactionReceipt", [sent])["status"] == "0x1"
    assert chain.answer("eth_getTransactionCount", [SOMEBODY, "latest"]) == "0x1"


def test_a_blocks_time_is_the_clocks_and_a_burst_runs_only_a_little_ahead(chain, clock):
    clock.advance(100_000)
    assert chain.mine()
    assert _time(chain) == clock.now_ms() // 1000
    mined = 0
    for nonce in range(AHEAD_S + 3):
        chain.answer("eth_sendRawTransaction", [_raw(chain, nonce)])
        mined += chain.mine()
    assert mined == AHEAD_S
    assert _time(chain) == clock.now_ms() // 1000 + AHEAD_S
    clock.advance(1000)
    assert chain.mine()
    assert chain.answer("eth_getTransactionCount", [SOMEBODY, "latest"]) == hex(AHEAD_S + 3)


def test_without_transactions_a_block_comes_every_two_seconds(chain, clock):
    clock.advance(1000)
    chain.mine()
    clock.advance(1000)
    assert not chain.mine()
    clock.advance(1000)
    assert chain.mine()


@pytest.mark.parametrize(("nonce", "message"), [(1, "nonce too high"), (0, "nonce too low")])
def test_a_transaction_out_of_turn_is_refused(chain, nonce, message):
    if nonce == 0:
        chain.answer("eth_sendRawTransaction", [_raw(chain, 0)])
    with pytest.raises(RpcError, match=message):
        chain.answer("eth_sendRawTransaction", [_raw(chain, nonce)])


def test_a_transaction_without_funds_is_refused(chain):
    with pytest.raises(RpcError, match=r"insufficient funds"):
        chain.answer("eth_sendRawTransaction", [_raw(chain, 0, key=keccak256(b"poor"))])


def test_an_unknown_method_and_an_unknown_block_are_refused(chain):
    with pytest.raises(RpcError, match=r"eth_accounts does not exist here"):
        chain.answer("eth_accounts", [])
    with pytest.raises(RpcError, match=r"unknown block"):
        chain.answer("eth_getLogs", [{"blockHash": "0x" + "22" * 32}])


def test_logs_are_found_by_address_topic_range_and_block(chain):
    from eth_abi.abi import encode

    code = artifact("BCT")[1] + encode(["address", "uint256", "address"], [SOMEBODY, 5, SOMEBODY])
    sent = chain.answer("eth_sendRawTransaction", [_raw(chain, 0, to=b"", value=0, data=code, gas=3_000_000)])
    chain.mine()
    mined = chain.answer("eth_getTransactionReceipt", [sent])
    transfer = "0x" + keccak256(b"Transfer(address,address,uint256)").hex()
    log = chain.answer("eth_getLogs", [{"blockHash": mined["blockHash"]}])
    assert [(entry["topics"][0], int(entry["data"], 16)) for entry in log] == [(transfer, 5)]
    everywhere = {"fromBlock": "0x0", "toBlock": "latest"}
    address = mined["contractAddress"]
    assert chain.answer("eth_getLogs", [everywhere | {"address": address, "topics": [[transfer]]}]) == log
    assert chain.answer("eth_getLogs", [everywhere | {"address": [SOMEBODY]}]) == []
    assert chain.answer("eth_getLogs", [everywhere | {"topics": [None, "0x" + "33" * 32]}]) == []
    assert chain.answer("eth_getLogs", [{"fromBlock": "0x0", "toBlock": "0x0"}]) == []


def test_a_reverted_call_answers_with_its_data_and_changes_nothing(chain):
    from eth_abi.abi import encode

    code = artifact("BCT")[1] + encode(["address", "uint256", "address"], [SOMEBODY, 5, SOMEBODY])
    sent = chain.answer("eth_sendRawTransaction", [_raw(chain, 0, to=b"", value=0, data=code, gas=3_000_000)])
    chain.mine()
    address = chain.answer("eth_getTransactionReceipt", [sent])["contractAddress"]
    transfer = keccak256(b"transfer(address,uint256)")[:4]

    def move(amount: int) -> dict[str, str]:
        data = transfer + encode(["address", "uint256"], ["0x" + "44" * 20, amount])
        return {"from": SOMEBODY, "to": address, "data": "0x" + data.hex()}

    assert int(chain.answer("eth_call", [move(5), "latest"]), 16) == 1
    assert int(chain.answer("eth_call", [move(5), "latest"]), 16) == 1
    assert 21_000 < int(chain.answer("eth_estimateGas", [move(5)]), 16) < 100_000
    with pytest.raises(RpcError, match=r"execution reverted") as refused:
        chain.answer("eth_call", [move(6), "latest"])
    wanted = keccak256(b"ERC20InsufficientBalance(address,uint256,uint256)")[:4]
    assert refused.value.answer["code"] == 3
    assert refused.value.answer["data"].startswith("0x" + wanted.hex())


@pytest.mark.chain
def test_the_process_says_where_it_answers_and_ends_with_its_parent():
    """The EVM's standard output is the test's pipe: it closes when the EVM ends, and not before."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, SOMEBODY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with parent:
        assert parent.stdout is not None
        said = json.loads(parent.stdout.readline())
        web3 = connect(said["url"])
        assert web3.eth.chain_id == said["chain_id"]
        assert web3.eth.get_balance(SOMEBODY) == FUND_WEI
        parent.kill()
        assert parent.stdout.read() == ""
    assert not web3.is_connected()


_PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-P", "-m", "ledger.chain.evm", "--fund", sys.argv[1]])
sys.stdin.read()
"""
