"""`fabric pool …`: look at pools without an account; found, change, join and leave them with a wallet's signature."""

import getpass
import json
import os
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from fabric.operator.wallet import WalletError, from_key, open_keystore
from fabric.wire.amounts import format_dc, usd_to_dc_down
from fabric.wire.clock import SystemClock
from fabric.wire.errors import InvalidRequest, ServiceError, from_problem
from fabric.wire.pool_moves import MoveStatement, PoolStatementError, Statement, TermsStatement

app = typer.Typer(name="pool", help="Pools of GPUs: terms and members.", no_args_is_help=True)

_KEY_VARIABLE = "OPERATOR_WALLET_KEY"
_PASSWORD_VARIABLE = "OPERATOR_WALLET_PASSWORD"  # noqa: S105 - the name of a variable
_TIMEOUT_S = 30.0
_DAY_MS = 86_400_000

Url = Annotated[str, typer.Option("--url", envvar="FABRIC_URL", help="The control plane.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wallet = Annotated[
    Path | None, typer.Option(help=f"Keystore file of the wallet; without it, the key in {_KEY_VARIABLE} is used.")
]
PoolName = Annotated[str, typer.Argument(metavar="POOL")]
GpuId = Annotated[str, typer.Argument(metavar="GPU", help="Its public id; `fabric ledger gpu` shows the same.")]
Entrance = Annotated[str, typer.Option(help="Who may join: own, invited or open.")]
Bps = Annotated[int, typer.Option(min=0, max=10_000, help="Of 10,000; operator, shared and used make 10,000.")]
Payout = Annotated[str, typer.Option(help="0x-address that gets the operator's part.")]
Ceiling = Annotated[str, typer.Option(help="USD per GPU-hour above which a GPU is not available; '' for none.")]
Weight = Annotated[list[str] | None, typer.Option(help="MODEL=WEIGHT of an available GPU-ms; may be repeated.")]


@app.command("list")
def list_pools(*, url: Url, as_json: Json = False) -> None:
    """All pools."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = _call("GET", url, f"/v1/pools?cursor={cursor}")
        found, cursor = found + page["pools"], page["next"]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for pool in found:
        terms = pool["terms"] or pool["next_terms"]
        print(f"{pool['id']}  {terms['entrance']}  {_parts(terms)}  {pool['members']} GPUs")


@app.command()
def show(pool: PoolName, *, url: Url, as_json: Json = False) -> None:
    """A pool's terms and members."""
    found = _call("GET", url, f"/v1/pools/{pool}")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['id']}: founded by {found['founder']} ({found['operator'] or 'no operator here'})")
    for name in ("terms", "next_terms"):
        terms = found[name]
        if terms:
            ceiling = terms["price_ceiling_dc"]
            limit = "no price ceiling" if ceiling is None else f"at most {format_dc(int(ceiling))} per GPU-hour"
            print(f"from epoch {terms['from_epoch']}: {terms['entrance']}, {_parts(terms)}, {limit}")
    for gpu in found["gpus"]:
        until = "" if gpu["until_epoch"] is None else f" to before {gpu['until_epoch']}"
        print(f"  {gpu['gpu']}  from epoch {gpu['from_epoch']}{until}")


@app.command()
def create(
    pool: PoolName,
    *,
    url: Url,
    used_bps: Bps = 10_000,
    shared_bps: Bps = 0,
    operator_bps: Bps = 0,
    entrance: Entrance = "own",
    payout: Payout = "",
    ceiling: Ceiling = "",
    weight: Weight = None,
    wallet: Wallet = None,
    as_json: Json = False,
) -> None:
    """Found a pool; its terms hold from the next epoch."""
    parts = (operator_bps, shared_bps, used_bps)
    _say_terms("create", pool, parts, entrance, payout, ceiling, weight, url, wallet, as_json=as_json)


@app.command()
def terms(
    pool: PoolName,
    *,
    url: Url,
    used_bps: Bps = 10_000,
    shared_bps: Bps = 0,
    operator_bps: Bps = 0,
    entrance: Entrance = "own",
    payout: Payout = "",
    ceiling: Ceiling = "",
    weight: Weight = None,
    wallet: Wallet = None,
    as_json: Json = False,
) -> None:
    """Other terms, once every member who leaves now is out."""
    parts = (operator_bps, shared_bps, used_bps)
    _say_terms("terms", pool, parts, entrance, payout, ceiling, weight, url, wallet, as_json=as_json)


@app.command()
def invite(
    pool: PoolName,
    gpu: GpuId,
    *,
    url: Url,
    days: Annotated[int, typer.Option(min=1, max=365, help="For how long the invitation holds.")] = 30,
    wallet: Wallet = None,
    as_json: Json = False,
) -> None:
    """Invite a GPU; its owner accepts."""
    _say_move("invite", pool, gpu, url, wallet, days=days, as_json=as_json)


@app.command()
def accept(pool: PoolName, gpu: GpuId, *, url: Url, wallet: Wallet = None, as_json: Json = False) -> None:
    """Accept an invitation: the GPU is in the pool from the next epoch."""
    _say_move("join", pool, gpu, url, wallet, as_json=as_json)


@app.command()
def join(pool: PoolName, gpu: GpuId, *, url: Url, wallet: Wallet = None, as_json: Json = False) -> None:
    """Join an open pool, or one's own: from the next epoch."""
    _say_move("join", pool, gpu, url, wallet, as_json=as_json)


@app.command()
def leave(pool: PoolName, gpu: GpuId, *, url: Url, wallet: Wallet = None, as_json: Json = False) -> None:
    """Take a GPU out, after the exit delay; what it earned stays its own."""
    _say_move("leave", pool, gpu, url, wallet, as_json=as_json)


@app.command()
def kick(pool: PoolName, gpu: GpuId, *, url: Url, wallet: Wallet = None, as_json: Json = False) -> None:
    """Take a member of poor reputation out, after the exit delay."""
    _say_move("kick", pool, gpu, url, wallet, as_json=as_json)


def _say_terms(
    action: str,
    pool: str,
    parts: tuple[int, int, int],
    entrance: str,
    payout: str,
    ceiling: str,
    weights: list[str] | None,
    url: str,
    wallet: Path | None,
    *,
    as_json: bool,
) -> None:
    try:
        ceiling_dc = usd_to_dc_down(ceiling) if ceiling else 0
        statement = TermsStatement(
            fabric=_fabric(url),
            action=action,
            pool=pool,
            entrance=entrance,
            operator_bps=parts[0],
            shared_bps=parts[1],
            used_bps=parts[2],
            operator_payout=payout,
            price_ceiling_dc=ceiling_dc,
            model_weights=dict(_weight(text) for text in weights or ()),
            issued_ms=SystemClock().now_ms(),
        )
    except (PoolStatementError, ValueError) as error:
        raise InvalidRequest(str(error)) from None
    _send(statement, url, wallet, as_json=as_json)


def _say_move(action: str, pool: str, gpu: str, url: str, wallet: Path | None, *, days: int = 0, as_json: bool) -> None:
    now = SystemClock().now_ms()
    statement = MoveStatement(
        fabric=_fabric(url),
        action=action,
        pool=pool,
        gpu=gpu,
        issued_ms=now,
        expires_ms=now + days * _DAY_MS if days else 0,
    )
    _send(statement, url, wallet, as_json=as_json)


def _send(statement: Statement, url: str, keystore: Path | None, *, as_json: bool) -> None:
    body = {"statement": statement.to_json(), "signature": "0x" + _sign(keystore, statement.typed_data()).hex()}
    path = "/v1/pools" if statement.action == "create" else f"/v1/pools/{statement.pool}/moves"
    done = _call("POST", url, path, body)
    if as_json:
        print(json.dumps(done))
    else:
        print(f"{done['pool']}: {done['action']} holds from epoch {done['from_epoch']} on")


def _sign(keystore: Path | None, typed_data: dict[str, Any]) -> bytes:
    key = os.environ.get(_KEY_VARIABLE)
    if keystore is None and not key:
        raise InvalidRequest(f"no wallet: give --wallet KEYSTORE, or the key in {_KEY_VARIABLE}")
    try:
        if keystore is None:
            return from_key(key or "").sign(typed_data)
        password = os.environ.get(_PASSWORD_VARIABLE)
        secret = getpass.getpass("Keystore password: ") if password is None else password
        return open_keystore(keystore, secret).sign(typed_data)
    except WalletError as error:
        raise InvalidRequest(str(error)) from None


def _fabric(url: str) -> str:
    return str(_call("GET", url, "/healthz")["fabric_id"])


def _weight(text: str) -> tuple[str, int]:
    model, _, weight = text.rpartition("=")
    if not model or not weight.isdigit():
        raise InvalidRequest(f"{text!r} is not a weight; write MODEL=WEIGHT, such as H100=10")
    return model, int(weight)


def _parts(terms: dict[str, Any]) -> str:
    return f"operator {terms['operator_bps']}, shared {terms['shared_bps']}, used {terms['used_bps']} bps"


def _call(method: str, url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        answer = httpx.request(method, url.rstrip("/") + path, json=body, timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ServiceError(f"{url} does not answer: {error}", retryable=True) from None
    try:
        members = answer.json()
    except ValueError:
        raise ServiceError(f"{url} answered {answer.status_code} with something else than JSON") from None
    if answer.is_error:
        raise from_problem(members, answer.status_code)
    return members
