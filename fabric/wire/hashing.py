"""Keccak-256, the one hash that both Python and the EVM compute."""

import sha3


def keccak256(*parts: bytes) -> bytes:
    """Keccak-256 (the EVM's, not NIST SHA-3) of the concatenated parts, 32 bytes."""
    digest = sha3.keccak_256()
    for part in parts:
        digest.update(part)
    return digest.digest()
