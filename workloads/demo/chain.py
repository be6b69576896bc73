"""The demo's own chain: a process with JSON-RPC on loopback, the contracts on it, and a few wallets.

What people would do with their wallets is done here, with web3 and the contracts' public functions; what an operator of
the fabric does, with `fabric chain`. Prices and people are made up, amounts and transactions are not.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.grammar import parse
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.crypto import keccak
from web3 import Web3

from workloads.demo.command_line import run_fabric

PEOPLE = ("house", "settler", "customer", "Heidi", "Ivan")
"""`house` deploys, reports the price and registers GPUs; `Heidi` and `Ivan` own them."""

GENESIS_BCT = 1_000_000
WINDOW_S = 1
MINED_S = 30


class Chain:
    """A chain and its contracts; ends with the demo."""

    def __init__(self, folder: Path, *, epoch_s: int) -> None:
        self._wallets: dict[str, Any] = {name: Account.create() for name in PEOPLE}
        self._book = folder / "contracts.json"
        self.gas: dict[str, int] = {}
        funded = [word for name in PEOPLE for word in ("--fund", self.address(name))]
        command = [sys.executable, "-P", "-m", "ledger.chain.evm", *funded]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert self._process.stdout is not None
            self.url: str = json.loads(self._process.stdout.readline())["url"]
            self._web3 = Web3(Web3.HTTPProvider(self.url))
            self._deploy(epoch_s)
        except BaseException:
            self.close()
            raise
        self._contracts: dict[str, Any] = json.loads(self._book.read_text())

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def environ(self, name: str) -> dict[str, str]:
        """What a process of that person has to know."""
        return {
            "FABRIC_CHAIN_URL": self.url,
            "FABRIC_CHAIN_ADDRESSES": str(self._book),
            "FABRIC_CHAIN_KEY": "0x" + bytes(self._wallets[name].key).hex(),
            "FABRIC_CHAIN_CONFIRMATIONS": "1",
        }

    def address(self, name: str) -> str:
        return self._wallets[name].address

    def person(self, address: str) -> str:
        """Whose address it is; itself when it is nobody's of the demo."""
        return next((name for name in PEOPLE if self.address(name).lower() == address.lower()), address)

    def contract(self, name: str) -> str:
        """Where a contract lies, by its name in the address book."""
        return self._contracts[name]

    def sign_text(self, name: str, text: str) -> str:
        return "0x" + bytes(self._wallets[name].sign_message(encode_defunct(text=text)).signature).hex()

    def send(self, name: str, contract: str, function: str, *arguments: Any) -> Mapping[str, Any]:
        """Have a wallet call a function, such as ``deposit(uint256)``; the receipt, once it is mined.

        Raises:
            RuntimeError: the contract refused.
        """
        wallet, to = self._wallets[name], self._contracts[contract]
        call: Any = {"from": wallet.address, "to": to, "data": _call_data(function, arguments)}
        fee = 2 * self._web3.eth.get_block("latest").get("baseFeePerGas", 0) + self._web3.eth.max_priority_fee
        gas = self._web3.eth.estimate_gas(call)
        fees = {"gas": gas, "maxFeePerGas": fee, "maxPriorityFeePerGas": self._web3.eth.max_priority_fee}
        nonce = self._web3.eth.get_transaction_count(wallet.address, "pending")
        signed = wallet.sign_transaction(call | fees | {"nonce": nonce, "chainId": self._web3.eth.chain_id, "value": 0})
        sent = self._web3.eth.send_raw_transaction(signed.raw_transaction)
        mined = self._web3.eth.wait_for_transaction_receipt(sent, timeout=MINED_S, poll_latency=0.05)
        if not mined["status"]:
            raise RuntimeError(f"{contract} refused {function}")
        self.gas[_name(function)] = mined["gasUsed"]
        return mined

    def read(self, contract: str, function: str, answer: str, *arguments: Any) -> Any:
        """What a function without effect answers, of one type such as ``uint256``."""
        call: Any = {"to": self._contracts[contract], "data": _call_data(function, arguments)}
        return decode([answer], bytes(self._web3.eth.call(call)))[0]

    def gas_of(self, event: str) -> list[int]:
        """Gas of each transaction in which Settlement said this, such as ``Finalised(uint256,…)``; the settler's."""
        wanted: Any = {
            "address": self._contracts["settlement"],
            "topics": ["0x" + keccak(text=event).hex()],
            "fromBlock": self._contracts["start_block"],
        }
        logs = self._web3.eth.get_logs(wanted)
        return [self._web3.eth.get_transaction_receipt(log["transactionHash"])["gasUsed"] for log in logs]

    def _deploy(self, epoch_s: int) -> None:
        roles = {
            "--genesis-holder": self.address("customer"),
            "--poster": self.address("settler"),
            "--out": str(self._book),
            "--genesis-bct": str(GENESIS_BCT),
            "--epoch-s": str(epoch_s),
            "--window-s": str(WINDOW_S),
        }
        run_fabric("chain", "deploy", *(word for pair in roles.items() for word in pair), environ=self.environ("house"))


def _call_data(function: str, arguments: tuple[Any, ...]) -> str:
    inputs = function[function.index("(") :]
    kinds = () if inputs == "()" else getattr(parse(inputs), "components", ())
    types = [kind.to_type_str() for kind in kinds]
    return "0x" + (keccak(text=function)[:4] + encode(types, arguments)).hex()


def _name(function: str) -> str:
    return function[: function.index("(")]
