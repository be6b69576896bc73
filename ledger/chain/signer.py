"""A private key that signs and never shows itself: not in a log, a repr, a pickle or an error."""

import json
from pathlib import Path
from typing import Any, NoReturn

from eth_account import Account
from pydantic import SecretStr

from ledger.chain.errors import BadKey
from ledger.chain.settings import ChainSettings


class Signer:
    """Signs transactions for one address."""

    def __init__(self, private_key: bytes) -> None:
        self._account: Any = Account.from_key(private_key)
        self.address: str = self._account.address

    @classmethod
    def from_settings(cls, settings: ChainSettings) -> "Signer":
        """The keystore's key, else the key of the environment.

        Raises:
            BadKey: neither is set, or what is set cannot be used.
        """
        if settings.keystore is not None:
            if settings.keystore_password is None:
                raise BadKey(f"the keystore {settings.keystore} needs FABRIC_CHAIN_KEYSTORE_PASSWORD")
            return cls.from_keystore(settings.keystore, settings.keystore_password)
        if settings.key is None:
            raise BadKey("no key to sign with; set FABRIC_CHAIN_KEYSTORE and its password, or FABRIC_CHAIN_KEY")
        return cls.from_hex(settings.key)

    @classmethod
    def from_keystore(cls, path: Path, password: SecretStr) -> "Signer":
        """Opens an encrypted key file.

        Raises:
            BadKey: no such file, not a keystore, or a wrong password.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as cause:
            raise BadKey(f"the keystore {path} cannot be read: {type(cause).__name__}") from None
        try:
            return cls(bytes(Account.decrypt(content, password.get_secret_value())))
        except (ValueError, TypeError, KeyError):
            raise BadKey(f"the keystore {path} does not open: a wrong password, or not a keystore") from None

    @classmethod
    def from_hex(cls, key: SecretStr) -> "Signer":
        """A key as 64 hexadecimal digits, with or without 0x.

        Raises:
            BadKey: anything else; the message does not repeat it.
        """
        try:
            raw = bytes.fromhex(key.get_secret_value().removeprefix("0x"))
            return cls(raw)
        except ValueError:
            raise BadKey("the private key is not 0x and 64 hexadecimal digits of a valid key") from None

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, bytes]:
        """The raw signed transaction and its hash."""
        signed = self._account.sign_transaction(transaction)
        return bytes(signed.raw_transaction), bytes(signed.hash)

    def __repr__(self) -> str:
        return f"Signer({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signer does not travel: give the other process its own key")
