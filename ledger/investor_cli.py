"""`fabric ledger uptime | utilisation | usage | prices | yield`: what investors ask, all pages."""

from enum import StrEnum
from typing import Annotated

import typer

from ledger.printing import Csv, Json, Name, Url, print_table, printed
from ledger.published import get, ledger_path, whole

app = typer.Typer()


class Of(StrEnum):
    """Of whom it is asked."""

    GPU = "gpu"
    POOL = "pool"
    OPERATOR = "operator"
    HOLDER = "holder"


Whose = Annotated[Of, typer.Argument(metavar="gpu|pool|operator|holder")]
FromMs = Annotated[int | None, typer.Option("--from-ms", min=0, help="Only from this Unix time in ms on.")]
ToMs = Annotated[int | None, typer.Option("--to-ms", min=0, help="Only before this Unix time in ms.")]


@app.command()
def uptime(
    of: Whose,
    name: Name,
    *,
    from_ms: FromMs = None,
    to_ms: ToMs = None,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """When GPUs were there."""
    path = ledger_path(f"{of.value}s/{name}/uptime", from_ms=from_ms, to_ms=to_ms)
    if not printed(url, path, "stretches", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "stretches")
        print(f"{found['gpus']} GPUs, there {found['up_ms']} of {found['known_ms']} ms ({_pct(found['uptime_bps'])})")
        rows = [
            (one["gpu"][:10], str(one["from_ms"]), str(one["until_ms"]), one["model"]) for one in found["stretches"]
        ]
        print_table(("GPU", "FROM", "UNTIL", "MODEL"), rows)


@app.command()
def utilisation(
    of: Whose,
    name: Name,
    *,
    from_ms: FromMs = None,
    to_ms: ToMs = None,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """How much of the time that GPUs were there they were leased."""
    path = ledger_path(f"{of.value}s/{name}/utilisation", from_ms=from_ms, to_ms=to_ms)
    if not printed(url, path, "lines", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "lines")
        lines = [*found["lines"], found["total"] | {"gpu": "all"}]
        rows = [
            (one["gpu"][:10], str(one["up_ms"]), str(one["gpu_ms"]), _pct(one["utilisation_bps"]), one["dc"])
            for one in lines
        ]
        print_table(("GPU", "UP MS", "USED MS", "UTILISED", "DC"), rows)


@app.command()
def usage(
    gpu: Name,
    *,
    from_ms: FromMs = None,
    to_ms: ToMs = None,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """A GPU's rows of usage, newest first; ID is its public id."""
    path = ledger_path(f"gpus/{gpu}/usage", from_ms=from_ms, to_ms=to_ms)
    if not printed(url, path, "usage", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "usage")
        rows = [
            (str(one["entry"]), str(one["at_ms"]), str(one["gpu_ms"]), one["price_dc_per_gpu_hour"], one["dc"])
            for one in found["usage"]
        ]
        print_table(("ENTRY", "AT", "USED MS", "DC/HOUR", "DC"), rows)


@app.command()
def prices(
    of: Whose,
    name: Name,
    *,
    from_ms: FromMs = None,
    to_ms: ToMs = None,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """What was asked for GPUs on demand, and when."""
    path = ledger_path(f"{of.value}s/{name}/prices", from_ms=from_ms, to_ms=to_ms)
    if not printed(url, path, "prices", as_json=as_json, as_csv=as_csv):
        rows = [
            (one["operator"], one["model"], one["price_dc_per_gpu_hour"], str(one["from_ms"]), str(one["until_ms"]))
            for one in get(url, path)["prices"]
        ]
        print_table(("OPERATOR", "MODEL", "DC/HOUR", "FROM", "UNTIL"), rows)


@app.command(name="yield")
def yield_(
    of: Whose,
    name: Name,
    *,
    cost_usd: Annotated[
        str | None, typer.Option("--cost-usd", help="What all of it cost: shows the yearly rate.")
    ] = None,
    from_ms: FromMs = None,
    to_ms: ToMs = None,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """What GPUs earned by epoch, and what that makes of their cost in a year."""
    path = ledger_path(f"{of.value}s/{name}/yield", from_ms=from_ms, to_ms=to_ms, cost_usd=cost_usd)
    if not printed(url, path, "lines", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "lines")
        print(f"{found['epochs']} epochs: {found['wei']} wei for {found['dc']} DC, worth {found['value_dc']} DC")
        if found["yearly_bps"] is not None:
            print(f"{_pct(found['yearly_bps'])} of the cost in a year, at this rate")
        rows = [
            (str(one["epoch"]), str(one["gpus"]), str(one["gpu_ms"]), one["dc"], one["wei"]) for one in found["lines"]
        ]
        print_table(("EPOCH", "GPUS", "USED MS", "DC", "WEI"), rows)


def _pct(bps: int | None) -> str:
    return "-" if bps is None else f"{bps / 100:.2f} %"
