"""The customer's commands. Each asks the SDK and prints a table, or JSON with `--json`."""

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.client import session, verbs
from fabric.client.env import Env
from fabric.client.offers import Offer
from fabric.client.proof import RunProof
from fabric.client.runs import Run, RunReceipt
from fabric.client.secret import Secret
from fabric.client.targets import is_function, load_function, read_arguments
from fabric.client.terminal import print_line
from fabric.placement.grammar import nominal_size_text
from fabric.wire.amounts import format_dc
from fabric.wire.errors import Error, InvalidRequest
from fabric.wire.receipts import ReceiptError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")]
Gpu = Annotated[str | None, typer.Option(help="GPU grammar, such as H100:8 or 24GB..")]
Region = Annotated[str | None, typer.Option(help="Where the GPUs stand.")]
Near = Annotated[str | None, typer.Option(help="A region, a gateway's host, or latitude,longitude; else this machine.")]
MaxRtt = Annotated[float | None, typer.Option("--max-rtt-ms", help="The longest round trip to the gateway, in ms.")]
MaxPrice = Annotated[str | None, typer.Option(help="USD per GPU-hour.")]
Tier = Annotated[str | None, typer.Option(help="spot or on_demand; reserved comes with --slot.")]
Nodes = Annotated[int | None, typer.Option(help="So many nodes of one cluster at once, each with these GPUs.")]


@app.command()
def whoami(*, as_json: Json = False) -> None:
    """The account, and what it has."""
    current = session.current()
    account = current.call(current.plane.account())
    if as_json:
        _print_json({"url": current.plane.url, **account})
        return
    test = " (test balance)" if account["test"] else ""
    print(f"{account['name']} ({account['id']}) at {current.plane.url}")
    print(f"available {format_dc(int(account['available_dc']))}{test}, held {format_dc(int(account['held_dc']))}")


@app.command()
def offers(
    *,
    gpu: Gpu = None,
    nodes: Nodes = None,
    tier: Tier = None,
    region: Region = None,
    near: Near = None,
    max_rtt_ms: MaxRtt = None,
    max_price: MaxPrice = None,
    group_by: Annotated[str, typer.Option(help="gpu, region, tier or operator; several with commas.")] = "",
    as_json: Json = False,
) -> None:
    """What could be bought now, cheapest first."""
    words = _words("--group-by", group_by, _OFFER_GROUPS) if group_by else []
    wishes = {
        "nodes": nodes,
        "tier": tier,
        "region": region,
        "near": near,
        "max_rtt_ms": max_rtt_ms,
        "max_price": max_price,
    }
    found = verbs.offers(gpu, **wishes)
    if not found:
        print(f"fabric: no offers: {_why_none({'gpu': gpu, **wishes})}", file=sys.stderr)
    if words:
        _print_groups(found, words, as_json=as_json)
        return
    if as_json:
        _print_json([asdict(offer) for offer in found])
        return
    rows = [
        (
            offer.model + (" (simulated)" if offer.simulated else ""),
            nominal_size_text(offer.memory_bytes),
            f"{offer.count_free} of {offer.count_total}",
            offer.tier,
            f"{format_dc(offer.price_dc_per_gpu_hour)}/h",
            offer.region,
            "" if offer.rtt_ms is None else f"{offer.rtt_ms:.1f} ms",
            offer.operator_name,
        )
        for offer in found
    ]
    _print_table(("GPU", "MEMORY", "FREE", "TIER", "PRICE", "REGION", "RTT", "OPERATOR"), rows)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    words: Annotated[list[str], typer.Argument(metavar="-- CMD… | FILE.py::FUNCTION [ARGUMENTS]")],
    *,
    gpu: Gpu = None,
    nodes: Nodes = None,
    tier: Tier = None,
    slot: Annotated[str | None, typer.Option(help="The own time slot to run on; costs no more.")] = None,
    budget: Annotated[str | None, typer.Option(help="USD for the whole run.")] = None,
    max_price: MaxPrice = None,
    region: Region = None,
    near: Near = None,
    max_rtt_ms: MaxRtt = None,
    operators: Annotated[
        list[str] | None, typer.Option("--operator", help="Only this one, or with ! not it; repeat.")
    ] = None,
    min_reputation: Annotated[int | None, typer.Option(help="0 to 1000.")] = None,
    min_verification: Annotated[int | None, typer.Option(help="0 (nothing verified) to 3.")] = None,
    objective: Annotated[str | None, typer.Option(help="cost or latency.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for lists and bills.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag for bills, such as team=vision; repeat.")] = None,
    pip: Annotated[list[str] | None, typer.Option("--pip", help="A package to install first; repeat.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="gang, open, or a host; repeat for hosts.")] = None,
    workdir: Annotated[str | None, typer.Option(help="A folder to take along and run in, such as `.`")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="A variable of this shell to pass on; repeat.")] = None,
    as_json: Json = False,
) -> None:
    """Run a command, or a function of a file, on a GPU; the exit code is the command's."""
    given = {
        "gpu": gpu,
        "nodes": nodes,
        "tier": tier,
        "slot": slot,
        "budget": budget,
        "max_price": max_price,
        "region": region,
        "near": near,
        "max_rtt_ms": max_rtt_ms,
        "operators": operators or None,
        "min_reputation": min_reputation,
        "min_verification": min_verification,
        "objective": objective,
        "timeout": timeout,
        "name": name,
        "tags": dict(_pair(one) for one in tag) if tag else None,
        "env": Env(pip=pip) if pip else None,
        "network": _network(network),
        "workdir": workdir,
        "secrets": [Secret(one) for one in secret or ()] or None,
    }
    keywords = {key: value for key, value in given.items() if value is not None}
    if not is_function(words[0]):
        keywords.setdefault("name", words[0])
        verbs.run(command=words, **keywords)
        return
    function, own = load_function(words[0])
    args, kwargs = read_arguments(function, words[1:])
    try:
        value = verbs.run(function, *args, kwargs=kwargs, **{**own, **keywords})
    except Error:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises is shown as Python would
        traceback.print_exception(type(error), error, None)
        raise typer.Exit(1) from None
    if as_json:
        _print_json(value)
    elif value is not None:
        print(value)


@app.command()
def ps(
    *,
    state: Annotated[str, typer.Option(help="Only runs in this state.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Runs, newest first."""
    current = session.current()
    runs = current.call(current.plane.runs(state=state.upper(), limit=limit))["runs"]
    if as_json:
        _print_json(runs)
        return
    rows = [
        (run["id"], run["kind"], run["state"], run["reason"], _gpus(run), _accrued(run), run["name"]) for run in runs
    ]
    _print_table(("RUN", "KIND", "STATE", "REASON", "GPU", "COST", "NAME"), rows)


@app.command()
def logs(
    run: RunId, *, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it is over.")] = False
) -> None:
    """A run's output."""
    for stream, line in verbs.attach(run).lines(follow=follow):
        print_line(stream, line)


@app.command()
def stop(run: RunId) -> None:
    """Cancel a run."""
    handle = verbs.attach(run)
    handle.cancel()
    print(f"{run} is {handle.status}")


@app.command()
def explain(run: RunId, *, as_json: Json = False) -> None:
    """Why a run is where it is."""
    explanation = verbs.attach(run).explain()
    if as_json:
        _print_json(asdict(explanation))
        return
    print(explanation.text)
    for reason, count in sorted(explanation.rejected.items()):
        print(f"  {count} rejected: {reason}")


@app.command()
def cost(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id; all of the account's without.")] = None,
    *,
    by: Annotated[
        str, typer.Option(help="gpu, operator, name, kind, tag or one tag as tag:team; several with commas.")
    ] = "kind",
    as_json: Json = False,
) -> None:
    """What runs cost."""
    if run is not None:
        _print_cost(verbs.attach(run), as_json=as_json)
        return
    words = by.split(",")
    groups = [_group(word) for word in words]
    totals: dict[tuple[str, ...], list[int]] = {}
    for facts in _all_runs():
        total = totals.setdefault(tuple(group(facts) for group in groups), [0, 0, 0])
        for at, number in enumerate((1, facts["cost"]["gpu_ms"], int(facts["cost"]["accrued_dc"]))):
            total[at] += number
    if as_json:
        members = ("runs", "gpu_ms", "accrued_dc")
        _print_json([dict(zip(words, k, strict=True)) | dict(zip(members, v, strict=True)) for k, v in totals.items()])
        return
    rows = [(*key, str(runs), f"{ms / 1000:.3f}", format_dc(dc)) for key, (runs, ms, dc) in sorted(totals.items())]
    _print_table((*(word.upper() for word in words), "RUNS", "GPU-S", "COST"), rows)


@app.command()
def receipt(
    run: Annotated[str, typer.Argument(metavar="RUN | FILE", help="A run's id, or a file that `--json` wrote.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Check signatures, tasks and chain.")] = False,
    as_json: Json = False,
) -> None:
    """A run's signed receipts."""
    path = Path(run)
    found = _kept(path) if path.is_file() else verbs.attach(run).receipt()
    if as_json:
        _print_json(found.to_answer())
        return
    for signed in found.receipts:
        body = signed.receipt
        used = sum(line.gpu_ms for line in body.gpus)
        print(f"{body.lease} #{body.seq} {body.kind:5} {used / 1000:.3f} GPU-s, {body.task_count} tasks")
    if verify:
        try:
            checked, proof = found.verify(), found.proof()
        except ReceiptError as error:
            raise InvalidRequest(f"the receipts are not what they claim: {error}") from None
        print(f"verified: {len(checked)} receipts, every signature, task list and chain")
        for lie in found.equivocations:
            one, two = lie.verify()
            print(
                f"EQUIVOCATION proven: operator {one.operator} signed 0x{one.hash.hex()} and 0x{two.hash.hex()} "
                f"as receipt #{one.seq} of {one.lease}"
            )
        _print_proof(proof)


@app.command()
def audit(*, as_json: Json = False) -> None:
    """Whether every rule of the books holds; names the first bad row. Exit code 1 if one does not."""
    current = session.current()
    answer = current.call(current.plane.get("/v1/audit"))
    if as_json:
        _print_json(answer)
    else:
        for check in answer["checks"]:
            first = "" if check["ok"] else f"  first: {check['first_bad']}"
            print(f"{'ok ' if check['ok'] else 'BAD'} {check['invariant']:2} {check['name']}{first}")
    raise typer.Exit(0 if answer["ok"] else 1)


def _network(words: list[str] | None) -> str | list[str] | None:
    """One word for itself, hosts as a list."""
    return words[0] if words and words in (["none"], ["gang"], ["open"]) else words or None


def _kept(path: Path) -> RunReceipt:
    """Receipts from the file that they were kept in."""
    try:
        return RunReceipt.from_answer(json.loads(path.read_bytes()))
    except (OSError, ValueError, ReceiptError) as error:
        raise InvalidRequest(f"{path} holds no receipts as `fabric receipt RUN --json` prints them: {error}") from None


def _print_proof(proof: RunProof) -> None:
    for epoch, root in sorted({(link.epoch, link.usage_root) for link in proof.epochs}):
        of = [link for link in proof.epochs if link.epoch == epoch]
        gpu_ms, dc = sum(link.gpu_ms for link in of), sum(link.dc for link in of)
        print(f"epoch {epoch} counts {gpu_ms / 1000:.3f} GPU-s for {format_dc(dc)} under usage root 0x{root.hex()}")
    still = f", {len(proof.open_tasks)} are in no closed epoch yet" if proof.open_tasks else ""
    print(f"proven: {len(proof.tasks)} tasks, from receipt to usage root{still}")
    if proof.epochs:
        print("the roots themselves: `fabric ledger epoch N --verify`")


def _print_cost(run: Run, *, as_json: bool) -> None:
    bill = run.cost
    if as_json:
        _print_json(asdict(bill))
        return
    print(f"{run.id}: {bill}; held ${bill.held}, at ${bill.rate_per_hour} per hour")
    print(f"used {bill.utilised_gpu_ms / 1000:.3f} GPU-s of it, {bill.energy_mj / 3_600_000:.3f} Wh")


def _all_runs() -> Iterable[dict[str, Any]]:
    current = session.current()
    cursor = ""
    while True:
        page = current.call(current.plane.runs(limit=200, cursor=cursor))
        yield from page["runs"]
        cursor = page["next"] or ""
        if not cursor:
            return


def _gpus(run: dict[str, Any]) -> str:
    models = [gpu["model"] for lease in run["leases"] for gpu in lease["gpus"]]
    return ", ".join(f"{models.count(m)} × {m}" if models.count(m) > 1 else m for m in dict.fromkeys(models))


def _operators(run: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(lease["operator_name"] for lease in run["leases"]))


def _pair(tag: str) -> tuple[str, str]:
    key, equals, value = tag.partition("=")
    if not key or not equals:
        raise InvalidRequest(f"--tag {tag!r} is not NAME=VALUE, such as team=vision")
    return key, value


def _accrued(run: dict[str, Any]) -> str:
    return format_dc(int(run["cost"]["accrued_dc"]))


def _tags(run: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(run["tags"].items()))


def _group(word: str) -> Callable[[dict[str, Any]], str]:
    """What `--by` groups runs by, of one of its words."""
    if word in _GROUPS:
        return _GROUPS[word]
    kind, _, key = word.partition(":")
    if kind == "tag" and key:
        return lambda run: str(run["tags"].get(key, ""))
    raise InvalidRequest(f"--by {word!r} is unknown; allowed: {', '.join(_GROUPS)}, tag:NAME")


_GROUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "gpu": _gpus,
    "operator": _operators,
    "name": lambda run: str(run["name"]),
    "kind": lambda run: str(run["kind"]),
    "tag": _tags,
}

_OFFER_GROUPS: dict[str, Callable[[Offer], str]] = {
    "gpu": lambda offer: offer.model + (" (simulated)" if offer.simulated else ""),
    "region": lambda offer: offer.region,
    "tier": lambda offer: offer.tier,
    "operator": lambda offer: offer.operator_name,
}


def _words(option: str, given: str, allowed: Mapping[str, Any]) -> list[str]:
    words = given.split(",")
    unknown = [word for word in words if word not in allowed]
    if unknown:
        raise InvalidRequest(f"{option} {unknown[0]!r} is unknown; allowed: {', '.join(allowed)}")
    return words


def _print_groups(offers: Sequence[Offer], words: Sequence[str], *, as_json: bool) -> None:
    """What is free in each group, and its lowest price; in the order of offers, so cheapest first."""
    groups: dict[tuple[str, ...], list[Offer]] = {}
    for offer in offers:
        groups.setdefault(tuple(_OFFER_GROUPS[word](offer) for word in words), []).append(offer)
    free = {key: sum(offer.count_free for offer in group) for key, group in groups.items()}
    price_dc = {key: group[0].price_dc_per_gpu_hour for key, group in groups.items()}
    if as_json:
        members = ("offers", "count_free", "price_dc_per_gpu_hour")
        values = {key: (len(group), free[key], price_dc[key]) for key, group in groups.items()}
        _print_json([dict(zip(words, k, strict=True)) | dict(zip(members, v, strict=True)) for k, v in values.items()])
        return
    rows = [(*key, str(len(group)), str(free[key]), f"{format_dc(price_dc[key])}/h") for key, group in groups.items()]
    _print_table((*(word.upper() for word in words), "OFFERS", "FREE", "PRICE FROM"), rows)


def _why_none(wishes: Mapping[str, Any]) -> str:
    """What a run with these wishes would be told."""
    given = {name: wish for name, wish in wishes.items() if wish is not None}
    try:
        found: Any = verbs.run(print, **given, dry_run=True)
        return found.text
    except Error as error:
        return error.message


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, default=_jsonable)
    print()


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, Decimal) else repr(value)
