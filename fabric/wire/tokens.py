"""Lease tokens: what lets a customer's session speak to one operator's gateway about one lease generation.

Ed25519 JWS (RFC 7515, RFC 9864) with the algorithm pinned. Short-lived: the SDK fetches a fresh one with each route.
"""

import base64
import json
from dataclasses import asdict, dataclass

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from nacl.encoding import RawEncoder
from nacl.signing import SigningKey, VerifyKey

from fabric.wire.clock import Clock

_HEADER = {"alg": "Ed25519", "typ": "fabric-lease+jwt"}
_ALGORITHMS = ["Ed25519"]


class TokenError(ValueError):
    """A token that opens nothing: forged, expired, for another operator, lease or generation."""


@dataclass(frozen=True, slots=True)
class LeaseToken:
    """What a lease token states. `expires_ms` is Unix time in ms; `audience` the operator's id.

    `fingerprint` is the SHA-256 (hexadecimal) of the certificate of the gateway that it is for; "" where it has none.
    """

    audience: str
    lease: str
    generation: int
    session: str
    expires_ms: int
    fingerprint: str = ""


def sign_token(token: LeaseToken, key: SigningKey) -> str:
    """The compact JWS of `token`, signed by the control plane's key."""
    payload = json.dumps(asdict(token), separators=(",", ":"), sort_keys=True)
    return jws.serialize_compact(_HEADER, payload, _jwk(key), algorithms=_ALGORITHMS)


def verify_token(compact: str, control_plane_key: bytes, *, audience: str, clock: Clock) -> LeaseToken:
    """The token's statement, if the control plane signed it for this operator and it has not expired.

    Args:
        compact: the JWS.
        control_plane_key: Ed25519 public key, 32 bytes.
        audience: this operator's id.
        clock: its wall clock is compared with the expiry.

    Raises:
        TokenError: says which of these it is not.
    """
    token = _signed(compact, control_plane_key)
    if token.audience != audience:
        raise TokenError(f"the lease token is for operator {token.audience}, this is {audience}")
    return _current(token, clock)


def read_token(compact: str, control_plane_key: bytes, *, clock: Clock) -> LeaseToken:
    """The same for whichever operator it is; the relay passes it on to that one, who verifies it again.

    Raises:
        TokenError: forged or expired.
    """
    return _current(_signed(compact, control_plane_key), clock)


def _signed(compact: str, control_plane_key: bytes) -> LeaseToken:
    try:
        parsed = jws.deserialize_compact(compact, _jwk(VerifyKey(control_plane_key)), algorithms=_ALGORITHMS)
        return LeaseToken(**json.loads(parsed.payload))
    except (JoseError, ValueError, TypeError, KeyError):
        raise TokenError("the lease token is not signed by this fabric's control plane") from None


def _current(token: LeaseToken, clock: Clock) -> LeaseToken:
    if clock.now_ms() >= token.expires_ms:
        raise TokenError("the lease token has expired; fetch the run's route again")
    return token


def _jwk(key: SigningKey | VerifyKey) -> OKPKey:
    if isinstance(key, SigningKey):
        private = {"d": _b64(bytes(key)), "x": _b64(key.verify_key.encode(RawEncoder))}
        return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", **private})
    return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": _b64(key.encode(RawEncoder))})


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
