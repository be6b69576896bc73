"""Identifiers: a word that says what it names, and 96 random bits."""

import re
import secrets
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}")


def new_id(kind: str, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh identifier such as ``run_3f0q8…``: `kind`, an underscore, 20 Crockford base-32 digits."""
    number = int.from_bytes(random_bytes(13), "big")
    return f"{kind}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(0, 100, 5))


def is_name(text: str) -> bool:
    """Whether something may have this identifier, whoever made it."""
    return _NAME.fullmatch(text) is not None
