"""Enrolment of operators: join tokens are issued and redeemed once; delegations are accepted, renewed and revoked.

A session key speaks for an operator while a delegation that the operator's wallet signed for this fabric, this operator
and this key has not expired, and the key was not revoked. A revoked key never comes back.
"""

import secrets
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.address import is_address, to_checksum_address
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from sqlmodel import Session, col, select

from api.enrolment_tables import DelegationRow, JoinTokenRow, OperatorWalletRow
from api.errors import Conflict, NotFound
from api.keys import sha256_hex
from api.reputation import UNKNOWN
from api.tables import OperatorRow, SessionKeyRow
from fabric.wire.delegation import Delegation, Revocation, SignedDelegation
from fabric.wire.errors import AuthError, InvalidRequest

MAX_LIFETIME_MS = 366 * 86_400_000
CLOCK_SLACK_MS = 300_000
"""An operator's clock may be ahead of ours by this much when it dates a delegation."""


def issue_token(
    session: Session, *, operator: str, name: str, wallet: str, payout: str, now_ms: int, lifetime_ms: int
) -> str:
    """A join token `join.OPERATOR.SECRET` for that operator and wallet; makes the operator when it is new.

    Raises:
        InvalidRequest: not an address.
        Conflict: the operator is known with another wallet.
    """
    wallet, payout = _address(wallet, "wallet"), _address(payout or wallet, "payout")
    if session.get(OperatorRow, operator) is None:
        session.add(OperatorRow(id=operator, name=name, payout=payout, reputation=UNKNOWN, created_ms=now_ms))
        session.flush()
    known = session.get(OperatorWalletRow, operator)
    if known is None:
        session.add(OperatorWalletRow(operator=operator, wallet=wallet))
    elif known.wallet != wallet:
        raise Conflict(f"operator {operator} is known with the wallet {known.wallet}; a token is for that one")
    token = f"join.{operator}.{secrets.token_urlsafe(24)}"
    session.add(
        JoinTokenRow(sha256=sha256_hex(token), operator=operator, created_ms=now_ms, expires_ms=now_ms + lifetime_ms)
    )
    return token


def redeem(session: Session, fabric_id: str, token: str, signed: SignedDelegation, now_ms: int) -> Delegation:
    """Spend the token: the delegation's key speaks for the token's operator from now on.

    The same token with the same key again is answered again, so that a lost answer costs nothing.

    Raises:
        AuthError: a token that is foreign, used or expired; or whatever is wrong with the delegation.
    """
    row = session.get(JoinTokenRow, sha256_hex(token))
    if row is None:
        raise AuthError("this is not a join token of this fabric; ask who invited you for a new one")
    key = signed.delegation.session_key.hex()
    if row.used_by and row.used_by != key:
        raise AuthError("this join token was used already; it enrols one key, once")
    if not row.used_by and now_ms >= row.expires_ms:
        raise AuthError("this join token has expired; ask for a new one")
    if signed.delegation.operator != row.operator:
        raise AuthError(f"the delegation is for operator {signed.delegation.operator}, the token for {row.operator}")
    _accept(session, fabric_id, signed, now_ms)
    row.used_by = key
    session.add(row)
    return signed.delegation


def renew(session: Session, fabric_id: str, signed: SignedDelegation, now_ms: int) -> Delegation:
    """A later expiry for a key, or a further key of an enrolled operator; the wallet's signature is the credential.

    Raises:
        AuthError: whatever is wrong with the delegation.
    """
    _accept(session, fabric_id, signed, now_ms)
    return signed.delegation


def revoke(session: Session, fabric_id: str, operator: str, session_key: bytes, signature: bytes, now_ms: int) -> None:
    """Take a key back for good; again changes nothing.

    Raises:
        AuthError: not signed by the operator's wallet.
        NotFound: the operator has no such key.
    """
    revocation = Revocation(fabric_id, operator, session_key)
    _check_signer(session, operator, revocation.typed_data(), signature)
    row = session.get(SessionKeyRow, session_key.hex())
    if row is None or row.operator != operator:
        raise NotFound(f"operator {operator} has no session key {session_key.hex()[:8]}…")
    if row.revoked_ms is None:
        row.revoked_ms = now_ms
        session.add(row)


def problem_of_key(session: Session, session_key: bytes, now_ms: int) -> str:
    """Why this session key speaks for nobody now; empty when it does. Keys without a delegation were declared by the
    operator of this control plane itself and do not expire.
    """
    row = session.get(DelegationRow, session_key.hex())
    if row is not None and now_ms >= row.expires_ms:
        return "the delegation of this session key has expired; let the wallet sign again: fabric operator renew"
    return ""


def ended_keys(session: Session, session_keys: set[bytes], now_ms: int) -> set[bytes]:
    """Those of the keys that speak for nobody any more: revoked, or with a delegation that has expired."""
    names = [key.hex() for key in session_keys]
    revoked = select(SessionKeyRow.public_key).where(
        col(SessionKeyRow.public_key).in_(names), col(SessionKeyRow.revoked_ms).is_not(None)
    )
    expired = select(DelegationRow.session_key).where(
        col(DelegationRow.session_key).in_(names), col(DelegationRow.expires_ms) <= now_ms
    )
    return {bytes.fromhex(name) for query in (revoked, expired) for name in session.exec(query)}


def _accept(session: Session, fabric_id: str, signed: SignedDelegation, now_ms: int) -> None:
    delegation = signed.delegation
    if delegation.fabric != fabric_id:
        raise AuthError(f"the delegation is for fabric {delegation.fabric}, this is {fabric_id}")
    _check_times(delegation, now_ms)
    _check_signer(session, delegation.operator, delegation.typed_data(), signed.signature)
    try:
        VerifyKey(delegation.session_key).verify(delegation.proof_payload(), signed.proof)
    except (BadSignatureError, ValueError):
        raise AuthError("the delegation is for another key than the one that brings it") from None
    _store(session, signed, now_ms)


def _check_times(delegation: Delegation, now_ms: int) -> None:
    if now_ms >= delegation.expires_ms:
        raise AuthError("the delegation has expired; let the wallet sign a new one")
    if delegation.issued_ms > now_ms + CLOCK_SLACK_MS:
        raise AuthError("the delegation is dated in the future; set the clock of the machine that signed it")
    if delegation.expires_ms - delegation.issued_ms > MAX_LIFETIME_MS:
        raise AuthError("the delegation lasts longer than 366 days; shorten it")


def _check_signer(session: Session, operator: str, typed_data: dict[str, Any], signature: bytes) -> None:
    wallet = session.get(OperatorWalletRow, operator)
    if wallet is None:
        raise AuthError(f"operator {operator} has no wallet here; it enrols with a join token first")
    try:
        signer = Account.recover_message(encode_typed_data(full_message=typed_data), signature=signature)
    except Exception:  # noqa: BLE001 - classes of three packages for bytes that are no signature
        raise AuthError("that is not a signature") from None
    if signer != wallet.wallet:
        raise AuthError(f"signed by {signer}, operator {operator} signs with {wallet.wallet}")


def _store(session: Session, signed: SignedDelegation, now_ms: int) -> None:
    delegation, key = signed.delegation, signed.delegation.session_key.hex()
    known = session.get(SessionKeyRow, key)
    if known is not None and known.operator != delegation.operator:
        raise AuthError("this session key belongs to another operator; make a key of your own")
    if known is not None and known.revoked_ms is not None:
        raise AuthError("this session key was revoked; make a new one")
    if known is None:
        session.add(SessionKeyRow(public_key=key, operator=delegation.operator, created_ms=now_ms))
        session.flush()
    row = session.get(DelegationRow, key)
    if row is not None and row.issued_ms > delegation.issued_ms:
        raise AuthError("a newer delegation of this key is known already")
    session.merge(
        DelegationRow(
            session_key=key,
            issued_ms=delegation.issued_ms,
            expires_ms=delegation.expires_ms,
            signature=signed.signature,
            accepted_ms=now_ms,
        )
    )


def _address(text: str, name: str) -> str:
    if not is_address(text) or not text.startswith("0x"):
        raise InvalidRequest(f"{name} {text!r} is not an Ethereum address; it is 0x and 40 hex digits")
    return to_checksum_address(text)
