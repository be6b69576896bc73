"""What an operator's wallet signs to put a time slot of one of its GPUs up for sale, as EIP-712 typed data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DOMAIN = {"name": "Berkeley Compute", "version": "1"}
_DOMAIN_FIELDS = [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}]
_FIELDS = [
    {"name": "fabric", "type": "string"},
    {"name": "gpu", "type": "string"},
    {"name": "fromMs", "type": "uint64"},
    {"name": "toMs", "type": "uint64"},
    {"name": "priceDcPerGpuHour", "type": "uint64"},
    {"name": "issuedMs", "type": "uint64"},
]


class SlotIssueError(ValueError):
    """Not well formed; says which member and what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotIssue:
    """The GPU (public id) is for sale from ``from_ms`` to before ``to_ms`` at a price in DC per hour."""

    fabric: str
    gpu: str
    from_ms: int
    to_ms: int
    price_dc_per_gpu_hour: int
    issued_ms: int

    def __post_init__(self) -> None:
        for name in ("from_ms", "to_ms", "price_dc_per_gpu_hour", "issued_ms"):
            given = getattr(self, name)
            if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < 2**63:
                raise SlotIssueError(f"{name} is {given!r}; an integer from 0 to 2^63 - 1")

    def typed_data(self) -> dict[str, Any]:
        """The EIP-712 message, in the form that `eth_signTypedData_v4` takes."""
        message = {
            "fabric": self.fabric,
            "gpu": self.gpu,
            "fromMs": self.from_ms,
            "toMs": self.to_ms,
            "priceDcPerGpuHour": self.price_dc_per_gpu_hour,
            "issuedMs": self.issued_ms,
        }
        types = {"EIP712Domain": _DOMAIN_FIELDS, "SlotIssue": _FIELDS}
        return {"types": types, "primaryType": "SlotIssue", "domain": _DOMAIN, "message": message}

    def to_json(self) -> dict[str, Any]:
        """The members as JSON carries them."""
        return {name: getattr(self, name) for name in _MEMBERS}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "SlotIssue":
        """The statement in `members`.

        Raises:
            SlotIssueError: a member is missing, unknown or of the wrong kind.
        """
        if set(members) != set(_MEMBERS):
            raise SlotIssueError(f"a slot has exactly the members {', '.join(_MEMBERS)}")
        if not isinstance(members["fabric"], str) or not isinstance(members["gpu"], str):
            raise SlotIssueError("fabric and gpu are strings")
        return cls(**members)


_MEMBERS = tuple(SlotIssue.__dataclass_fields__)
