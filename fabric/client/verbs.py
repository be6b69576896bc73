"""The verbs people call: run, map, submit, offers, attach, init. Each reads its keywords and hands over."""

import builtins
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fabric.client import session
from fabric.client.attached import map_all, run_one
from fabric.client.errand import errand, laden
from fabric.client.gang import follow
from fabric.client.offers import Offer, find_offers
from fabric.client.options import RunOptions, read_options
from fabric.client.pack import pack_arguments, pack_function
from fabric.client.runs import Explanation, Run
from fabric.wire import channel, frames
from fabric.wire.errors import InvalidRequest
from fabric.wire.ids import is_name, new_id

R = TypeVar("R")


def run(
    function: Callable[..., R] | None = None, *args: Any, kwargs: Mapping[str, Any] | None = None, **keywords: Any
) -> R:
    """Run `function(*args, **kwargs)` on a GPU of the fabric; blocks, streams its output, returns its value.

    Args:
        function: any callable; what it refers to travels with it; an `async def` is run to its end where it is. Left
            out with `command=`: a program, whose exit code 0 is returned; another one is raised as a RunFailed that has
            it as `exit_code`.
        args: its positional arguments.
        kwargs: its keyword arguments, as a dict.
        keywords: where and how to run: gpu, tier, max_price, budget, timeout, retry, … (docs). `near` (a region, a
            gateway's host, or latitude and longitude; default this process) with `max_rtt_ms` or `objective="latency"`:
            how far the gateway may be, or that the nearest is wanted; the few best are measured before the choice.
            `checkpoint`: a run of this account whose newest checkpoint this one begins with.
            `nodes`: run it on so many nodes of one cluster at once, all or nothing; the value is that of rank 0 (docs).
            `trust=True`: take any value, as a pickle that this process loads; it may run code of the node's operator.

    Raises:
        InvalidRequest: before anything is sent.
        Error: no value came; says why. An exception of the function is raised as itself.
    """
    options = read_options("run", keywords, function)
    if options.dry_run:
        return _plan("run", options)  # type: ignore[return-value]
    if options.nodes > 1:
        return follow(_start("run", function, args, kwargs, options))
    job, given = errand(function, args, options)
    return run_one(session.current(), job, given, _own(kwargs), options)


def map(  # noqa: A001 - the verb's name is the product's
    function: Callable[..., R], inputs: Iterable[Any], *, kwargs: Mapping[str, Any] | None = None, **keywords: Any
) -> Iterator[R]:
    """Run `function(item, **kwargs)` for each item of `inputs`, on as many leases as help; values as they are ready.

    Args:
        function: any callable.
        inputs: any iterable; taken only as far ahead as the leases have room.
        kwargs: the same keyword arguments for every call.
        keywords: as for `run`; also `ordered` (True), `return_exceptions` (False), `max_parallel` (leases at once).

    Raises:
        InvalidRequest: at once, before anything is sent.
        Error: while iterating, unless `return_exceptions`: the first task that ended without a value ends the map.
    """
    options = read_options("map", keywords, function)
    if options.dry_run:
        return iter([_plan("map", options)])  # type: ignore[list-item]
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable):
        raise InvalidRequest(f"fabric.map needs an iterable of inputs, not a {type(inputs).__name__}")
    _callable(function)
    return map_all(session.current(), laden(function, options), inputs, _own(kwargs), options)


def submit(
    function: Callable[..., Any] | None = None, *args: Any, kwargs: Mapping[str, Any] | None = None, **keywords: Any
) -> Run:
    """Start `function(*args, **kwargs)` detached: it goes on without this process; `fabric.attach` finds it again.

    Raises:
        InvalidRequest: before anything is sent.
    """
    return _start("submit", function, args, kwargs, read_options("submit", keywords, function))


def _start(
    kind: str, function: Callable[..., Any] | None, args: Any, kwargs: Mapping[str, Any] | None, options: RunOptions
) -> Run:
    """A run whose work the control plane carries: a detached one, or one on several nodes."""
    current = session.current()
    job, given = errand(function, args, options)
    packed = pack_function(job)
    pieces = pack_arguments(given, _own(kwargs), packed.modules)
    run = new_id("run")
    sizes = [memoryview(piece).nbytes for piece in pieces]
    call = [channel.CALL, run, packed.digest, [[0, 1, sizes]], options.timeout_ms]
    call += channel.begun_with(options.checkpoint)
    arguments = frames.pack_bytes(call, *pieces)
    work: dict[str, Any] = {"code": packed.digest.hex(), "args": hashlib.sha256(arguments).hexdigest()}
    if options.secrets:
        work["secret"] = True
    if not options.dry_run:
        current.call(current.plane.put_blob(work["code"], packed.code))
        current.call(current.plane.put_blob(work["args"], arguments))
    request = current.office.request(run, kind, {**options.request(), "leases": 1, "tasks": 1, "work": work})
    key = options.idempotency_key or run
    facts = current.call(current.office.create_run(request, key, measures=options.measures))
    return Run(current, facts["id"], job, options.returns, trust=options.trust)


def offers(
    gpu: Any = None,
    *,
    nodes: Any = None,
    tier: str | None = None,
    region: Any = None,
    near: Any = None,
    max_rtt_ms: float | None = None,
    max_price: Any = None,
) -> builtins.list[Offer]:
    """What could be bought now, cheapest first; `gpu` in the GPU grammar, None for all; the rest as for `run`.

    With `nodes`, what one cluster has for them at once; of (2, 4) the least counts, since a run would take that.
    With `max_rtt_ms` the few nearest gateways are measured, with `near` their round trips are estimated from there.
    """
    keywords = {
        "gpu": gpu,
        "nodes": nodes,
        "tier": tier,
        "region": region,
        "near": near,
        "max_rtt_ms": max_rtt_ms,
        "max_price": max_price,
    }
    keywords = {key: value for key, value in keywords.items() if value is not None}
    return find_offers(session.current(), read_options("run", keywords), tier=tier or "", every=gpu is None)


def attach(run_id: str, *, trust: bool = False) -> Run:
    """A handle on a run of this account, from any process; `trust` as the run was started with.

    Raises:
        InvalidRequest: there is no such run.
    """
    if not isinstance(run_id, str) or not is_name(run_id):
        raise InvalidRequest(f"run_id={run_id!r:.80} is not the id of a run; `run.id` is one, `fabric ps` shows them")
    current = session.current()
    current.call(current.plane.run(run_id))
    return Run(current, run_id, trust=trust)


def init(url: str | None = None, api_key: str | None = None) -> None:
    """Choose the fabric for this process; without arguments `FABRIC_URL`, else the embedded one. Optional."""
    session.choose(url, api_key)


def _plan(kind: str, options: RunOptions) -> Explanation:
    current = session.current()
    request = current.office.request(new_id("run"), kind, {**options.request(), "leases": 1, "tasks": 1})
    answer = current.call(current.office.create_run(request, request["id"], measures=options.measures))
    return Explanation(**answer["explain"])


def _own(kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidRequest(f"kwargs={kwargs!r:.80} is not a dict of the function's keyword arguments")
    return kwargs or {}


def _callable(function: Any) -> None:
    if not callable(function):
        raise InvalidRequest(f"the first argument must be a function, not a {type(function).__name__}")
