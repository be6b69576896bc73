"""The control plane's own secrets: its token-signing key (a 0600 file) and the bearer tokens of agents' blob access."""

import base64
import contextlib
import hashlib
import hmac
import os
import tempfile
from pathlib import Path

from nacl.signing import SigningKey

from fabric.wire.errors import AuthError

BLOB_TOKEN_MS = 86_400_000


def load_or_make(path: Path) -> SigningKey:
    """The key in `path`; made on first use, readable by its owner only.

    It appears whole: a process killed midway leaves none, and of two that make one at once both use the first.
    """
    if not path.exists():
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(bytes(SigningKey.generate()))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            Path(draft).unlink()
    return SigningKey(path.read_bytes())


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def blob_token(key: SigningKey, operator: str, now_ms: int) -> str:
    """A bearer token for one operator's blob access, good for a day; each welcome carries a fresh one."""
    expires = now_ms + BLOB_TOKEN_MS
    statement = f"{operator}.{expires}"
    return f"{statement}.{_mac(key, statement)}"


def read_blob_token(key: SigningKey, token: str, now_ms: int) -> str:
    """The operator that a blob token was made for.

    Raises:
        AuthError: forged or expired.
    """
    statement, _, mac = token.rpartition(".")
    operator, _, expires = statement.rpartition(".")
    if not hmac.compare_digest(mac, _mac(key, statement)) or not expires.isdigit():
        raise AuthError("the blob token is not one of this control plane; reconnect to get one")
    if now_ms >= int(expires):
        raise AuthError("the blob token has expired; reconnect to get a new one")
    return operator


def _mac(key: SigningKey, statement: str) -> str:
    digest = hmac.new(b"fabric-blob-token-v1" + bytes(key), statement.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
