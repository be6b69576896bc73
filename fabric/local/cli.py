"""`fabric up | down | status`: the embedded fabric as a service of this machine."""

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer

from fabric.local.home import Home
from fabric.local.requirements import check_requirements
from fabric.local.settings import LocalSettings
from fabric.local.start import STOP_S, bring_up, is_running, wait_until_gone
from fabric.wire.errors import ServiceError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(*, as_json: Json = False) -> None:
    """Start it, or keep the one that runs, until `fabric down`."""
    home = _home()
    check_requirements()
    home.make()
    home.service_file.touch(mode=0o600)
    try:
        embedded = bring_up(home, lambda text: typer.echo(text, err=True))
    except ServiceError:
        home.service_file.unlink(missing_ok=True)
        raise
    if as_json:
        typer.echo(json.dumps({"url": embedded.url, "api_key_file": str(home.api_key_file)}))
    else:
        typer.echo(f"the embedded fabric runs at {embedded.url}; its key is in {home.api_key_file}")


@app.command()
def down() -> None:
    """End it, with everything that runs on it; returns when no process is left."""
    home = _home()
    home.service_file.unlink(missing_ok=True)
    if not is_running(home):
        typer.echo("the embedded fabric does not run")
        return
    pids = home.read_status().pids
    for name in ("supervisor", "guard"):
        if name in pids:
            with suppress(ProcessLookupError):
                os.kill(pids[name], signal.SIGTERM)
                break
    if not wait_until_gone(home, STOP_S):
        raise ServiceError(f"the embedded fabric did not end within {STOP_S:.0f} s; see {home.logs}")
    typer.echo("the embedded fabric has ended")


@app.command()
def status(*, as_json: Json = False) -> None:
    """What of it runs. Exit code 0 when it takes work, 1 otherwise."""
    home = _home()
    running = is_running(home)
    found = home.read_status()
    state = found.state if running else "stopped"
    if as_json:
        members = asdict(found) if running else {}
        typer.echo(json.dumps({**members, "state": state, "home": str(home.root)}, indent=2))
    elif running:
        typer.echo(f"the embedded fabric is {state} at {found.url or 'no address yet'} ({home.root})")
        for name, pid in found.pids.items():
            typer.echo(f"  {name:10} pid {pid}")
    else:
        typer.echo(f"the embedded fabric does not run ({home.root})")
    raise typer.Exit(0 if state == "ready" else 1)


def _home() -> Home:
    return Home(LocalSettings.from_environ(os.environ).home)
