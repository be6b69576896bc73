"""The keywords of `run`, `map` and `submit` as one frozen value in the wire's units. Says what is legal; sends nothing.

Everything a keyword can say wrong is refused here, before anything leaves the process.
"""

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from fabric.client.env import Env
from fabric.client.secret import Secret, read_secrets
from fabric.placement.grammar import GrammarError, parse_gpu, parse_size
from fabric.wire.amounts import usd_to_dc_down
from fabric.wire.channel import MAX_AT_ONCE
from fabric.wire.errors import InvalidRequest
from fabric.wire.retry import Retry
from fabric.wire.surroundings import GANG, NONE, check_network

TIERS = ("spot", "on_demand")
OBJECTIVES = ("cost", "latency")
DEFAULT_LINGER_S = 2.0
DEFAULT_STARTUP_TIMEOUT_MS = 120_000
DEFAULT_INSTALL_TIMEOUT_MS = 600_000
"""For a run whose packages are to be installed."""
DEFAULT_QUEUE_TIMEOUT_MS = 600_000
MAX_DURATION_S = 366 * 24 * 3600
MAX_PARALLEL = 1024
MAX_RTT_MS = 60_000
MAX_NODES = 1024


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run asks for. Amounts in DC, times in ms, memory in bytes, CPU in thousandths of a core; 0 = not asked.

    Attributes:
        gpu: specs of the GPU grammar, in their canonical spelling.
        checkpoint: a run whose newest checkpoints this one begins with.
        gpu_any: whether they are a set (cheapest first) rather than an order of preference.
        linger_s: how long the run's lease is kept afterwards.
        returns: a class, or an annotation of classes, that results may be rebuilt into.
        trust: whether results come as pickles, which this process loads.
        max_parallel: leases a map may hold at once; None lets the SDK choose.
        max_concurrency: calls of an actor that run at once.
    """

    gpu: tuple[str, ...] = (":1",)
    gpu_any: bool = False
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    tier: str = "on_demand"
    slot: str = ""
    max_price_dc: int | None = None
    budget_dc: int | None = None
    queue_timeout_ms: int = DEFAULT_QUEUE_TIMEOUT_MS
    startup_timeout_ms: int = DEFAULT_STARTUP_TIMEOUT_MS
    timeout_ms: int = 0
    linger_s: float = DEFAULT_LINGER_S
    retry: Retry = Retry()  # noqa: RUF009 - frozen
    region: tuple[str, ...] = ()
    near: str = ""
    max_rtt_ms: float | None = None
    operators_allow: tuple[str, ...] = ()
    operators_deny: tuple[str, ...] = ()
    min_reputation: int = 0
    min_verification: int = 0
    interconnect: str = ""
    objective: str = "cost"
    name: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    idempotency_key: str = ""
    dry_run: bool = False
    returns: Any = field(default=None, compare=False)
    trust: bool = False
    env: Env | None = None
    nodes: int = 1
    nodes_min: int = 0
    network: str | tuple[str, ...] = NONE
    checkpoint: str = ""
    command: str | tuple[str, ...] | None = None
    workdir: str | None = None
    secrets: tuple[Secret, ...] = ()
    max_parallel: int | None = None
    max_concurrency: int = 1
    ordered: bool = True
    return_exceptions: bool = False

    @property
    def lease_key(self) -> tuple[Any, ...]:
        """Runs whose keys are equal can use the same lease, if its price suits them."""
        return (
            self.gpu,
            self.gpu_any,
            self.cpu_milli,
            self.memory_bytes,
            self.disk_bytes,
            self.tier,
            self.slot,
            self.region,
            self.near,
            self.max_rtt_ms,
            self.operators_allow,
            self.operators_deny,
            self.min_reputation,
            self.min_verification,
            self.interconnect,
            self.objective,
            self.env,
            self.network,
        )

    @property
    def measures(self) -> bool:
        """Whether it matters how far this process is from a gateway."""
        return not self.near and (self.max_rtt_ms is not None or self.objective == "latency")

    @property
    def own_lease(self) -> bool:
        """Whether the run must not share a lease with the runs before and after it."""
        return self.budget_dc is not None or bool(self.idempotency_key or self.checkpoint)

    def _network(self) -> str | list[str]:
        """Ranks of a gang reach each other unless they were given something else."""
        if self.nodes > 1 and self.network == NONE:
            return GANG
        return self.network if isinstance(self.network, str) else list(self.network)

    def request(self) -> dict[str, Any]:
        """The members of a RunRequest that come from keywords."""
        return {
            "name": self.name,
            "gpu": list(self.gpu),
            "gpu_any": self.gpu_any,
            "nodes": self.nodes,
            "nodes_min": self.nodes_min,
            "cpu_milli": self.cpu_milli,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "tier": self.tier,
            "slot": self.slot,
            "max_price_dc": self.max_price_dc,
            "budget_dc": self.budget_dc,
            "region": list(self.region),
            "near": self.near,
            "max_rtt_ms": self.max_rtt_ms,
            "operators_allow": list(self.operators_allow),
            "operators_deny": list(self.operators_deny),
            "min_reputation": self.min_reputation,
            "min_verification": self.min_verification,
            "interconnect": self.interconnect,
            "queue_timeout_ms": self.queue_timeout_ms,
            "startup_timeout_ms": self.startup_timeout_ms,
            "timeout_ms": self.timeout_ms,
            "retry": retry_request(self.retry),
            "objective": self.objective,
            "network": self._network(),
            **({"env": self.env.request()} if self.env is not None else {}),
            **({"checkpoint": self.checkpoint} if self.checkpoint else {}),
            "tags": dict(self.tags),
            "dry_run": self.dry_run,
        }


def retry_request(retry: Retry) -> dict[str, Any]:
    """A retry rule as the RunRequest states it."""
    return {
        "on": list(retry.on),
        "max": retry.max,
        "backoff_ms": int(retry.backoff * 1000),
        "exit_codes": list(retry.exit_codes),
    }


def read_options(verb: str, keywords: Mapping[str, Any], function: Callable[..., Any] | None = None) -> RunOptions:
    """The options that `keywords` of `fabric.<verb>` ask for.

    Args:
        verb: `run`, `map` or `submit`; some keywords belong to one of them.
        keywords: as the caller wrote them.
        function: the customer's, to recognise a keyword that was meant for it.

    Raises:
        InvalidRequest: an unknown keyword or an impossible value; says which and what is allowed.
    """
    allowed = _ALLOWED[verb]
    for keyword in keywords:
        if keyword not in allowed:
            raise InvalidRequest(_unknown(verb, keyword, allowed, function))
    slow = DEFAULT_INSTALL_TIMEOUT_MS if getattr(keywords.get("env"), "pip", ()) else DEFAULT_STARTUP_TIMEOUT_MS
    values: dict[str, Any] = {"startup_timeout_ms": slow}
    try:
        for name, given in keywords.items():
            values |= _READERS[name](name, given)
        return RunOptions(**values)
    except InvalidRequest:
        raise
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _unknown(verb: str, keyword: str, allowed: Iterable[str], function: Callable[..., Any] | None) -> str:
    if keyword in _parameters(function):
        name = getattr(function, "__name__", "the function")
        return (
            f"fabric.{verb}() has no keyword {keyword!r}, but {name} does: "
            f"give the function's own keywords as kwargs={{{keyword!r}: …}}"
        )
    near = difflib.get_close_matches(keyword, allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(allowed))}"
    return f"fabric.{verb}() has no keyword {keyword!r}; {hint}"


def _parameters(function: Callable[..., Any] | None) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters if function is not None else {}
    except (TypeError, ValueError):
        return frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(name for name, parameter in parameters.items() if parameter.kind in kinds)


def _gpu(_name: str, given: Any) -> dict[str, Any]:
    if isinstance(given, set):
        given = frozenset(given)
    try:
        specs, ordered = _parsed(tuple(given) if isinstance(given, list) else given)
    except GrammarError as error:
        raise InvalidRequest(f"gpu={given!r}: {error}", position=error.position) from None
    except TypeError:
        raise InvalidRequest(f"gpu={given!r} is not a string, or a list or set of strings such as 'H100:8'") from None
    return {"gpu": specs, "gpu_any": not ordered}


@lru_cache(maxsize=256)
def _parsed(given: Any) -> tuple[tuple[str, ...], bool]:
    request = parse_gpu(given)
    return tuple(str(spec) for spec in request.specs), request.ordered


def _cpu(name: str, given: Any) -> dict[str, Any]:
    try:
        milli = int(Decimal(str(given)) * 1000)
    except (InvalidOperation, ValueError, OverflowError):
        milli = 0
    if isinstance(given, bool) or not 0 < milli <= 1_000_000:
        raise InvalidRequest(f"{name}={given!r} is not a number of cores, such as 4 or 0.5")
    return {"cpu_milli": milli}


def _size(name: str, given: Any) -> dict[str, Any]:
    try:
        return {f"{name}_bytes": parse_size(given)}
    except GrammarError as error:
        raise InvalidRequest(f"{name}={given!r}: {error}") from None


def _choice(allowed: tuple[str, ...]) -> "_Reader":
    def read(name: str, given: Any) -> dict[str, Any]:
        if given not in allowed:
            near = difflib.get_close_matches(str(given), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidRequest(f"{name}={given!r} is not one of {', '.join(map(repr, allowed))}{hint}")
        return {name: given}

    return read


def _slot(name: str, given: Any) -> dict[str, Any]:
    """A slot is used by the tier `reserved`, and by no other."""
    if not isinstance(given, str) or not given:
        raise InvalidRequest(f"{name}={given!r} is not the id of a slot; `fabric slots list --mine` shows them")
    return {"slot": given, "tier": "reserved"}


def _usd(name: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {f"{name}_dc": None}
    try:
        dc = usd_to_dc_down(given)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from None
    if dc == 0:
        raise InvalidRequest(f"{name}={given!r} buys nothing; the smallest amount is USD 0.00001")
    return {f"{name}_dc": dc}


def _duration(*, zero: bool) -> "_Reader":
    def read(name: str, given: Any) -> dict[str, Any]:
        return {f"{name}_ms": round(_seconds(name, given, zero=zero) * 1000)}

    return read


def _linger(name: str, given: Any) -> dict[str, Any]:
    return {"linger_s": _seconds(name, given, zero=True)}


def _seconds(name: str, given: Any, *, zero: bool) -> float:
    if not _is_number(given) or not (0 if zero else 0.001) <= given <= MAX_DURATION_S:
        least = "0 or more" if zero else "more than 0"
        raise InvalidRequest(f"{name}={given!r} is not a time in seconds; it must be {least} and at most a year")
    return float(given)


def _is_number(given: Any) -> bool:
    """Whether it can be compared with a limit: no NaN, and none of the integers that no float holds."""
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal):
        return False
    return isinstance(given, int) or math.isfinite(given)


def _retry(name: str, given: Any) -> dict[str, Any]:
    if isinstance(given, bool) or not isinstance(given, Retry | int):
        raise InvalidRequest(f"{name}={given!r} is not a fabric.Retry(on=…, max=…), nor a number of retries")
    return {"retry": given if isinstance(given, Retry) else Retry(max=given)}


def _operators(name: str, given: Any) -> dict[str, Any]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(n, str) and n for n in names):
        raise InvalidRequest(f"{name}={given!r} is not a list of operators, such as ['acme'] or ['!acme'] to avoid one")
    ordered = sorted(names) if isinstance(names, set | frozenset) else names
    return {
        "operators_allow": tuple(n for n in ordered if not n.startswith("!")),
        "operators_deny": tuple(n[1:] for n in ordered if n.startswith("!")),
    }


def _integer(low: int, high: int) -> "_Reader":
    def read(name: str, given: Any) -> dict[str, Any]:
        if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
            raise InvalidRequest(f"{name}={given!r} is not a whole number from {low} to {high}")
        return {name: given}

    return read


def _max_parallel(name: str, given: Any) -> dict[str, Any]:
    return {name: None} if given is None else _integer(1, MAX_PARALLEL)(name, given)


def _text(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, str) or not given or len(given) > 200 or not given.isprintable():
        raise InvalidRequest(f"{name}={given!r} is not a text of 1 to 200 printable characters")
    return {name: given}


def _tags(name: str, given: Any) -> dict[str, Any]:
    texts = [text for pair in given.items() for text in pair] if isinstance(given, dict) else [None]
    if not all(isinstance(text, str) and len(text) <= 64 for text in texts):
        raise InvalidRequest(
            f"{name}={given!r} is not a dict of texts of at most 64 characters, such as {{'team': 'vision'}}"
        )
    return {name: tuple(sorted(given.items()))}


def _region(name: str, given: Any) -> dict[str, Any]:
    regions = (given,) if isinstance(given, str) else given
    if not isinstance(regions, list | tuple) or not all(isinstance(r, str) and r and r.isprintable() for r in regions):
        raise InvalidRequest(f"{name}={given!r} is not a region such as 'eu-west', nor a list of them")
    return {name: tuple(regions)}


def _near(name: str, given: Any) -> dict[str, Any]:
    pair = isinstance(given, tuple | list) and len(given) == 2
    if pair and all(isinstance(part, int | float) and not isinstance(part, bool) for part in given):
        latitude, longitude = given
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            return {name: f"{latitude:.6f},{longitude:.6f}"}
    if isinstance(given, str) and given.strip() and len(given) <= 200 and given.isprintable():
        return {name: given.strip()}
    raise InvalidRequest(
        f"{name}={given!r} is not a region, a gateway's host, or a latitude and longitude such as (52.5, 13.4)"
    )


def _max_rtt_ms(name: str, given: Any) -> dict[str, Any]:
    if not _is_number(given) or not 0 < given <= MAX_RTT_MS:
        raise InvalidRequest(f"{name}={given!r} is not a round trip in ms: more than 0 and at most {MAX_RTT_MS}")
    return {name: float(given)}


def _flag(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, bool):
        raise InvalidRequest(f"{name}={given!r} is neither True nor False")
    return {name: given}


def _env(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Env):
        raise InvalidRequest(f"{name}={given!r:.80} is not a fabric.Env(pip=['torch>=2.6'])")
    return {name: given}


def _nodes(name: str, given: Any) -> dict[str, Any]:
    pair: Any = given if isinstance(given, tuple | list) and len(given) == 2 else (given, given)
    whole = all(isinstance(part, int) and not isinstance(part, bool) and 1 <= part <= MAX_NODES for part in pair)
    if not whole or pair[0] > pair[1]:
        raise InvalidRequest(
            f"{name}={given!r} is neither a number of nodes from 1 to {MAX_NODES}, nor the least and the most as (2, 4)"
        )
    return {"nodes": pair[1], "nodes_min": pair[0] if pair[0] < pair[1] else 0}


def _network(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, str | list | tuple | set | frozenset):
        raise InvalidRequest(f"{name}={given!r:.80} is not 'none', 'gang', 'open' or a list of hosts")
    word, hosts = check_network(given if isinstance(given, str) else list(given))
    return {name: tuple(hosts) or word}


def _command(name: str, given: Any) -> dict[str, Any]:
    words = (given,) if isinstance(given, str) else given
    if not isinstance(words, list | tuple) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
        raise InvalidRequest(f"{name}={given!r:.80} is not a text for the shell, nor a list of a program and arguments")
    if not words[0].strip():
        raise InvalidRequest(f"{name} is empty; give a program such as 'python train.py'")
    return {name: given if isinstance(given, str) else tuple(given)}


def _workdir(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, str | os.PathLike):
        raise InvalidRequest(f"{name}={given!r:.80} is not the path of a folder")
    return {name: os.fspath(given)}


def _secrets(name: str, given: Any) -> dict[str, Any]:
    return {name: read_secrets(given)}


def _as_given(name: str, given: Any) -> dict[str, Any]:
    return {name: given}


_Reader = Callable[[str, Any], dict[str, Any]]
_COMMON: dict[str, _Reader] = {
    "gpu": _gpu,
    "cpu": _cpu,
    "memory": _size,
    "disk": _size,
    "tier": _choice(TIERS),
    "slot": _slot,
    "max_price": _usd,
    "budget": _usd,
    "queue_timeout": _duration(zero=True),
    "startup_timeout": _duration(zero=False),
    "timeout": _duration(zero=False),
    "retry": _retry,
    "region": _region,
    "near": _near,
    "max_rtt_ms": _max_rtt_ms,
    "operators": _operators,
    "min_reputation": _integer(0, 1000),
    "min_verification": _integer(0, 3),
    "interconnect": _text,
    "objective": _choice(OBJECTIVES),
    "name": _text,
    "tags": _tags,
    "idempotency_key": _text,
    "dry_run": _flag,
    "env": _env,
    "network": _network,
    "workdir": _workdir,
    "secrets": _secrets,
    "returns": _as_given,
    "trust": _flag,
}
_ATTACHED: dict[str, _Reader] = {"linger": _linger}
_OF_ONE: dict[str, _Reader] = {"nodes": _nodes, "command": _command, "checkpoint": _text}
_OF_MAP: dict[str, _Reader] = {"max_parallel": _max_parallel, "ordered": _flag, "return_exceptions": _flag}
_OF_ACTOR: dict[str, _Reader] = {"max_concurrency": _integer(1, MAX_AT_ONCE)}
_READERS = _COMMON | _ATTACHED | _OF_ONE | _OF_MAP | _OF_ACTOR
_ALLOWED = {
    "run": frozenset(_COMMON | _ATTACHED | _OF_ONE) | {"kwargs"},
    "submit": frozenset(_COMMON | _OF_ONE) | {"kwargs"},
    "map": frozenset(_COMMON | _ATTACHED | _OF_MAP) | {"kwargs"},
    "arun": frozenset(_COMMON | _ATTACHED) - {"dry_run"} | {"command", "kwargs"},
    "amap": frozenset(_COMMON | _ATTACHED | _OF_MAP) - {"dry_run"} | {"kwargs"},
    "Executor": frozenset(_COMMON | _ATTACHED) - {"dry_run", "idempotency_key"},
    "actor": frozenset(_COMMON | _OF_ACTOR) - {"dry_run", "idempotency_key", "trust"},
    "serve": frozenset(_COMMON | _OF_ACTOR) - {"dry_run", "idempotency_key", "returns", "secrets", "trust"},
}
