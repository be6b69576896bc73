"""The gateway's certificate: made by the agent itself, kept beside its state, told by its fingerprint and pinned by it.

Nobody signs it and no name or date in it is looked at: the control plane states the fingerprint in each lease token.
"""

import hashlib
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_FOR = timedelta(days=36500)


class CertificateError(RuntimeError):
    """The files are there and cannot be used; says which and what to do."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """`context` is a server's; `fingerprint` is the SHA-256 of the certificate (DER), in hexadecimal."""

    context: ssl.SSLContext
    fingerprint: str


def load_or_make(folder: Path) -> Certificate:
    """The certificate in `gateway.pem`; made on first use, readable by its owner only.

    Raises:
        CertificateError: the file is open to others, or holds no key with its certificate.
    """
    path = folder / "gateway.pem"
    if not path.exists():
        _write(path, _make())
    if path.stat().st_mode & 0o077:
        raise CertificateError(f"the gateway's key {path} is readable by others; run: chmod 600 {path}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(path)
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{path} holds no key with its certificate ({error}); remove it to make another"
        ) from None
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Certificate(context, hashlib.sha256(der).hexdigest())


def _make() -> bytes:
    """A key and a certificate of it, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fabric gateway")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(days=1)).not_valid_after(now + _FOR)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    """All or nothing: an agent that was killed here makes another."""
    half = path.with_suffix(".new")
    half.unlink(missing_ok=True)
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
