"""`fabric slots …`: time slots of GPUs, paid at purchase; runs on one's own slot cost no more (`slot=`, `--slot`)."""

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.client import session
from fabric.wire.amounts import format_dc, usd_to_dc_down
from fabric.wire.errors import InvalidRequest
from fabric.wire.slot_issue import SlotIssue

app = typer.Typer(name="slots", help="Time slots of GPUs.", no_args_is_help=True, pretty_exceptions_enable=False)

_KEY_VARIABLE = "OPERATOR_WALLET_KEY"
_PASSWORD_VARIABLE = "OPERATOR_WALLET_PASSWORD"  # noqa: S105 - the name of a variable

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SlotId = Annotated[str, typer.Argument(metavar="SLOT", help="A slot's id.")]


@app.command("list")
def list_slots(
    *,
    mine: Annotated[bool, typer.Option("--mine", help="Those of the account instead of those for sale.")] = False,
    gpu: Annotated[str, typer.Option(help="Of this GPU only, by its public id.")] = "",
    as_json: Json = False,
) -> None:
    """Slots for sale, or the account's."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = _get("/v1/slots", mine=str(mine).lower(), gpu=gpu, cursor=cursor)
        found, cursor = found + page["slots"], page["next"]
    if as_json:
        print(json.dumps(found, indent=2))
    for slot in () if as_json else found:
        print(_line(slot))


@app.command()
def issue(
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="Its public id.")],
    *,
    begin: Annotated[str, typer.Option("--from", help="When it begins, such as 2026-12-01T08:00+00:00.")],
    end: Annotated[str, typer.Option("--to", help="When it ends.")],
    price: Annotated[str, typer.Option(help="USD per GPU-hour.")],
    wallet: Annotated[
        Path | None, typer.Option(help=f"Keystore of the operator's wallet; without it, the key in {_KEY_VARIABLE}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put time of a GPU up for sale; the operator's wallet signs."""
    stated = SlotIssue(
        fabric=str(_get("/healthz")["fabric_id"]),
        gpu=gpu,
        from_ms=_ms(begin),
        to_ms=_ms(end),
        price_dc_per_gpu_hour=_dc(price),
        issued_ms=time.time_ns() // 1_000_000,
    )
    body = {"slot": stated.to_json(), "signature": "0x" + _sign(wallet, stated.typed_data()).hex()}
    _show(_post("/v1/slots", body), as_json=as_json)


@app.command()
def buy(slot: SlotId, *, as_json: Json = False) -> None:
    """Buy a slot; its whole price is set aside now."""
    _show(_post(f"/v1/slots/{slot}/buy"), as_json=as_json)


@app.command()
def split(
    slot: SlotId, *, at: Annotated[str, typer.Option("--at", help="Where to cut.")], as_json: Json = False
) -> None:
    """Two slots out of one."""
    parts = _post(f"/v1/slots/{slot}/split", {"at_ms": _ms(at)})["slots"]
    print(json.dumps(parts) if as_json else "\n".join(map(_line, parts)))


@app.command()
def merge(slot: SlotId, other: SlotId, *, as_json: Json = False) -> None:
    """One slot out of two that follow each other."""
    _show(_post(f"/v1/slots/{slot}/merge", {"other": other}), as_json=as_json)


@app.command()
def transfer(slot: SlotId, to: Annotated[str, typer.Argument(metavar="ACCOUNT")], *, as_json: Json = False) -> None:
    """Give a slot, and the money left in it, to another account."""
    _show(_post(f"/v1/slots/{slot}/transfer", {"to": to}), as_json=as_json)


def _get(path: str, **wishes: str) -> Any:
    current = session.current()
    return current.call(current.plane.get(path, **wishes))


def _post(path: str, body: Mapping[str, Any] | None = None) -> Any:
    current = session.current()
    return current.call(current.plane.post(path, body))


def _show(slot: Mapping[str, Any], *, as_json: bool) -> None:
    print(json.dumps(slot) if as_json else _line(slot))


def _line(slot: Mapping[str, Any]) -> str:
    price = format_dc(int(slot["price_dc_per_gpu_hour"]))
    span = f"{_text(slot['from_ms'])} to {_text(slot['to_ms'])}"
    return f"{slot['id']}  {slot['model']} of {slot['operator']}  {span}  {price}/h, {slot['price_usd']} in all"


def _text(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="minutes")


def _ms(text: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no time; write 2026-12-01T08:00+00:00, or Unix milliseconds") from None
    if when.tzinfo is None:
        raise InvalidRequest(f"{text!r} has no offset from UTC; write 2026-12-01T08:00+00:00")
    return round(when.timestamp() * 1000)


def _dc(usd: str) -> int:
    try:
        return usd_to_dc_down(usd)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _sign(keystore: Path | None, typed_data: dict[str, Any]) -> bytes:
    from fabric.operator.wallet import WalletError, from_key, open_keystore

    key = os.environ.get(_KEY_VARIABLE)
    if keystore is None and not key:
        raise InvalidRequest(f"no wallet: give --wallet KEYSTORE, or the key in {_KEY_VARIABLE}")
    try:
        opened = from_key(key or "") if keystore is None else open_keystore(keystore, os.environ[_PASSWORD_VARIABLE])
        return opened.sign(typed_data)
    except KeyError:
        raise InvalidRequest(f"give the keystore's password in {_PASSWORD_VARIABLE}") from None
    except WalletError as error:
        raise InvalidRequest(str(error)) from None
