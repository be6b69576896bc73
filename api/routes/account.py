"""The caller's own account."""

from fastapi import APIRouter

from api import schemas
from api.deps import CallerDep, PlaneDep, ReadSession, WriteSession
from api.errors import Conflict
from fabric.wire.errors import InvalidRequest
from ledger.chain.errors import BadSignature, WalletTaken

router = APIRouter(prefix="/v1/account", tags=["account"])


@router.get("", summary="Whose key this is, and the balance")
def account(plane: PlaneDep, session: ReadSession, caller: CallerDep) -> schemas.Account:
    balance = plane.ledger(session).balance(caller.customer)
    return schemas.Account(
        id=caller.customer,
        name=caller.name,
        test=caller.test,
        available_dc=balance.available,
        held_dc=balance.held,
        exiting_dc=balance.exiting,
    )


@router.put("/wallet", summary="Link a wallet for good: what it deposits on chain is this account's")
def link_wallet(plane: PlaneDep, session: WriteSession, caller: CallerDep, given: schemas.WalletLink) -> schemas.Wallet:
    """`signature`: by the wallet, EIP-191, of `wallet ADDRESS is account ACCOUNT of fabric FABRIC_ID`, address in lower
    case. The fabric's id is in `/healthz`.
    """
    if plane.chain is None:
        raise InvalidRequest("this fabric has no chain, so there is nothing that a wallet could deposit")
    from ledger.chain.crediting import link_wallet as link
    from ledger.chain.wallets import expect_signed, link_text

    address = given.address.lower()
    try:
        expect_signed(link_text(address, caller.customer, plane.fabric_id), given.signature, address)
        link(session, plane.ledger(session), address, caller.customer, at_ms=plane.now_ms())
    except BadSignature as error:
        raise InvalidRequest(str(error)) from None
    except WalletTaken as error:
        raise Conflict(str(error)) from None
    return schemas.Wallet(address=address)
