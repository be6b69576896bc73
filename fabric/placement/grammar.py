"""What a customer writes to ask for GPUs, as values: `parse_gpu("A100,H100:80GB..:8")`.

```
request = spec | list of specs (ordered preference) | set of specs (any of them, cheapest first)
spec    = [vendor ":"] [names] [":" memory] [":" count]        every part optional, at least one given
names   = name {"," name}                                      a bare first number is a name: `4090`
memory  = size | size ".." [size] | ".." size                  of one GPU
count   = int | int ".." [int] | fraction 0.001 to 0.999       GPUs on each node, or a share of one
```

The leading colon of `memory` and `count` may be left out where nothing stands before them (`24GB..`). A count alone is
written `:8` and after a vendor `nvidia::8`, because a first number is a name.

It decides what is asked for, not whether anybody has it: names are matched against the inventory by `GpuSpec.accepts`.
It needs no third-party module, because the light SDK parses with it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

VENDORS = ("nvidia", "amd", "intel")
WHOLE_MILLI = 1000

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([KMGT]I?B|B)", re.IGNORECASE)
_COUNT = re.compile(r"(\d+)(?:(\.\.)(\d+)?)?")
_SOLD_GB = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 120, 128, 141, 144, 180, 192, 256, 288)
_FRACTION = re.compile(r"0?\.(\d{1,3})")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._+/-]*[A-Za-z0-9+])?")
_TOKEN = re.compile(r"[a-z0-9+]+")

_LEGAL = "[vendor:][names][:memory][:count], as in H100, H100:8, A100:80GB:8, 24GB.., L4:0.5, amd:MI300X:2..8"


class GrammarError(ValueError):
    """A text that is not of the grammar.

    Attributes:
        text: the whole text that was given.
        position: index of the first wrong character in it, from 0.
        legal: what could stand there.
    """

    def __init__(self, text: str, position: int, problem: str, legal: str) -> None:
        super().__init__(f"{text!r}, character {position + 1}: {problem}; legal here: {legal}")
        self.text = text
        self.position = position
        self.legal = legal


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One way to satisfy a request: `count_min` to `count_max` GPUs on each node, or `milli` thousandths of one.

    Attributes:
        vendor: one of `VENDORS`, or "" for any.
        names: model names as the customer wrote them; empty for any model.
        memory_min_bytes: nominal size as labelled (80GB = 80·10⁹), 0 for no lower bound. See `accepts_memory`.
        memory_max_bytes: the same, None for no upper bound.
        count_min: GPUs on each node, at least (1 for a fraction; 0 only for work that needs no GPU).
        count_max: at most; None for no upper bound.
        milli: 1000 for whole GPUs, 1 to 999 for a share of one.
    """

    vendor: str = ""
    names: tuple[str, ...] = ()
    memory_min_bytes: int = 0
    memory_max_bytes: int | None = None
    count_min: int = 1
    count_max: int | None = 1
    milli: int = WHOLE_MILLI

    def accepts(self, vendor: str, model: str, memory_bytes: int) -> bool:
        """Whether a GPU of the inventory is of this kind."""
        if self.vendor and self.vendor != vendor.lower():
            return False
        if self.names and not any(name_matches(name, model) for name in self.names):
            return False
        return self.accepts_memory(memory_bytes)

    def accepts_memory(self, memory_bytes: int) -> bool:
        """Compare a reported size with nominal bounds as a person reading the label would.

        Vendors label cards in round gigabytes and drivers report something near them: an 80 GB H100 has 81,559 MiB,
        a 24 GB RTX 4090 24,564 MiB, a 24 GB L4 23,034 MiB, a 16 GB T4 15,109 MiB. So a card is at least `n` GB when it
        reports 97 % of n·10⁹ bytes, and at most `n` GB when it reports no more than n·2³⁰.
        """
        if memory_bytes * 100 < self.memory_min_bytes * 97:
            return False
        return self.memory_max_bytes is None or memory_bytes * 10**9 <= self.memory_max_bytes * 2**30

    def __str__(self) -> str:
        memory, count = self._memory_text(), self._count_text()
        names = ",".join(self.names)
        if not (self.vendor or names or memory):
            return f":{count or 1}"
        text = f"{self.vendor}:{names}" if self.vendor else names
        if memory:
            text += f":{memory}" if text else memory
        return text + (f":{count}" if count else "")

    def _memory_text(self) -> str:
        low, high = self.memory_min_bytes, self.memory_max_bytes
        if high is None:
            return f"{size_text(low)}.." if low else ""
        if low == high:
            return size_text(low)
        return (size_text(low) if low else "") + ".." + size_text(high)

    def _count_text(self) -> str:
        if self.milli != WHOLE_MILLI:
            return f"0.{self.milli:03d}".rstrip("0")
        if self.count_max is None:
            return f"{self.count_min}.."
        if self.count_min != self.count_max:
            return f"{self.count_min}..{self.count_max}"
        return "" if self.count_min == 1 else str(self.count_min)


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """Alternatives: in order of preference when `ordered`, else equally good and the cheapest wins."""

    specs: tuple[GpuSpec, ...]
    ordered: bool = True

    def __str__(self) -> str:
        texts = [str(spec) for spec in self.specs]
        return texts[0] if len(texts) == 1 else (" > " if self.ordered else " | ").join(texts)

    def source(self) -> str | list[str] | set[str]:
        """What `parse_gpu` reads back as this same request."""
        texts = [str(spec) for spec in self.specs]
        if len(texts) == 1:
            return texts[0]
        return texts if self.ordered else set(texts)


ANY_GPU = GpuRequest((GpuSpec(),))
NO_GPU = GpuRequest((GpuSpec(count_min=0, count_max=0),))


def parse_gpu(request: str | Iterable[str] | None) -> GpuRequest:
    """Read a customer's GPU request; None is one GPU of any model.

    A set is sorted by text, so that equal sets give equal requests.

    Raises:
        GrammarError: not of the grammar; says which character and what would be legal.
    """
    if request is None:
        return ANY_GPU
    if isinstance(request, str):
        return GpuRequest((_parse_spec(request),))
    if isinstance(request, (set, frozenset)):
        return _alternatives(sorted({_parse_item(item) for item in request}, key=str), ordered=False)
    if not isinstance(request, (list, tuple)):
        raise GrammarError(repr(request), 0, f"a {type(request).__name__}", "a string, a list or a set of strings")
    return _alternatives([_parse_item(item) for item in request], ordered=True)


def parse_size(text: str | int) -> int:
    """Bytes of "32GB" (decimal) or "32GiB" (binary); an int is bytes already. Fractions round down to a byte.

    Raises:
        GrammarError: no number, no unit or a negative one.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise GrammarError(str(text), 0, "a negative size", "0 or more bytes")
        return text
    if not isinstance(text, str):
        raise GrammarError(repr(text), 0, f"a {type(text).__name__}", "a size such as 32GB")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise GrammarError(text, _first_wrong(text), "not a size", "a number and a unit, such as 32GB or 512MiB")
    return _size_bytes(match)


def size_text(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads back as exactly this many bytes."""
    for unit in ("TB", "TiB", "GB", "GiB", "MB", "MiB", "KB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit.upper()] == 0:
            return f"{size_bytes // _UNITS[unit.upper()]}{unit}"
    return f"{size_bytes}B"


def nominal_size_text(memory_bytes: int) -> str:
    """A card's size as its label says it, by the rule of `GpuSpec.accepts_memory`: 85.5·10⁹ bytes are an 80GB card.

    The smallest size sold so far that the card counts as; where none comes near it, the reported one in whole GB.
    """
    sold = [size for size in _SOLD_GB if memory_bytes * 100 >= size * 97 * 10**9 and memory_bytes <= size * 2**30]
    if memory_bytes % 10**9 and sold:
        return f"{min(sold)}GB"
    return f"{max(1, round(memory_bytes / 10**9))}GB"


@lru_cache(maxsize=4096)
def name_matches(name: str, model: str) -> bool:
    """Whether `name` names `model`: the words of the name stand in the model's, in this order and next to each other.

    Case, spaces and dashes do not count: `4090`, `rtx-4090` and `RTX4090` name "NVIDIA GeForce RTX 4090", `H100` names
    "NVIDIA H100 80GB HBM3", and `L4` does not name "NVIDIA L40S".
    """
    wanted = "".join(_TOKEN.findall(name.lower()))
    tokens = _TOKEN.findall(model.lower())
    starts = range(len(tokens))
    return any("".join(tokens[i:j]) == wanted for i in starts for j in range(i + 1, len(tokens) + 1))


def _alternatives(specs: list[GpuSpec], *, ordered: bool) -> GpuRequest:
    if not specs:
        raise GrammarError("", 0, "an empty list of alternatives", _LEGAL)
    distinct = tuple(dict.fromkeys(specs))
    return GpuRequest(distinct, ordered=ordered or len(distinct) == 1)


def _parse_item(item: object) -> GpuSpec:
    if not isinstance(item, str):
        raise GrammarError(repr(item), 0, f"a {type(item).__name__} inside the list", "a string")
    return _parse_spec(item)


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    position: int


def _parse_spec(text: str) -> GpuSpec:
    parts = _parts(text)
    if not any(part.text for part in parts):
        raise GrammarError(text, 0, "nothing is asked for", _LEGAL)
    vendor = ""
    if parts[0].text.lower() in VENDORS:
        vendor = parts.pop(0).text.lower()
    names: tuple[str, ...] = ()
    if parts and not _is_memory(parts[0].text):
        names = _names(text, parts.pop(0))
    low, high = 0, None
    if parts and _is_memory(parts[0].text):
        low, high = _memory(text, parts.pop(0))
    count = (1, 1, WHOLE_MILLI)
    if parts:
        count = _count(text, parts.pop(0))
    if parts:
        raise GrammarError(text, parts[0].position, "one part too many", _LEGAL)
    return GpuSpec(vendor, names, low, high, *count)


def _parts(text: str) -> list[_Part]:
    parts, position = [], 0
    for piece in text.split(":"):
        indent = len(piece) - len(piece.lstrip())
        parts.append(_Part(piece.strip(), position + indent))
        position += len(piece) + 1
    return parts


def _is_memory(text: str) -> bool:
    bare = text.replace("..", " ").split()
    return bool(bare) and all(_SIZE.fullmatch(piece) for piece in bare)


def _names(text: str, part: _Part) -> tuple[str, ...]:
    if not part.text:
        return ()
    names, position = [], part.position
    for piece in part.text.split(","):
        name = piece.strip()
        if _NAME.fullmatch(name) is None or ".." in name:
            raise GrammarError(text, _wrong_in_name(piece, position), "not a model name", "a name such as H100 or 4090")
        names.append(name)
        position += len(piece) + 1
    return tuple(names)


def _wrong_in_name(piece: str, position: int) -> int:
    for index, (one, two) in enumerate(pairwise(piece + " ")):
        if one + two == ".." or not re.match(r"[A-Za-z0-9 ._+/-]", one):
            return position + index
    return position


def _memory(text: str, part: _Part) -> tuple[int, int | None]:
    low_text, dots, high_text = part.text.partition("..")
    low = _gpu_size(low_text) if low_text.strip() else 0
    if not dots:
        return low, low
    if not high_text.strip():
        return low, None
    high = _gpu_size(high_text)
    if high < low:
        at = part.position + len(low_text) + 2
        raise GrammarError(text, at, "the upper bound is below the lower", f"{size_text(low)} or more")
    return low, high


def _gpu_size(text: str) -> int:
    """GPU memory is nominal: 24GiB and 24GB are the same label, so both become 24·10⁹."""
    return parse_size(re.sub(r"(?i)([KMGT])IB", r"\1B", text.strip()))


def _count(text: str, part: _Part) -> tuple[int, int | None, int]:
    legal = "a number of GPUs (8), a range (2..8, 2..) or a share of one (0.001 to 0.999)"
    fraction = _FRACTION.fullmatch(part.text)
    if fraction is not None:
        milli = int(fraction[1].ljust(3, "0"))
        if milli == 0:
            raise GrammarError(text, part.position, "a share of nothing", legal)
        return 1, 1, milli
    match = _COUNT.fullmatch(part.text)
    if match is None:
        raise GrammarError(text, part.position + _first_wrong_count(part.text), "not a count", legal)
    low = int(match[1])
    high = low if match[2] is None else int(match[3]) if match[3] else None
    if low == 0:
        raise GrammarError(text, part.position, "zero GPUs", legal)
    if high is not None and high < low:
        raise GrammarError(text, part.position + match.start(3), "the upper bound is below the lower", f"{low} or more")
    return low, high, WHOLE_MILLI


def _size_bytes(match: re.Match[str]) -> int:
    whole, decimals, unit = int(match[1]), match[2] or "", _UNITS[match[3].upper()]
    return whole * unit + int(decimals or 0) * unit // 10 ** len(decimals)


def _first_wrong(text: str) -> int:
    match = re.match(r"\s*\d+(\.\d+)?\s*([KMGT]i?B?)?", text, re.IGNORECASE)
    return match.end() if match else 0


def _first_wrong_count(text: str) -> int:
    match = re.match(r"0?\.\d{1,3}|\d*(\.\.\d*)?", text)
    return min(match.end() if match else 0, max(len(text) - 1, 0))
