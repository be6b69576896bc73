"""The summary that a person reads, and the same as data. Formats; decides nothing."""

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from workloads.demo.books import Books

_DC_PER_USD = 100_000


def as_data(books: Books) -> dict[str, Any]:
    """Everything the summary says, for programs; amounts in DC."""
    return {
        "agree": books.agree,
        "sums_dc": {
            "bills": books.bills_dc,
            "burned": books.burned_dc,
            "on_chain": books.settled.burned_dc,
            "usage": books.usage_dc,
            "allocated": books.allocated_dc,
        },
        "proven_tasks": books.proven_tasks,
        "unproven_tasks": books.unproven_tasks,
        "settled": asdict(books.settled),
        "simulated": books.work.simulated,
        "results": {name: [asdict(one) for one in found] for name, found in books.work.results.items()},
        "runs": [asdict(row) for row in books.runs],
        "tasks": [asdict(row) for row in books.tasks],
        "gpus": [asdict(row) for row in books.gpus],
        "owners": {holder: {"dc": int(o["dc"]), "bct": o["bct"]} for holder, o in books.owners.items()},
        "epochs": list(books.epochs),
        "audit": books.audit,
    }


def show(books: Books, *, people: dict[str, str], home: Path | None) -> None:
    """Print it; ``people`` names the owners' addresses."""
    console = Console()
    console.rule("[bold]Berkeley Compute: the whole economy, once")
    _show_work(console, books)
    _show_runs(console, books)
    _show_gpus(console, books, people)
    _show_chain(console, books)
    _show_sums(console, books)
    if home is not None:
        console.print(f"\nIt still runs, without its chain: FABRIC_HOME={home} fabric status (`fabric down` ends it).")


def _show_work(console: Console, books: Books) -> None:
    best = max((one for found in books.work.results.values() for one in found), key=lambda one: one.accuracy)
    kind = "simulated GPUs (this machine has no NVIDIA GPU)" if books.work.simulated else "GPUs"
    console.print(
        f"\n[bold]The work.[/] {sum(map(len, books.work.results.values()))} trainings of a digit classifier on "
        f"{kind} of {len(books.work.models)} types: {', '.join(books.work.models)}. The best reads "
        f"{best.accuracy:.1%} of unseen digits (hidden {best.hidden}, learning rate {best.learning_rate:g})."
    )


def _show_runs(console: Console, books: Books) -> None:
    table = Table(title="Where each task ran, and what each run cost", title_justify="left", title_style="bold")
    table.add_column("run")
    table.add_column("task", justify="right", no_wrap=True)
    table.add_column("GPU")
    table.add_column("GPU-ms", justify="right")
    table.add_column("bill", justify="right")
    for run in books.runs:
        own = [row for row in books.tasks if row.run == run.id]
        for row in own:
            table.add_row("", str(row.task), f"{row.model} {row.gpu[:8]}", f"{row.gpu_ms:,}", "")
        idle = run.gpu_ms - run.task_ms
        table.add_row("", "", "[dim]kept between tasks[/]", f"[dim]{idle:,}[/]", "")
        table.add_row(f"[bold]{run.name}[/]", "", f"[dim]{run.why}[/]", f"{run.gpu_ms:,}", _usd(run.bill_dc))
        table.add_section()
    console.print()
    console.print(table)
    console.print(
        "[dim]GPU-ms are measured by the operator's node, signed in receipts and verified here. A lease is billed from "
        "the moment it is open, at least one second per GPU, at the price shown in the offer.[/]"
    )


def _show_gpus(console: Console, books: Books, people: dict[str, str]) -> None:
    table = Table(title="What each GPU and its owner earned", title_justify="left", title_style="bold")
    for column in ("GPU", "owner"):
        table.add_column(column)
    for column in ("GPU-ms", "used", "earned"):
        table.add_column(column, justify="right")
    for row in books.gpus:
        model = f"{row.model}{' (simulated)' if row.simulated else ''} {row.id[:8]}"
        holders = " and ".join(people[holder] for holder in row.holders)
        table.add_row(model, holders, f"{row.gpu_ms:,}", _usd(row.used_dc), _bct(row.earned_bct))
    table.add_section()
    for holder, owner in books.owners.items():
        table.add_row("[bold]all GPUs of[/]", people[holder], "", _usd(int(owner["dc"])), _bct(owner["bct"]))
    console.print()
    console.print(table)
    first, last = books.epochs[0], books.epochs[-1]
    burned = sum(int(epoch["burned_dc"]) for epoch in books.epochs)
    paid = sum(Decimal(epoch["paid_bct"]) for epoch in books.epochs)
    console.print(
        f"[dim]Epochs {first['n']} to {last['n']} (seconds here, days in the product): {_usd(burned)} of credits "
        f"burned, {paid:.5f} BCT paid, {int(last['stake_bps']) / 100:g} % of it to stakers, at "
        f"{Decimal(last['price_usd_e18']) / 10**18:f} USD per BCT by the oracle.[/]"
    )


def _show_chain(console: Console, books: Books) -> None:
    settled = books.settled
    console.print(
        f"\n[bold]The chain.[/] {settled.epochs} epochs posted and finalised on "
        f"{books.epochs[-1]['settlement'][:-32]}…; of {_usd(settled.deposited_dc)} deposited "
        f"{_usd(settled.burned_dc)} were burned. GPU {settled.sold_gpu[:10]} was sold between two tasks."
    )
    for name, wei in settled.claimed_wei.items():
        owed = settled.owed_wei[name]
        console.print(
            f"  {name} claimed {_bct_of(wei)}" + ("" if wei == owed else f" [red]and is owed {_bct_of(owed)}[/]")
        )
    gas = ", ".join(f"{what} {used:,}" for what, used in settled.gas.items())
    console.print(f"[dim]Gas: {gas}.[/]")


def _show_sums(console: Console, books: Books) -> None:
    checks = books.audit["checks"]
    passed = sum(bool(check["ok"]) for check in checks)
    console.print(f"\n[bold]The books.[/] Audit: {passed} of {len(checks)} checks passed.")
    for check in checks:
        if not check["ok"]:
            console.print(f"  [red]{check['name']}: {check['first_bad']}[/]")
    console.print(
        f"Tasks proven from their signed receipt to the root of the epoch that burned them: {books.proven_tasks}, "
        f"not proven: {books.unproven_tasks}."
    )
    console.print(
        f"bills {books.bills_dc:,} DC, burned {books.burned_dc:,} DC, on chain {books.settled.burned_dc:,} DC, "
        f"usage {books.usage_dc:,} DC, allocated {books.allocated_dc:,} DC ({_usd(books.bills_dc)})"
    )
    console.print(f"sum of usage = sum allocated: {_verdict(books.bills_dc == books.usage_dc == books.allocated_dc)}")
    console.print(f"sum of bills = sum burned = on-chain total: {_verdict(books.sums_agree)}")


def _verdict(agreed: bool) -> str:
    return "[bold green]yes[/]" if agreed else "[bold red]NO[/]"


def _usd(dc: int) -> str:
    return f"${Decimal(dc) / _DC_PER_USD:.5f}"


def _bct_of(wei: int) -> str:
    return f"{Decimal(wei) / 10**18:.5f} BCT"


def _bct(amount: str) -> str:
    return f"{Decimal(amount):.5f} BCT"
