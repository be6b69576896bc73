"""The operator's wallet, opened on their own machine to sign a delegation: a keystore file, or a key in hex.

The key is used and forgotten; it is written nowhere. Needs `eth-account` (installed with `berkeley-compute[chain]`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount


class WalletError(ValueError):
    """A wallet that cannot be opened; says why and what would work."""


class Signer(Protocol):
    """Whatever signs for the operator: an unlocked wallet, or one in a browser."""

    def sign(self, typed_data: dict[str, Any]) -> bytes:
        """The 65-byte signature of an EIP-712 message."""
        ...


@dataclass(frozen=True)
class Wallet:
    """An unlocked wallet; its text shows the address alone."""

    account: "LocalAccount"

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    @property
    def address(self) -> str:
        """The address with its checksum (EIP-55)."""
        return self.account.address

    def sign(self, typed_data: dict[str, Any]) -> bytes:
        """The 65-byte signature of an EIP-712 message."""
        return bytes(self.account.sign_typed_data(full_message=typed_data).signature)


def open_keystore(path: Path, password: str) -> Wallet:
    """The wallet in a keystore file (Web3 Secret Storage, version 3).

    Raises:
        WalletError: no such file, not a keystore, or the wrong password.
    """
    try:
        keystore = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise WalletError(f"cannot read the keystore {path}: {error.strerror}") from None
    except ValueError:
        raise WalletError(f"{path} is not a keystore: it is not JSON") from None
    try:
        return from_key(_eth_account().decrypt(keystore, password))
    except (ValueError, KeyError, TypeError) as error:
        raise WalletError(f"the keystore {path} does not open: {error}") from None


def from_key(key: str | bytes) -> Wallet:
    """The wallet of a private key of 32 bytes (hex, or raw).

    Raises:
        WalletError: not a private key; the message does not repeat it.
    """
    account = _eth_account()
    try:
        return Wallet(account.from_key(key))
    except Exception:  # noqa: BLE001 - classes of three packages, whose texts may hold the key
        raise WalletError("that is not a private key; give 64 hex digits") from None


def signer_of(typed_data: dict[str, Any], signature: bytes) -> str:
    """The address (EIP-55) whose signature of an EIP-712 message this is; empty for bytes that are none."""
    account = _eth_account()
    from eth_account.messages import encode_typed_data

    try:
        return str(account.recover_message(encode_typed_data(full_message=typed_data), signature=signature))
    except Exception:  # noqa: BLE001 - classes of three packages; bytes that are no signature are nobody's
        return ""


def _eth_account() -> Any:
    try:
        from eth_account import Account
    except ImportError:
        raise WalletError("eth-account is not installed; pip install 'berkeley-compute[chain]'") from None
    return Account
