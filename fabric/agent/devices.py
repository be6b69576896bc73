"""Market names of GPU models, from the names that devices give themselves. Pure."""

import re

_NVIDIA_WORDS = frozenset({"NVIDIA", "TESLA", "GEFORCE", "QUADRO", "TITAN"})
_KEPT_SUFFIXES = frozenset({"TI", "SUPER", "ADA", "SXM"})
_MODEL = re.compile(r"^(?:[A-Z]{0,3}\d{1,4}[A-Z]{0,2}|V100S?)$")


def market_name(device_name: str) -> str:
    """The name under which a device is offered: `NVIDIA H100 80GB HBM3` is an `H100`.

    Words for the maker, the form factor and the memory are left out; `RTX 4090` becomes `RTX4090`, `RTX 6000 Ada` becomes
    `RTX6000ADA`. A name of which nothing is left is kept whole, without spaces.
    """
    words = [word for word in re.split(r"[\s\-_/]+", device_name.upper()) if word and word not in _NVIDIA_WORDS]
    name = ""
    for word in words:
        if not name and word in ("RTX", "GTX"):
            name = word
        elif name in ("", "RTX", "GTX") and _MODEL.match(word):
            name += word
        elif name and word in _KEPT_SUFFIXES - {"SXM"}:
            name += word
        elif name not in ("", "RTX", "GTX"):
            break
    return name or "".join(device_name.upper().split())
