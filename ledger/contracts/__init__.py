"""The contracts as package data: ABI and creation bytecode of each, compiled beforehand.

No compiler, no Node, no chain: it reads files.
"""

import json
from importlib import resources
from typing import Any, Final

NAMES: Final = ("BCT", "PriceOracle", "DataCredits", "GpuNFT", "Settlement")


def artifact(name: str) -> tuple[list[dict[str, Any]], bytes]:
    """ABI and creation bytecode (without constructor arguments) of the contract ``name``.

    Raises:
        KeyError: there is no such contract; the message lists those there are.
    """
    if name not in NAMES:
        raise KeyError(f"there is no contract {name!r}; there are {', '.join(NAMES)}")
    text = resources.files(__name__).joinpath("artifacts", f"{name}.json").read_text("utf-8")
    parsed = json.loads(text)
    return parsed["abi"], bytes.fromhex(parsed["bytecode"].removeprefix("0x"))
