"""Equivocation: one operator's two different signed receipts under one number of one lease, as a proof of its own.

It holds the two signed bodies and the keys that signed them, no task list and nothing of the control plane, so whoever
has it can check it offline and for ever. Which keys are the operator's is said where receipts are handed out.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric.wire.receipts import Receipt, ReceiptError, SignedReceipt

_PLACE = ("fabric_id", "operator", "lease", "generation", "seq")


@dataclass(frozen=True, slots=True)
class Statement:
    """One signed body and the session key (Ed25519 public key) that signed it."""

    body: bytes
    signature: bytes
    key: bytes

    @classmethod
    def of(cls, signed: SignedReceipt, key: bytes) -> "Statement":
        return cls(signed.body, signed.signature, key)

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "Statement":
        body, signature = (base64.b64decode(members[name], validate=True) for name in ("body", "signature"))
        return cls(body, signature, bytes.fromhex(members["session_key"]))

    def to_json(self) -> dict[str, str]:
        return {
            "body": base64.b64encode(self.body).decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "session_key": self.key.hex(),
        }

    def verify(self) -> Receipt:
        """Raises ReceiptError unless `key` signed the body."""
        return SignedReceipt(self.body, self.signature).verify_body(self.key)


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two statements about the same place in the same chain."""

    first: Statement
    second: Statement

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "Equivocation":
        """Raises ReceiptError when it is no such thing; checks no signature."""
        try:
            return cls(Statement.from_json(members["first"]), Statement.from_json(members["second"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ReceiptError(f"not a proof of equivocation: {type(error).__name__}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first.to_json(), "second": self.second.to_json()}

    def verify(self) -> tuple[Receipt, Receipt]:
        """The two statements, if they prove a lie.

        Raises:
            ReceiptError: a signature is wrong, they say the same, or they speak of different places.
        """
        one, two = self.first.verify(), self.second.verify()
        for name in _PLACE:
            if getattr(one, name) != getattr(two, name):
                raise ReceiptError(
                    f"no equivocation: the two receipts differ in {name}: {getattr(one, name)}, {getattr(two, name)}"
                )
        if one.body == two.body:
            raise ReceiptError(f"no equivocation: receipt {one.seq} of {one.lease} stands there twice, unchanged")
        return one, two
