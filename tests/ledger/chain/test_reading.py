"""What a node may answer while a block is read, and what becomes of it."""

from typing import Any

import pytest
from web3 import Web3
from web3.providers import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from ledger.chain.book import AddressBook
from ledger.chain.errors import ChainUnreachable
from ledger.chain.following import Block
from ledger.chain.reading import BlockReader

CREDITS = "0x" + "2" * 40
BOOK = AddressBook(1337, 1, "0x" + "1" * 40, "0x" + "5" * 40, CREDITS, "0x" + "3" * 40, "0x" + "4" * 40)
HASH, PARENT = bytes([7]) * 32, bytes([6]) * 32
HEADER = {
    "number": "0x7", "hash": "0x" + HASH.hex(), "parentHash": "0x" + PARENT.hex(), "timestamp": "0x64",
}  # fmt: skip
BLOCK = Block(7, HASH, PARENT, 100)
LOG = {
    "address": CREDITS, "topics": ["0x" + "ab" * 32], "data": "0x01", "blockNumber": "0x7", "logIndex": "0x2",
    "blockHash": "0x" + HASH.hex(), "transactionHash": "0x" + "cd" * 32, "transactionIndex": "0x0", "removed": False,
}  # fmt: skip


class Node(BaseProvider):
    """Answers each method with what it was given, in order; the last answer is given again."""

    def __init__(self, **answers: list[Any]) -> None:
        super().__init__()
        self.answers = answers

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        left = self.answers[method]
        return {"jsonrpc": "2.0", "id": 1, "result": left.pop(0) if len(left) > 1 else left[0]}


def reader(**answers: list[Any]) -> BlockReader:
    return BlockReader(Web3(Node(**answers)), BOOK)


def test_a_block_is_what_the_chain_has_at_its_height_and_none_where_it_has_none():
    assert reader(eth_getBlockByNumber=[HEADER]).block(7) == BLOCK
    assert reader(eth_getBlockByNumber=[None]).block(7) is None


def test_logs_are_of_exactly_this_block_in_its_order():
    logs = reader(eth_getBlockByNumber=[HEADER], eth_getLogs=[[LOG, LOG | {"logIndex": "0x1"}]]).logs(BLOCK)
    assert [(one.contract, one.log_index, one.data) for one in logs] == [
        ("DataCredits", 1, b"\x01"),
        ("DataCredits", 2, b"\x01"),
    ]
    assert logs[0].topics == (bytes([0xAB]) * 32,)
    assert logs[0].tx_hash == bytes([0xCD]) * 32


@pytest.mark.parametrize(
    ("headers", "logs"),
    [
        ([HEADER], None),
        ([HEADER], [LOG | {"blockHash": "0x" + "09" * 32}]),
        ([HEADER], [LOG | {"removed": True}]),
        ([None], [LOG]),
        ([HEADER | {"hash": "0x" + "09" * 32}], []),
    ],
    ids=["null", "another block's", "removed", "left the chain", "replaced"],
)
def test_anything_else_is_read_again(headers, logs):
    with pytest.raises(ChainUnreachable):
        reader(eth_getBlockByNumber=headers, eth_getLogs=[logs]).logs(BLOCK)
