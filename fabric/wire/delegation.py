"""Delegations: how an operator's wallet lets a session key act for it, as EIP-712 typed data.

The wallet signs on the operator's own machine (a keystore, or any wallet that knows `eth_signTypedData_v4`); the
session key goes to the head of the cluster, the wallet never does. A delegation is bound to one fabric (its chain id,
or its random id), one operator, one key and one expiry, so that it opens nothing else. Signing and recovering need an
Ethereum library and happen at the edges; this module only says what is signed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DOMAIN = {"name": "Berkeley Compute", "version": "1"}
_DOMAIN_FIELDS = [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}]
_MEMBERS = frozenset({"fabric", "operator", "session_key", "issued_ms", "expires_ms"})
_KEY_BYTES = 32


class DelegationError(ValueError):
    """A delegation that is not well formed; says which member and what it should be."""


@dataclass(frozen=True, slots=True)
class Delegation:
    """What the wallet states. Times are Unix time in ms; `session_key` is an Ed25519 public key of 32 bytes."""

    fabric: str
    operator: str
    session_key: bytes
    issued_ms: int
    expires_ms: int

    def __post_init__(self) -> None:
        if len(self.session_key) != _KEY_BYTES:
            raise DelegationError(f"session_key has {len(self.session_key)} bytes; an Ed25519 key has {_KEY_BYTES}")
        if not 0 <= self.issued_ms < self.expires_ms < 1 << 63:
            raise DelegationError(f"issued_ms {self.issued_ms} must come before expires_ms {self.expires_ms}")

    def typed_data(self) -> dict[str, Any]:
        """The EIP-712 message, in the form that `eth_signTypedData_v4` takes."""
        fields = [
            {"name": "fabric", "type": "string"},
            {"name": "operator", "type": "string"},
            {"name": "sessionKey", "type": "bytes32"},
            {"name": "issuedMs", "type": "uint64"},
            {"name": "expiresMs", "type": "uint64"},
        ]
        message = {
            "fabric": self.fabric,
            "operator": self.operator,
            "sessionKey": "0x" + self.session_key.hex(),
            "issuedMs": self.issued_ms,
            "expiresMs": self.expires_ms,
        }
        return _typed("Delegation", fields, message)

    def to_json(self) -> dict[str, Any]:
        """The members as JSON carries them; the key in hex."""
        return {
            "fabric": self.fabric,
            "operator": self.operator,
            "session_key": self.session_key.hex(),
            "issued_ms": self.issued_ms,
            "expires_ms": self.expires_ms,
        }

    def proof_payload(self) -> bytes:
        """What the session key signs, to prove that whoever brings the delegation holds its key."""
        times = (str(self.issued_ms).encode(), str(self.expires_ms).encode())
        return b"\0".join(
            (b"fabric-delegation-v1", self.fabric.encode(), self.operator.encode(), *times, self.session_key)
        )

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "Delegation":
        """The delegation in `members`.

        Raises:
            DelegationError: a member is missing, unknown, or of the wrong kind.
        """
        if set(members) != _MEMBERS:
            raise DelegationError(f"a delegation has exactly the members {', '.join(sorted(_MEMBERS))}")
        for name in ("fabric", "operator", "session_key"):
            if not isinstance(members[name], str):
                raise DelegationError(f"{name} must be a string")
        for name in ("issued_ms", "expires_ms"):
            if not isinstance(members[name], int) or isinstance(members[name], bool):
                raise DelegationError(f"{name} must be an integer of milliseconds")
        key = unhex(members["session_key"], "session_key")
        return cls(members["fabric"], members["operator"], key, members["issued_ms"], members["expires_ms"])


@dataclass(frozen=True, slots=True)
class SignedDelegation:
    """A delegation with the wallet's signature (65 bytes) and the session key's own (64), which proves it is held."""

    delegation: Delegation
    signature: bytes
    proof: bytes

    def to_json(self) -> dict[str, Any]:
        """The members as JSON carries them; signatures in hex."""
        return {
            "delegation": self.delegation.to_json(),
            "signature": self.signature.hex(),
            "proof": self.proof.hex(),
        }

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "SignedDelegation":
        """The signed delegation in `members`.

        Raises:
            DelegationError: a member is missing or of the wrong kind.
        """
        if not isinstance(members.get("delegation"), Mapping):
            raise DelegationError("delegation must be an object")
        delegation = Delegation.from_json(members["delegation"])
        return cls(delegation, unhex(members.get("signature"), "signature"), unhex(members.get("proof"), "proof"))


@dataclass(frozen=True, slots=True)
class Revocation:
    """The wallet takes a session key back, for good: a revoked key is never accepted again."""

    fabric: str
    operator: str
    session_key: bytes

    def typed_data(self) -> dict[str, Any]:
        """The EIP-712 message, in the form that `eth_signTypedData_v4` takes."""
        fields = [
            {"name": "fabric", "type": "string"},
            {"name": "operator", "type": "string"},
            {"name": "sessionKey", "type": "bytes32"},
        ]
        key = "0x" + self.session_key.hex()
        return _typed("Revocation", fields, {"fabric": self.fabric, "operator": self.operator, "sessionKey": key})


def unhex(text: Any, name: str) -> bytes:
    """The bytes of hex digits, with or without 0x.

    Raises:
        DelegationError: `name` is not hex digits.
    """
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except (ValueError, AttributeError):
        raise DelegationError(f"{name} must be hex digits") from None


def _typed(name: str, fields: list[dict[str, str]], message: dict[str, Any]) -> dict[str, Any]:
    return {
        "types": {"EIP712Domain": _DOMAIN_FIELDS, name: fields},
        "primaryType": name,
        "domain": _DOMAIN,
        "message": message,
    }
