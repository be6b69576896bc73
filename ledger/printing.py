"""Options that the ledger's commands share, and how they print a table."""

from collections.abc import Sequence
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV: amounts as integers of the smallest unit.")]
Url = Annotated[str, typer.Option("--url", envvar="FABRIC_URL", help="The control plane; default: this machine's.")]
Name = Annotated[str, typer.Argument(metavar="ID")]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
