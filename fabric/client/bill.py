"""`fabric bill` and `fabric operators`: what operators claim beside what this side measured, and how they stand.

Times on a bill are per GPU of a lease.
"""

import json
from typing import Annotated, Any

import typer

from fabric.client import session
from fabric.wire.amounts import format_dc

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def bill(run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")], *, as_json: Json = False) -> None:
    """A run's leases: what operators claim, what is billed, what this side measured. Exit code 1 if they differ."""
    current = session.current()
    found = current.call(current.plane.get(f"/v1/runs/{run}/bill"))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for lease in found["leases"]:
            _print_lease(lease)
        typer.echo(f"{run} costs {format_dc(int(found['accrued_dc']))} so far, its part of these leases")
    raise typer.Exit(1 if found["flagged"] else 0)


@app.command()
def operators(
    operator: Annotated[str | None, typer.Argument(metavar="ID", help="One operator; all without.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Operators and their reputations, 0 to 1000; of one, what its reputation is made of."""
    current = session.current()
    path = "/v1/operators" if operator is None else f"/v1/operators/{operator}/reputation"
    found = current.call(current.plane.get(path))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif operator is None:
        for one in sorted(found["operators"], key=lambda one: -one["reputation"]):
            state = "connected" if one["connected"] else "away"
            typer.echo(f"{one['reputation']:4}  {one['id']}  {one['name']}  {one['gpus']} GPUs, {state}")
    else:
        _print_reputation(found)


def _print_lease(lease: dict[str, Any]) -> None:
    typer.echo(f"{lease['lease']}  {lease['gpus']} × {lease['model']} of {lease['operator_name']}  {lease['state']}")
    charged = format_dc(int(lease["charged_dc"]))
    typer.echo(f"  claimed {_s(lease['claimed_ms'])}, billed {_s(lease['billed_ms'])} for {charged}")
    if lease["observed_ms"] is None:
        typer.echo("  measured here: nothing; a detached run has no process that could")
        return
    then = "" if lease["final"] else f", when {_s(lease['compared_ms'])} were claimed"
    typer.echo(f"  measured here {_s(lease['observed_ms'])}{then}")
    if lease["flagged"]:
        more = "MORE" if lease["over_ms"] > 0 else "less"
        typer.echo(
            f"  the operator claims {_s(abs(lease['over_ms']))} {more} than was measured here; up to "
            f"{_s(lease['tolerance_ms'])} are no difference"
        )


def _print_reputation(found: dict[str, Any]) -> None:
    name = f"{found['operator']} ({found['name']})"
    typer.echo(f"{name}: {found['reputation']} of 1000; unknown operators have {found['unknown']}")
    for source, one in found["evidence"].items():
        typer.echo(f"  {source:14} for {one['good_milli'] / 1000:8.3f}  against {one['bad_milli'] / 1000:8.3f}")


def _s(ms: int) -> str:
    return f"{ms / 1000:.3f} s"
