"""What wallets sign about pools, as EIP-712 typed data: terms, invitations, and a GPU's coming and going.

A statement is bound to one fabric, one pool and a moment, so that it says nothing elsewhere and nothing twice. Signing
and recovering need an Ethereum library and happen at the edges; this module only says what is signed. Whether the
terms are fair, and who may say what, is the control plane's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DOMAIN = {"name": "Berkeley Compute", "version": "1"}
_DOMAIN_FIELDS = [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}]
_WEIGHT_FIELDS = [{"name": "model", "type": "string"}, {"name": "weight", "type": "uint64"}]
_TERMS_FIELDS = [
    {"name": "fabric", "type": "string"},
    {"name": "action", "type": "string"},
    {"name": "pool", "type": "string"},
    {"name": "entrance", "type": "string"},
    {"name": "operatorBps", "type": "uint16"},
    {"name": "sharedBps", "type": "uint16"},
    {"name": "usedBps", "type": "uint16"},
    {"name": "operatorPayout", "type": "string"},
    {"name": "priceCeilingDc", "type": "uint64"},
    {"name": "modelWeights", "type": "ModelWeight[]"},
    {"name": "issuedMs", "type": "uint64"},
]
_MOVE_FIELDS = [
    {"name": "fabric", "type": "string"},
    {"name": "action", "type": "string"},
    {"name": "pool", "type": "string"},
    {"name": "gpu", "type": "string"},
    {"name": "issuedMs", "type": "uint64"},
    {"name": "expiresMs", "type": "uint64"},
]
TERMS_ACTIONS = ("create", "terms")
MOVE_ACTIONS = ("invite", "join", "leave", "kick")
ENTRANCES = ("own", "invited", "open")
_MAX_U16, _MAX_MS = 2**16, 2**63


class PoolStatementError(ValueError):
    """A statement that is not well formed; says which member and what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsStatement:
    """A wallet founds a pool (`create`), or changes the terms of the pool it founded (`terms`).

    Attributes:
        fabric: the fabric's id.
        action: `create` or `terms`.
        pool: its name.
        entrance: who may join: `own`, `invited` or `open`.
        operator_bps, shared_bps, used_bps: the three parts of 10,000.
        operator_payout: 0x-address that gets the operator's part; "" when there is none.
        price_ceiling_dc: DC per GPU-hour above which a GPU does not count as available; 0 for no ceiling.
        model_weights: weight of an available GPU-ms per model.
        issued_ms: when it was signed, Unix ms.
    """

    fabric: str
    action: str
    pool: str
    entrance: str
    operator_bps: int
    shared_bps: int
    used_bps: int
    operator_payout: str
    price_ceiling_dc: int
    model_weights: Mapping[str, int]
    issued_ms: int

    def __post_init__(self) -> None:
        _expect_one_of("action", self.action, TERMS_ACTIONS)
        _expect_one_of("entrance", self.entrance, ENTRANCES)
        for name in ("operator_bps", "shared_bps", "used_bps"):
            _expect_below(name, getattr(self, name), _MAX_U16)
        for name in ("price_ceiling_dc", "issued_ms"):
            _expect_below(name, getattr(self, name), _MAX_MS)
        for model, weight in self.model_weights.items():
            _expect_below(f"the weight of {model}", weight, _MAX_MS)

    def typed_data(self) -> dict[str, Any]:
        """The EIP-712 message, in the form that `eth_signTypedData_v4` takes."""
        message = {
            "fabric": self.fabric,
            "action": self.action,
            "pool": self.pool,
            "entrance": self.entrance,
            "operatorBps": self.operator_bps,
            "sharedBps": self.shared_bps,
            "usedBps": self.used_bps,
            "operatorPayout": self.operator_payout,
            "priceCeilingDc": self.price_ceiling_dc,
            "modelWeights": [{"model": m, "weight": w} for m, w in sorted(self.model_weights.items())],
            "issuedMs": self.issued_ms,
        }
        return _typed({"PoolTerms": _TERMS_FIELDS, "ModelWeight": _WEIGHT_FIELDS}, "PoolTerms", message)

    def to_json(self) -> dict[str, Any]:
        """The members as JSON carries them."""
        return {name: getattr(self, name) for name in _TERMS_MEMBERS} | {"model_weights": dict(self.model_weights)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveStatement:
    """A pool's founder invites or kicks a GPU; a GPU's owner lets it join or leave.

    `gpu` is its public id (0x and 64 hex digits). After `expires_ms` an invitation is worth nothing; 0 elsewhere.
    """

    fabric: str
    action: str
    pool: str
    gpu: str
    issued_ms: int
    expires_ms: int = 0

    def __post_init__(self) -> None:
        _expect_one_of("action", self.action, MOVE_ACTIONS)
        for name in ("issued_ms", "expires_ms"):
            _expect_below(name, getattr(self, name), _MAX_MS)
        if (self.action == "invite") != bool(self.expires_ms):
            raise PoolStatementError(f"expires_ms is {self.expires_ms}; an invitation, and only one, says when it ends")

    def typed_data(self) -> dict[str, Any]:
        """The EIP-712 message, in the form that `eth_signTypedData_v4` takes."""
        message = {
            "fabric": self.fabric,
            "action": self.action,
            "pool": self.pool,
            "gpu": self.gpu,
            "issuedMs": self.issued_ms,
            "expiresMs": self.expires_ms,
        }
        return _typed({"PoolMove": _MOVE_FIELDS}, "PoolMove", message)

    def to_json(self) -> dict[str, Any]:
        """The members as JSON carries them."""
        return {name: getattr(self, name) for name in _MOVE_MEMBERS}


Statement = TermsStatement | MoveStatement
_TERMS_MEMBERS = tuple(TermsStatement.__dataclass_fields__)
_MOVE_MEMBERS = tuple(MoveStatement.__dataclass_fields__)


def statement_from_json(members: Mapping[str, Any]) -> Statement:
    """The statement in `members`.

    Raises:
        PoolStatementError: a member is missing, unknown, or of the wrong kind.
    """
    action = members.get("action")
    if action not in (*TERMS_ACTIONS, *MOVE_ACTIONS):
        raise PoolStatementError(f"action is {action!r}; allowed: {', '.join((*TERMS_ACTIONS, *MOVE_ACTIONS))}")
    names, kind = (_TERMS_MEMBERS, TermsStatement) if action in TERMS_ACTIONS else (_MOVE_MEMBERS, MoveStatement)
    if set(members) != set(names):
        raise PoolStatementError(f"a statement of this kind has exactly the members {', '.join(sorted(names))}")
    for name in ("fabric", "pool", "gpu", "entrance", "operator_payout"):
        if name in members and not isinstance(members[name], str):
            raise PoolStatementError(f"{name} must be a string")
    weights = members.get("model_weights", {})
    if not isinstance(weights, Mapping) or not all(isinstance(model, str) for model in weights):
        raise PoolStatementError("model_weights must be an object of weights by model")
    return kind(**members)


def _expect_one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise PoolStatementError(f"{name} is {given!r}; allowed: {', '.join(allowed)}")


def _expect_below(name: str, given: Any, limit: int) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < limit:
        raise PoolStatementError(f"{name} is {given!r}; an integer from 0 to {limit - 1}")


def _typed(types: dict[str, Any], primary: str, message: dict[str, Any]) -> dict[str, Any]:
    return {
        "types": {"EIP712Domain": _DOMAIN_FIELDS, **types},
        "primaryType": primary,
        "domain": _DOMAIN,
        "message": message,
    }
