"""Market names of GPU models, from the names that devices give themselves. Pure."""

import re

_MAKERS = frozenset({"NVIDIA", "TESLA", "GEFORCE", "QUADRO"})
_FAMILIES = frozenset({"RTX", "GTX", "TITAN"})
_VARIANTS = frozenset({"TI", "SUPER", "ADA"})
_MODEL = re.compile(r"[A-Z]{0,2}\d{1,4}[A-Z]?(?<!GB)$")


def market_name(device_name: str) -> str:
    """The name under which a device is offered: `NVIDIA H100 80GB HBM3` is an `H100`.

    Words for the maker, the form factor and the memory are left out: `NVIDIA GeForce RTX 4090` is an `RTX 4090`, and
    `NVIDIA RTX 6000 Ada Generation` an `RTX 6000 ADA`. A name of which nothing would be left is kept whole.
    """
    words = [word for word in re.split(r"[\s\-_/]+", device_name.upper()) if word and word not in _MAKERS]
    family = words.pop(0) if words and words[0] in _FAMILIES else ""
    number = next((word for word in words if _MODEL.match(word)), "")
    if not number:
        return " ".join(device_name.upper().split())
    behind = words[words.index(number) + 1 :]
    variant = next((word for word in behind if word in _VARIANTS), "")
    return " ".join(filter(None, (family, number, variant)))
