"""The command: sets the stage, runs the work, closes the epoch, prints the summary. Fails when a number disagrees."""

import json as json_module
from typing import Annotated

import typer

from workloads.demo.books import Books
from workloads.demo.economy import Economy
from workloads.demo.stage import Stage
from workloads.demo.summary import as_data, show
from workloads.demo.work import FIRST_LOOK, run_all

app = typer.Typer(add_completion=False)

DISAGREEMENT = 1


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's fabric running.")] = False,
) -> None:
    """Run real work on this machine's own fabric, settle it on a chain, and show where every credit went."""
    with Stage(keep=keep) as stage:
        economy = Economy(stage, stage.chain)
        stage.say("burning test BCT for credits, and registering who owns each GPU")
        economy.begin()
        stage.say("training a classifier of handwritten digits on every type of GPU that is offered")
        work = run_all(stage, between=lambda: economy.change_hands(FIRST_LOOK))
        stage.say("closing and settling epochs: usage becomes final, credits are burned, owners claim")
        books = Books.read(stage, work, economy)
        people = {holder: stage.chain.person(holder) for holder in books.owners}
    if json:
        typer.echo(json_module.dumps(as_data(books), indent=2))
    else:
        show(books, people=people, home=stage.home if keep else None)
    raise typer.Exit(0 if books.agree else DISAGREEMENT)
