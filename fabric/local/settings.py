"""What a person may set for the embedded fabric in the environment."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.wire.errors import InvalidRequest

DEFAULT_LINGER_S = 60.0
CONTROL_KEYS = frozenset(
    {
        "FABRIC_FINALITY_S",
        "FABRIC_EPOCH_S",
        "FABRIC_TEST_BCT_PRICE_DC",
        "FABRIC_LOG_LEVEL",
        "FABRIC_CHAIN_URL",
        "FABRIC_CHAIN_ADDRESSES",
        "FABRIC_CHAIN_KEYSTORE",
        "FABRIC_CHAIN_KEYSTORE_PASSWORD",
        "FABRIC_CHAIN_KEY",
        "FABRIC_CHAIN_CONFIRMATIONS",
    }
)
"""Keys of the control plane that a person may set for the embedded one too; its settings class reads them."""
ISOLATIONS = ("none", "bubblewrap")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """The embedded fabric's keys.

    Attributes:
        home: `FABRIC_HOME`, its state; `~/.fabric` unless set.
        linger_s: `FABRIC_EMBEDDED_LINGER_S`, seconds it stays after its last client process is gone.
        simulated_gpus: `FABRIC_SIMULATED_GPUS`, for example `H100:2,L4:2`; None: simulate only where NVML finds no GPU.
        isolation: `FABRIC_ISOLATION`, `none` (the default: it is your own code) or `bubblewrap`, which operators use.
        port: `FABRIC_PORT`, of its control plane; 0: a free one.
        nodes: `FABRIC_EMBEDDED_NODES`, so many nodes with simulated GPUs, for runs on several nodes; 1 to 4.
    """

    home: Path
    linger_s: float = DEFAULT_LINGER_S
    simulated_gpus: str | None = None
    port: int = 0
    isolation: str = "none"
    nodes: int = 1

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "LocalSettings":
        """Raises InvalidRequest on a value that is not what its key takes."""
        home = Path(environ.get("FABRIC_HOME") or "~/.fabric").expanduser().absolute()
        linger_s = _number(environ, "FABRIC_EMBEDDED_LINGER_S", DEFAULT_LINGER_S, 7 * 86_400)
        port = _number(environ, "FABRIC_PORT", 0, 65_535)
        return cls(home, linger_s, _simulated(environ), int(port), _isolation(environ), _nodes(environ))


def _simulated(environ: Mapping[str, str]) -> str | None:
    """With a count for each model."""
    text = environ.get("FABRIC_SIMULATED_GPUS") or None
    if text is None or text.lower() in ("0", "none"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[A-Za-z0-9]+(:[1-9]\d{0,2})?", part) for part in parts):
        raise InvalidRequest(f"FABRIC_SIMULATED_GPUS={text!r} is neither MODEL:COUNT, such as H100:2,L4:2, nor none")
    return ",".join(part if ":" in part else f"{part}:1" for part in parts)


def _nodes(environ: Mapping[str, str]) -> int:
    text = environ.get("FABRIC_EMBEDDED_NODES") or "1"
    if text not in {"1", "2", "3", "4"}:
        raise InvalidRequest(f"FABRIC_EMBEDDED_NODES={text!r} is not a number of nodes from 1 to 4")
    return int(text)


def _isolation(environ: Mapping[str, str]) -> str:
    isolation = environ.get("FABRIC_ISOLATION") or ISOLATIONS[0]
    if isolation not in ISOLATIONS:
        raise InvalidRequest(f"FABRIC_ISOLATION={isolation!r} is unknown; allowed: {', '.join(ISOLATIONS)}")
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        raise InvalidRequest("FABRIC_ISOLATION=bubblewrap needs the program bwrap; install the package bubblewrap")
    return isolation


def _number(environ: Mapping[str, str], key: str, default: float, most: float) -> float:
    text = environ.get(key)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise InvalidRequest(f"{key}={text!r} is not a number from 0 to {most:g}")
    return number
