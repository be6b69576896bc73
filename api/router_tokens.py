"""How the serving router shows who it is: by a secret that it shares with the control plane, for one customer each.

The secret is a 0600 file beside the control plane's other keys. Whoever holds it may submit runs for every customer,
and nothing more than a customer may.
"""

import base64
import hashlib
import hmac
from pathlib import Path

from api import keys
from fabric.wire.errors import AuthError

PREFIX = "rt_"
KEY_FILE = "serving.key"
TOKEN_MS = 86_400_000
ROUTER = "*"
"""The customer in the router's own token, which lists endpoints and reports on them."""


def load_secret(state_dir: Path) -> bytes:
    """The shared secret; made by whoever comes first."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return bytes(keys.load_or_make(state_dir / KEY_FILE))


def make(secret: bytes, customer: str, now_ms: int) -> str:
    """A token for `customer`, good for a day."""
    statement = f"{now_ms + TOKEN_MS}.{customer}"
    return f"{PREFIX}{_mac(secret, statement)}.{statement}"


def read(secret: bytes, token: str, now_ms: int) -> str:
    """The customer of a token.

    Raises:
        AuthError: forged or expired.
    """
    mac, _, statement = token.removeprefix(PREFIX).partition(".")
    expires, _, customer = statement.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(secret, statement).encode()) or not expires.isdigit():
        raise AuthError("this is no token of the serving router")
    if now_ms >= int(expires):
        raise AuthError("the serving router's token has expired; is its clock right?")
    return customer


def _mac(secret: bytes, statement: str) -> str:
    digest = hmac.new(b"fabric-serving-v1" + secret, statement.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
