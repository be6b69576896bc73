"""`fabric endpoints`: what this account serves, and the end of it."""

import json
from typing import Annotated

import typer

from fabric.client import serving

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def endpoints(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Stopped ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What this account serves, newest first."""
    if context.invoked_subcommand is not None:
        return
    rows = [{"id": s.id, "name": s.name, "url": s.url, **s.status} for s in serving.endpoints(stopped=everything)]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        ready = sum(replica["state"] == "ready" for replica in row.get("replicas", ()))
        fault = f"  ({row['fault']})" if row.get("fault") else ""
        line = f"{row['id']}  {row['name']}  {row['state']}  replicas {ready}  requests {row.get('requests', 0)}"
        typer.echo(f"{line}  {row['url']}{fault}")
    if not rows:
        typer.echo("nothing is served; `fabric serve MODEL` or fabric.serve(…) begins")


@app.command()
def stop(endpoint: Annotated[str, typer.Argument(metavar="ID", help="An endpoint's id.")]) -> None:
    """End an endpoint and release its replicas."""
    serving.find(endpoint).stop()
    typer.echo(f"{endpoint} is stopped")
