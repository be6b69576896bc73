"""The command: sets the stage, runs the work, closes the epoch, prints the summary. Fails when a number disagrees."""

import json as json_module
from typing import Annotated

import typer

from workloads.demo.books import Books
from workloads.demo.stage import Stage
from workloads.demo.summary import as_data, show
from workloads.demo.work import run_all

app = typer.Typer(add_completion=False)

DISAGREEMENT = 1


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's fabric running.")] = False,
) -> None:
    """Run real work on this machine's own fabric, close the epoch, and show where every credit went."""
    with Stage(keep=keep) as stage:
        stage.say("training a classifier of handwritten digits on every type of GPU that is offered")
        work = run_all(stage)
        stage.say("closing the epoch: usage becomes final, credits are burned, rewards are allocated")
        books = Books.read(stage, work)
    if json:
        typer.echo(json_module.dumps(as_data(books), indent=2))
    else:
        show(books, home=stage.home if keep else None)
    raise typer.Exit(0 if books.agree else DISAGREEMENT)
