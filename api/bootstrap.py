"""Applies the bootstrap file: customers with their keys, wallets and test balances, operators with their session keys.

Applying it twice changes nothing; what is in the database and not in the file stays.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import Session

from api.plane import Plane
from api.reputation import UNKNOWN
from api.schemas import Name
from api.tables import ApiKeyRow, CustomerRow, OperatorRow, SessionKeyRow
from api.terms import own_account
from ledger.chain.crediting import link_wallet
from ledger.chain.errors import WalletTaken
from ledger.leaves import address_bytes

_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BootstrapError(Exception):
    """The file cannot be read or says something impossible."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Customer(_Model):
    id: Name
    name: str
    api_key_sha256: _Hex32
    test_balance_dc: int = Field(default=0, ge=0, lt=2**63)
    admin: bool = False
    wallet: str | None = Field(default=None, pattern=r"^0x[0-9a-fA-F]{40}$")


class Operator(_Model):
    id: Name
    name: str
    session_key: _Hex32
    payout: str = Field(pattern=r"^0x[0-9a-fA-F]{40}$")
    account: Name | None = None
    """The customer whose runs are this operator's own work."""


class Bootstrap(_Model):
    customers: list[Customer] = []
    operators: list[Operator] = []


def apply(plane: Plane, path: Path) -> None:
    """Read and apply.

    Raises:
        BootstrapError: names the file and what is wrong with it.
    """
    declared = read(path)
    with plane.database.write() as session:
        for customer in declared.customers:
            _customer(plane, session, customer)
        for operator in declared.operators:
            _operator(plane, session, operator)


def read(path: Path) -> Bootstrap:
    """The file's contents, checked."""
    try:
        return Bootstrap.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise BootstrapError(f"the bootstrap file {path} cannot be used: {error}") from None


def _customer(plane: Plane, session: Session, declared: Customer) -> None:
    now = plane.now_ms()
    if declared.test_balance_dc and plane.chain is not None:
        raise BootstrapError(
            f"customer {declared.id} has a test balance, and with a chain only deposited DC can be burned; "
            "set its test_balance_dc to 0, or unset FABRIC_CHAIN_URL and FABRIC_CHAIN_ADDRESSES"
        )
    if session.get(CustomerRow, declared.id) is None:
        test = declared.test_balance_dc > 0
        session.add(CustomerRow(id=declared.id, name=declared.name, test=test, created_ms=now))
        session.flush()
        if test:
            plane.ledger(session).credit_test(declared.id, declared.test_balance_dc, f"bootstrap/{declared.id}")
    if session.get(ApiKeyRow, declared.api_key_sha256) is None:
        session.add(
            ApiKeyRow(sha256=declared.api_key_sha256, customer=declared.id, admin=declared.admin, created_ms=now)
        )
        session.flush()
    if declared.wallet is not None:
        _wallet(plane, session, declared.id, declared.wallet)


def _wallet(plane: Plane, session: Session, customer: str, wallet: str) -> None:
    """What the wallet deposits on chain is the customer's."""
    try:
        link_wallet(session, plane.ledger(session), wallet, customer, at_ms=plane.now_ms())
    except WalletTaken as taken:
        raise BootstrapError(str(taken)) from None


def _operator(plane: Plane, session: Session, declared: Operator) -> None:
    now = plane.now_ms()
    address_bytes(declared.payout)
    row = session.get(OperatorRow, declared.id)
    if row is None:
        session.add(
            OperatorRow(
                id=declared.id, name=declared.name, payout=declared.payout.lower(), reputation=UNKNOWN, created_ms=now
            )
        )
        session.flush()
    if session.get(SessionKeyRow, declared.session_key) is None:
        session.add(SessionKeyRow(public_key=declared.session_key, operator=declared.id, created_ms=now))
        session.flush()
    if declared.account is not None:
        if session.get(CustomerRow, declared.account) is None:
            raise BootstrapError(f"operator {declared.id} names the account {declared.account}, which nobody has")
        own_account(session, declared.id, declared.account)
