"""Options that the ledger's commands share, and how they print."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import httpx
import typer

from ledger.published import pages, whole

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV: amounts as integers of the smallest unit.")]
Url = Annotated[str, typer.Option("--url", envvar="FABRIC_URL", help="The control plane; default: this machine's.")]
Name = Annotated[str, typer.Argument(metavar="ID")]


def print_json(value: Any) -> None:
    """As people read it."""
    print(json.dumps(value, indent=2))


def printed(url: str, path: str, rows: str, *, as_json: bool, as_csv: bool) -> bool:
    """Whether it was asked for as JSON or CSV, and is printed so: all pages of its ``rows``."""
    if as_json:
        print_json(whole(url, path, rows))
    elif as_csv:
        for number, page in enumerate(pages(url, str(httpx.URL(path).copy_merge_params({"format": "csv"})))):
            head, _, rest = page.text.partition("\n")
            sys.stdout.write(rest if number else f"{head}\n{rest}")
    return as_json or as_csv


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
