"""An EVM of one's own: py-evm behind a small JSON-RPC server on loopback, for the demo and for tests.

``python -P -m ledger.chain.evm --port 0 --fund ADDRESS`` prints one line of JSON, ``{"url", "chain_id"}``, once it
answers, and ends with its parent process. It keeps everything in memory and knows only the methods web3 needs. Blocks
come as soon as there is a transaction; their time is the clock's second, or a few seconds ahead while many come at
once. It is not a node: no peers, no unlocked accounts, no history on disk, never a record of anything.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from eth.abc import BlockAPI
from eth.exceptions import HeaderNotFound, VMError
from eth.vm.spoof import SpoofTransaction
from eth_tester import EthereumTester
from eth_tester.backends.pyevm import PyEVMBackend
from eth_tester.exceptions import ValidationError as TesterValidationError
from eth_utils.exceptions import ValidationError
from web3 import EthereumTesterProvider, Web3
from web3.types import RPCEndpoint

from fabric.wire.clock import Clock, SystemClock

FUND_WEI: Final = 10**24
IDLE_BLOCK_S: Final = 2
AHEAD_S: Final = 5
GAS_LIMIT: Final = 60_000_000
CALL_GAS: Final = 10_000_000  # below the 2^24 that Prague and later allow a transaction
NOBODY: Final = "0x" + "00" * 20
READS: Final = frozenset(
    {
        "eth_blockNumber",
        "eth_chainId",
        "eth_feeHistory",
        "eth_gasPrice",
        "eth_getBalance",
        "eth_getBlockByHash",
        "eth_getBlockByNumber",
        "eth_getCode",
        "eth_getTransactionByHash",
        "eth_getTransactionCount",
        "eth_getTransactionReceipt",
        "eth_maxPriorityFeePerGas",
        "web3_clientVersion",
    }
)

_REVERTED = 3  # what other nodes answer for a reverted call
_REFUSED = -32000
_NO_METHOD = -32601
_BAD_PARAMS = -32602
_TICK_S = 0.02


class RpcError(Exception):
    """What goes back as the ``error`` member of a JSON-RPC answer."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.answer = {"code": code, "message": message} | ({} if data is None else {"data": data})


class Chain:
    """The chain in memory: takes raw transactions, mines them, answers reads. Safe for many threads."""

    def __init__(self, funded: Iterable[str], clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: list[Any] = []
        genesis = PyEVMBackend.generate_genesis_params({"timestamp": self._now() - 1, "gas_limit": GAS_LIMIT})
        account = {"balance": FUND_WEI, "nonce": 0, "code": b"", "storage": {}}
        state = {_bytes(address): account for address in funded}
        self._backend = PyEVMBackend(genesis_parameters=genesis, genesis_state=state)
        self._chain: Any = self._backend.chain
        provider = EthereumTesterProvider(EthereumTester(self._backend, auto_mine_transactions=False))
        web3 = Web3(provider, middleware=[])
        self._read: Callable[[RPCEndpoint, Any], Any] = provider.request_func(web3, web3.middleware_onion)
        self._own: dict[str, Callable[..., Any]] = {
            "eth_call": lambda call, *_: "0x" + self._execute(call)[0].hex(),
            "eth_estimateGas": lambda call, *_: hex(self._execute(call)[1] * 5 // 4),
            "eth_getLogs": self._logs,
            "eth_getTransactionCount": self._count,
            "eth_sendRawTransaction": lambda raw: self._send_raw(_bytes(raw)),
            "net_version": lambda: str(self.chain_id),
        }

    @property
    def chain_id(self) -> int:
        return self._chain.chain_id

    def answer(self, method: str, params: list[Any]) -> Any:
        """The result of one JSON-RPC call, ready for JSON.

        Raises:
            RpcError: the call was reverted or refused, or there is no such method.
        """
        with self._lock:
            own = self._own.get(method)
            if own is not None:
                return own(*params)
            if method not in READS:
                raise RpcError(_NO_METHOD, f"the method {method} does not exist here")
            return _jsonable(self._ask(method, params))

    def mine(self) -> bool:
        """Mines a block if it is time for one: transactions wait, or the last block is two seconds old."""
        with self._lock:
            head, now = self._chain.get_canonical_head().timestamp, self._now()
            if head + 1 > now + AHEAD_S or not (self._waiting or now - head >= IDLE_BLOCK_S):
                return False
            self._chain.header = self._chain.header.copy(timestamp=max(now, head + 1))
            waiting, self._waiting = self._waiting, []
            for transaction in waiting:
                with contextlib.suppress(ValidationError):  # it was valid when it came; what went before changed that
                    self._chain.apply_transaction(transaction)
            self._backend.mine_blocks()
            return True

    def _now(self) -> int:
        return self._clock.now_ms() // 1000

    def _ask(self, method: str, params: list[Any]) -> Any:
        try:
            answer = self._read(RPCEndpoint(method), params)
        except (ValidationError, HeaderNotFound, TesterValidationError) as failure:
            raise RpcError(_REFUSED, str(failure)) from None
        if "error" in answer:
            raise RpcError(_REFUSED, str(answer["error"]))
        return answer["result"]

    def _send_raw(self, raw: bytes) -> str:
        transaction = self._chain.get_transaction_builder().decode(raw)
        sender, expected = transaction.sender, self._next_nonce(transaction.sender)
        if transaction.nonce != expected:
            relation = "too low" if transaction.nonce < expected else "too high"
            raise RpcError(_REFUSED, f"nonce {relation}: next nonce {expected}, tx nonce {transaction.nonce}")
        price = getattr(transaction, "max_fee_per_gas", None) or transaction.gas_price
        balance = self._backend.get_balance(sender)
        if balance < transaction.gas * price + transaction.value:
            raise RpcError(_REFUSED, f"insufficient funds for gas * price + value: balance {balance}")
        self._waiting.append(transaction)
        return "0x" + transaction.hash.hex()

    def _execute(self, call: dict[str, Any]) -> tuple[bytes, int]:
        """Output and gas of ``call`` on the head's state, which stays as it is; its sender needs no funds."""
        head = self._chain.get_canonical_head()
        sender = _bytes(call.get("from", NOBODY))
        unsigned = self._chain.get_transaction_builder().create_unsigned_transaction(
            nonce=self._backend.get_nonce(sender),
            gas_price=head.base_fee_per_gas,
            gas=int(call.get("gas", hex(CALL_GAS)), 16),
            to=_bytes(call.get("to", "0x")),
            value=int(call.get("value", "0x0"), 16),
            data=_bytes(call.get("data", call.get("input", "0x"))),
        )
        state = self._chain.get_vm(at_header=head).state
        state.set_balance(sender, state.get_balance(sender) + FUND_WEI)
        computation = state.apply_transaction(SpoofTransaction(unsigned, from_=sender))
        if computation.is_error:
            raise _reverted(computation.error)
        return computation.output, unsigned.intrinsic_gas + computation.get_gas_used()

    def _count(self, address: str, block: str = "latest") -> str:
        if block == "pending":
            return hex(self._next_nonce(_bytes(address)))
        return hex(self._backend.get_nonce(_bytes(address)))

    def _next_nonce(self, sender: bytes) -> int:
        return self._backend.get_nonce(sender) + sum(t.sender == sender for t in self._waiting)

    def _logs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        return [log for block in self._blocks(wanted) for log in _logs_of(block, self._chain, wanted)]

    def _blocks(self, wanted: dict[str, Any]) -> Iterable[BlockAPI]:
        if "blockHash" in wanted:
            block_hash = _bytes(wanted["blockHash"])
            try:
                return [self._chain.get_block_by_hash(block_hash)]
            except HeaderNotFound:
                raise RpcError(_REFUSED, f"unknown block {wanted['blockHash']}") from None
        first, last = (self._number(wanted.get(key, "latest")) for key in ("fromBlock", "toBlock"))
        return map(self._chain.get_canonical_block_by_number, range(first, last + 1))

    def _number(self, block: str) -> int:
        head = self._chain.get_canonical_head().block_number
        if block == "earliest":
            return 0
        return min(int(block, 16), head) if block.startswith("0x") else head


def serve(chain: Chain, port: int) -> ThreadingHTTPServer:
    """The HTTP server on loopback, bound but not yet serving; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet, or each answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            body = json.dumps(_reply(chain, self.rfile.read(length))).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Requests are not logged: they are many, and say nothing that the chain does not."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Runs until the parent process is gone."""
    parser = argparse.ArgumentParser(prog="python -P -m ledger.chain.evm", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default 0: a free one)")
    parser.add_argument("--fund", action="append", default=[], metavar="ADDRESS", help="gets a million ETH; repeatable")
    arguments = parser.parse_args()
    chain = Chain(arguments.fund, SystemClock())
    server = serve(chain, arguments.port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    sys.stdout.write(json.dumps({"url": url, "chain_id": chain.chain_id}) + "\n")
    sys.stdout.flush()
    parent = os.getppid()
    while os.getppid() == parent:
        chain.mine()
        time.sleep(_TICK_S)


def _reply(chain: Chain, body: bytes) -> dict[str, Any]:
    request = json.loads(body)
    reply = {"jsonrpc": "2.0", "id": request.get("id")}
    try:
        return reply | {"result": chain.answer(request["method"], request.get("params", []))}
    except RpcError as error:
        return reply | {"error": error.answer}
    except (ArithmeticError, LookupError, TypeError, ValueError, ValidationError) as error:
        return reply | {"error": {"code": _BAD_PARAMS, "message": f"{request.get('method')}: {error!r}"}}


def _reverted(cause: VMError) -> RpcError:
    """Other failures than a revert (out of gas, …) carry text instead of the revert data."""
    reason = cause.args[0] if cause.args else ""
    if isinstance(reason, bytes):
        return RpcError(_REVERTED, "execution reverted", "0x" + reason.hex())
    return RpcError(_REVERTED, f"execution failed: {reason}")


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.removeprefix("0x"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, float):
        return value
    return [_jsonable(item) for item in value]


def _logs_of(block: BlockAPI, chain: Any, wanted: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if not block.transactions:
        return
    index = 0
    receipts = block.get_receipts(chain.chaindb)
    for position, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        for log in receipt.logs:
            entry = {
                "address": "0x" + log.address.hex(),
                "topics": [f"0x{topic:064x}" for topic in log.topics],
                "data": "0x" + log.data.hex(),
                "blockNumber": hex(block.number),
                "blockHash": "0x" + block.hash.hex(),
                "transactionHash": "0x" + transaction.hash.hex(),
                "transactionIndex": hex(position),
                "logIndex": hex(index),
                "removed": False,
            }
            index += 1
            if _matches(entry, wanted):
                yield entry


def _matches(entry: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if wanted.get("address") and entry["address"] not in _lower(wanted["address"]):
        return False
    topics = wanted.get("topics") or []
    return len(topics) <= len(entry["topics"]) and all(
        want is None or have in _lower(want) for have, want in zip(entry["topics"], topics, strict=False)
    )


def _lower(wanted: str | list[str]) -> list[str]:
    return [item.lower() for item in ([wanted] if isinstance(wanted, str) else wanted)]


if __name__ == "__main__":
    main()
