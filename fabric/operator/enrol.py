"""What an operator's machine says to the control plane: redeem a join token, renew a delegation, take a key back."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from fabric.wire.delegation import Revocation, SignedDelegation
from fabric.wire.errors import InvalidRequest, ServiceError, from_problem

_TIMEOUT_S = 20.0
_TOKEN_PARTS = 3


def operator_of(token: str) -> str:
    """The operator's id that a join token (`join.OPERATOR.SECRET`) names.

    Raises:
        InvalidRequest: not a join token.
    """
    parts = token.strip().split(".")
    if len(parts) != _TOKEN_PARTS or parts[0] != "join" or not parts[1] or not parts[2]:
        raise InvalidRequest("that is not a join token; it looks like join.<operator>.<secret>, ask the fabric for one")
    return parts[1]


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The control plane at `url`, as an operator without an account meets it.

    Every method raises fabric's own errors: what the control plane refused with its reason, or ServiceError when it
    does not answer.
    """

    url: str

    def fabric_id(self) -> str:
        """The fabric's id: its chain id, or a random one."""
        return str(self._call("GET", "/healthz")["fabric_id"])

    def redeem(self, token: str, signed: SignedDelegation) -> dict[str, Any]:
        """Spend the join token: from now on the delegation's key speaks for the operator."""
        return self._call("POST", "/v1/operators/enrol", {"token": token.strip(), **signed.to_json()})

    def renew(self, signed: SignedDelegation) -> dict[str, Any]:
        """A later expiry for the key, or a further key; the wallet's signature is the only credential."""
        return self._call("POST", "/v1/operators/delegations", signed.to_json())

    def revoke(self, revocation: Revocation, signature: bytes) -> dict[str, Any]:
        """Never accept this key again."""
        body = {
            "operator": revocation.operator,
            "session_key": revocation.session_key.hex(),
            "signature": signature.hex(),
        }
        return self._call("POST", "/v1/operators/delegations/revoke", body)

    def order(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Give a signed order of this kind (`fabric.wire.operator_orders`)."""
        return self._call("POST", f"/v1/operators/orders/{kind}", body)

    def operator_gpus(self, operator: str) -> list[dict[str, Any]]:
        """The GPUs that the control plane lists for this operator."""
        return [gpu for gpu in self._call("GET", "/v1/gpus")["gpus"] if gpu.get("operator") == operator]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = httpx.request(method, self.url.rstrip("/") + path, json=body, timeout=_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} does not answer: {error}", retryable=True) from None
        try:
            members = answer.json()
        except json.JSONDecodeError:
            raise ServiceError(f"{self.url} answered {answer.status_code} with something else than JSON") from None
        if answer.is_error:
            raise from_problem(members, answer.status_code)
        return members
