"""What the embedded fabric's parts are told: keys, customer, operator, prices, simulated GPUs. Made once, then kept."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey

from fabric.local.home import Home, damaged, json_of, write_private
from fabric.wire.amounts import DC_PER_USD

TEST_BALANCE_DC = 10_000 * DC_PER_USD
CUSTOMER = "cus_embedded"
OPERATOR = "op_embedded"
PYPI = "https://pypi.org/simple"
SIMULATED_GPUS = "H100:2,L4:2"
"""Offered where NVML finds no GPU."""

PRICES_DC: dict[str, dict[str, int]] = {
    model: {"spot": spot, "on_demand": on_demand}
    for model, spot, on_demand in (
        ("B200", 280_000, 450_000),
        ("H200", 190_000, 320_000),
        ("H100", 140_000, 250_000),
        ("A100", 80_000, 140_000),
        ("L40S", 50_000, 90_000),
        ("L40", 45_000, 80_000),
        ("A10", 35_000, 60_000),
        ("L4", 30_000, 50_000),
        ("T4", 15_000, 30_000),
        ("V100", 25_000, 50_000),
        ("RTX 4090", 30_000, 50_000),
        ("RTX 3090", 15_000, 30_000),
    )
}
"""DC per GPU-hour; on one's own machine the prices only make the bills look like bills."""


def prepare_keys(home: Home, *, test_balance: bool = True) -> None:
    """Make what is missing: the customer's API key, the operator's session key and payout address, Ray's token.

    Args:
        home: where they are kept.
        test_balance: whether the customer gets one; with a chain it has what it deposits there.

    Raises:
        ServiceError: something is there and is not what it should be.
    """
    if not home.api_key_file.exists():
        write_private(home.api_key_file, "fk_" + secrets.token_hex(32) + "\n")
    if not home.ray_token_file.exists():
        write_private(home.ray_token_file, secrets.token_hex(32))
    key_file = home.agent / "session.key"
    if not key_file.exists():
        write_private(key_file, SigningKey.generate().encode(HexEncoder).decode() + "\n")
    if not home.bootstrap_file.exists():
        write_private(home.bootstrap_file, json.dumps(_bootstrap(home, test_balance=test_balance), indent=1) + "\n")
    else:
        _check_declared(home)
        _declare_account(home)


def agent_config(
    home: Home, *, url: str, ray_address: str, gateway_port: int, simulated: str, isolation: str
) -> dict[str, Any]:
    """The agent's JSON."""
    return {
        "url": url,
        "operator": OPERATOR,
        "cluster": "embedded",
        "region": "local",
        "session_key_file": str(home.agent / "session.key"),
        "state_dir": str(home.agent),
        "ray_address": ray_address,
        "gateway_host": "127.0.0.1",
        "gateway_port": gateway_port,
        "gateway_tls": False,
        "isolation": isolation,
        "prices": PRICES_DC,
        "simulated_gpus": simulated,
        **packages(os.environ),
    }


def packages(environ: Mapping[str, str]) -> dict[str, str]:
    """Where runs' packages come from: as this person's environment tells pip, since it is this person's machine."""
    index, folder = environ.get("PIP_INDEX_URL", ""), environ.get("PIP_FIND_LINKS", "")
    if not Path(folder).is_absolute() or not Path(folder).is_dir():
        return {"pip_index": index}
    alone = environ.get("PIP_NO_INDEX", "0").lower() in ("1", "true", "yes", "on")
    return {"pip_index": "" if alone else index or PYPI, "pip_find_links": folder}


def simulated_gpus(wanted: str | None) -> str:
    """What to simulate: as set, else the default where NVML finds no GPU, else nothing."""
    if wanted is not None:
        return "" if wanted.lower() in ("0", "none") else wanted
    return "" if _real_gpus() else SIMULATED_GPUS


def _real_gpus() -> int:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no module, no library, no driver: all mean that there is none to offer
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def _check_declared(home: Home) -> None:
    """Raises ServiceError when customer and operator are declared with other keys than those that are there."""
    declared = json_of(home.bootstrap_file)
    try:
        api_key, session_key = declared["customers"][0]["api_key_sha256"], declared["operators"][0]["session_key"]
    except (KeyError, IndexError, TypeError):
        raise damaged(home.bootstrap_file, "it declares no customer and operator") from None
    if api_key != _digest(home.read_api_key()):
        raise damaged(home.bootstrap_file, "it does not belong to the API key beside it")
    if session_key != _session_key(home):
        raise damaged(home.bootstrap_file, "it does not belong to the session key in agent/")


def _declare_account(home: Home) -> None:
    """In a home from before operators had an account of their own, the customer is it: it is one person's machine."""
    declared = json_of(home.bootstrap_file)
    if "account" not in declared["operators"][0]:
        declared["operators"][0]["account"] = CUSTOMER
        write_private(home.bootstrap_file, json.dumps(declared, indent=1) + "\n")


def _session_key(home: Home) -> str:
    """The public half of the agent's key, in hex."""
    try:
        key = SigningKey((home.agent / "session.key").read_text(encoding="ascii").strip().encode(), HexEncoder)
    except ValueError:
        raise damaged(home.agent / "session.key", "it is not a key") from None
    return key.verify_key.encode(HexEncoder).decode()


def _bootstrap(home: Home, *, test_balance: bool) -> dict[str, Any]:
    customer = {
        "id": CUSTOMER,
        "name": "you",
        "api_key_sha256": _digest(home.read_api_key()),
        "test_balance_dc": TEST_BALANCE_DC if test_balance else 0,
        "admin": True,
    }
    operator = {
        "id": OPERATOR,
        "name": "embedded",
        "session_key": _session_key(home),
        "payout": "0x" + secrets.token_hex(20),
        "account": CUSTOMER,
    }
    return {"customers": [customer], "operators": [operator]}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
