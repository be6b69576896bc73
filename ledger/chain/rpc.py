"""One connection to a chain's JSON-RPC: every failure becomes an error that says what to do. It keeps no state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import collapse_if_tuple, function_abi_to_4byte_selector
from web3 import HTTPProvider, Web3
from web3.exceptions import (
    BadFunctionCallOutput,
    BadResponseFormat,
    ContractLogicError,
    TransactionNotFound,
    Web3Exception,
    Web3RPCError,
)

from ledger.chain.errors import (
    ChainError,
    ChainUnreachable,
    NoContract,
    NoFunds,
    NotEnoughBct,
    PriceUnavailable,
    Reverted,
)
from ledger.contracts import NAMES, artifact

Answer = TypeVar("Answer")

_ALREADY_SENT = ("already known", "already imported", "nonce too low", "known transaction")
_NO_FUNDS = "insufficient funds"
_NO_BCT = frozenset({"ERC20InsufficientBalance", "ERC20InsufficientAllowance"})


def connect(url: str, timeout_s: float = 10.0) -> Web3:
    """A connection without retries of its own: whoever sends decides when to send again."""
    provider = HTTPProvider(url, request_kwargs={"timeout": timeout_s}, exception_retry_configuration=None)
    return Web3(provider)


def ask(what: str, question: Callable[[], Answer]) -> Answer:
    """The answer to ``question``; a null where something must be is `ChainUnreachable`.

    Raises:
        ChainError: the kind that says what to do; ``what`` names the question in its message.
    """
    with translated(what):
        answer = question()
    if answer is None:
        raise ChainUnreachable(f"{what}: the chain's RPC answered null; it may be behind, try again")
    return answer


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns what web3 and the network raise into errors of ours."""
    try:
        yield
    except requests.Timeout:
        raise ChainUnreachable(
            f"{what}: the chain's RPC did not answer in time; try again, or use another one"
        ) from None
    except requests.RequestException as cause:
        raise ChainUnreachable(
            f"{what}: the chain's RPC does not answer ({type(cause).__name__}); check FABRIC_CHAIN_URL and that it runs"
        ) from None
    except ContractLogicError as cause:
        raise refusal(cause.data, str(cause.message)) from None
    except BadFunctionCallOutput:
        raise NoContract(f"{what}: the address answers like an empty one; check the address book") from None
    except Web3RPCError as cause:
        raise _rpc_error(what, cause) from None
    except (BadResponseFormat, ValueError) as cause:
        raise ChainUnreachable(f"{what}: the chain's RPC answered nonsense ({cause}); check FABRIC_CHAIN_URL") from None
    except Web3Exception as cause:
        raise ChainUnreachable(f"{what}: {cause}") from None


def refusal(data: Any, text: str) -> ChainError:
    """What a contract's revert data means to whoever sent the call."""
    name, arguments = _decoded(data, text)
    if name == "OracleHalted":
        return PriceUnavailable(
            "the price oracle is halted by a move beyond its step bound; its owner must look and resume it"
        )
    if name == "NoPrice":
        return PriceUnavailable(
            f"the price oracle is stale (last price at second {arguments[0]}); reporters must report"
        )
    if name in _NO_BCT:
        account, have, need = arguments
        kind = "an allowance" if name == "ERC20InsufficientAllowance" else "a balance"
        return NotEnoughBct(f"{account} has {kind} of {have} wei BCT and needs {need}; get or approve more")
    return Reverted(name, arguments)


def sent_before(error: Web3RPCError) -> bool:
    """Whether a node refuses a raw transaction only because it, or one with its nonce, came before."""
    return any(text in str(error).lower() for text in _ALREADY_SENT)


def missing_is_none(question: Callable[[], Answer]) -> Answer | None:
    """The answer, or None where web3 says that there is no such transaction."""
    try:
        return question()
    except TransactionNotFound:
        return None


def _rpc_error(what: str, cause: Web3RPCError) -> ChainError:
    if _NO_FUNDS in str(cause).lower():
        return NoFunds(f"{what}: the key cannot pay for gas; send it some of the chain's own coin ({cause.message})")
    return ChainUnreachable(f"{what}: the chain's RPC refused: {cause.message}")


def _decoded(data: Any, text: str) -> tuple[str, tuple[Any, ...]]:
    raw = bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) and data.startswith("0x") else b""
    entry = _ERRORS.get(raw[:4])
    if entry is None:
        return text, ()
    try:
        return entry["name"], decode([collapse_if_tuple(item) for item in entry["inputs"]], raw[4:])
    except DecodingError:
        return entry["name"], ()


def _all_errors() -> dict[bytes, dict[str, Any]]:
    entries = (entry for name in NAMES for entry in artifact(name)[0] if entry["type"] == "error")
    return {function_abi_to_4byte_selector(entry | {"type": "function"}): entry for entry in entries}  # type: ignore[arg-type]


_ERRORS = _all_errors()
