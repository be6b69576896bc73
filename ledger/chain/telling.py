"""What a chain does to us, told to people at a command line: each error with an exit code of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from fabric.wire.errors import AuthError, Error, InsufficientFunds, InvalidRequest, ServiceError
from ledger.chain.errors import (
    BadKey,
    ChainError,
    ChainUnreachable,
    NoFunds,
    NotEnoughBct,
    NotMined,
    PriceUnavailable,
    Reverted,
)
from ledger.chain.settings import ChainSettings


def settings_told() -> ChainSettings:
    """The chain's settings from the environment.

    Raises:
        InvalidRequest: names the key whose value is none of its kind.
    """
    try:
        return ChainSettings()
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"FABRIC_CHAIN_{str(first['loc'][0]).upper()}: {first['msg']}") from None


@contextmanager
def told() -> Iterator[None]:
    """Turns errors of the chain into errors that a command ends with."""
    try:
        yield
    except ChainError as error:
        raise _as_told(error) from None


def _as_told(error: ChainError) -> Error:
    if isinstance(error, (NoFunds, NotEnoughBct)):
        return InsufficientFunds(str(error))
    if isinstance(error, BadKey) or (isinstance(error, Reverted) and error.name == "NotPoster"):
        return AuthError(str(error))
    if isinstance(error, (ChainUnreachable, NotMined, PriceUnavailable)):
        return ServiceError(str(error), retryable=True)
    return InvalidRequest(str(error))
