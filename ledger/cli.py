"""`fabric ledger`: what GPUs and parties earned, all pages, and epochs that anyone can recompute.

It needs only a URL; for a holder FABRIC_API_KEY of the account that speaks for the address.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from ledger import investor_cli
from ledger.epoch import Verdict, not_carried, read_file, verify_file
from ledger.printing import Csv, Json, Name, Url, print_json, print_table, printed
from ledger.published import fetch, get, ledger_path, whole

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(investor_cli.app)

_SHOWN = ("price_source", "price_usd_e18", "settlement", "stake_bps")


@app.command()
def gpu(gpu_id: Name, *, as_json: Json = False, as_csv: Csv = False, url: Url = "") -> None:
    """A GPU's use and cash flow by epoch; ID is its public id."""
    path = ledger_path(f"gpus/{gpu_id}")
    if not printed(url, path, "cash_flow", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "cash_flow")
        mark = " (simulated)" if found["simulated"] else ""
        print(f"{found['model']}{mark} of {found['operator']}, {found['id']}")
        print(f"used {found['used_gpu_ms']} ms for {found['used_usd']}, utilised {found['utilised_gpu_ms']} ms")
        print(f"earned {found['earned_bct']} BCT")
        _print_flow(found["cash_flow"])


@app.command()
def pool(pool_id: Name, *, as_json: Json = False, as_csv: Csv = False, url: Url = "") -> None:
    """What a pool earned, by epoch and GPU."""
    _party("pool", pool_id, as_json=as_json, as_csv=as_csv, url=url)


@app.command()
def operator(operator_id: Name, *, as_json: Json = False, as_csv: Csv = False, url: Url = "") -> None:
    """What an operator's GPUs earned, by epoch."""
    _party("operator", operator_id, as_json=as_json, as_csv=as_csv, url=url)


@app.command()
def holder(address: Name, *, as_json: Json = False, as_csv: Csv = False, url: Url = "") -> None:
    """What a holder of GPU NFTs earned, by epoch and GPU; for the account that speaks for the address."""
    _party("holder", address, as_json=as_json, as_csv=as_csv, url=url)


@app.command()
def epochs(*, as_json: Json = False, url: Url = "") -> None:
    """Closed epochs, newest first, and the one that runs."""
    found = whole(url, ledger_path("epochs"), "epochs")
    if as_json:
        print_json(found)
        return
    rows = [(str(e["n"]), e["burned_usd"], f"{e['paid_bct']} BCT", e["settlement"]) for e in found["epochs"]]
    print_table(("EPOCH", "BURNED", "PAID", "SETTLEMENT"), rows)
    print(f"epoch {found['current']['n']} is running")


@app.command()
def epoch(
    number: Annotated[int, typer.Argument(metavar="N", min=0)],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Compute its roots again from its public file.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
    url: Url = "",
) -> None:
    """A closed epoch: totals, roots and GPUs. With --verify: exit code 1 if any number disagrees.

    --verify also holds it to the file of the epoch before, whose sums it goes on from; and, where FABRIC_CHAIN_URL and
    FABRIC_CHAIN_ADDRESSES are set, both files to the chain.
    """
    path = f"/v1/ledger/epochs/{number}"
    if verify:
        body = fetch(url, f"/v1/ledger/epochs/{number}/file").content
        before = _file_before(url, number)
        verdict = verify_file(body)
        state, faults = _on_chain(body, before)
        faults = [*verdict.faults, *differences(get(url, path), verdict, body), *not_carried(body, before), *faults]
        _print_verdict(verdict, faults, state, as_json=as_json)
    elif not printed(url, path, "usage", as_json=as_json, as_csv=as_csv):
        _print_epoch(get(url, path))


def differences(row: Mapping[str, Any], verdict: Verdict, body: bytes) -> list[str]:
    """Where an epoch's row, as the API shows it, and the recomputation of its file disagree."""
    _, content = read_file(body)
    computed = {name: content[name] for name in _SHOWN} | content["totals"]
    computed |= {
        "n": verdict.epoch,
        "payout_root": "0x" + verdict.payout_root.hex(),
        "usage_root": "0x" + verdict.usage_root.hex(),
        "file_hash": "0x" + verdict.file_hash.hex(),
    }
    return [
        f"{name}: the epoch says {row[name]}, recomputed {value}"
        for name, value in computed.items()
        if str(row[name]) != str(value)
    ]


def _file_before(url: str, epoch: int) -> bytes | None:
    """The file of the epoch closed before; None for the first one that was closed, which need not be 0."""
    found = get(url, f"/v1/ledger/epochs?cursor={epoch}&limit=1")["epochs"]
    return fetch(url, f"/v1/ledger/epochs/{found[0]['n']}/file").content if found else None


def _on_chain(body: bytes, before: bytes | None) -> tuple[str, Sequence[str]]:
    """Where the epoch stands on the configured chain, in words, and what differs there, or of the epoch before."""
    from ledger.chain.telling import settings_told, told

    settings = settings_told()
    if not settings.has_chain:
        return "not compared with a chain: none is configured", ()
    from ledger.chain.link import ChainLink
    from ledger.chain.verifying import compare

    with told():
        link = ChainLink.from_settings(settings)
        assert link is not None
        found = compare(link.client(), body)
        earlier = () if before is None else compare(link.client(), before).faults
    faults = (*found.faults, *(f"the epoch before: {fault}" for fault in earlier))
    return f"{found.state} on chain {link.book.chain_id}", faults


def _party(party: str, name: str, *, as_json: bool, as_csv: bool, url: str) -> None:
    path = ledger_path(f"{party}s/{name}")
    if not printed(url, path, "cash_flow", as_json=as_json, as_csv=as_csv):
        found = whole(url, path, "cash_flow")
        print(f"{party} {name}: {found['gpus']} GPUs in {found['epochs']} epochs")
        print(f"used {found['gpu_ms']} ms for {found['usd']}, earned {found['bct']} BCT")
        _print_flow(found["cash_flow"])


def _print_epoch(found: Mapping[str, Any]) -> None:
    print(f"epoch {found['n']}: {found['settlement']}")
    print(f"burned {found['burned_usd']} for {found['gpu_ms']} GPU-ms; paid {found['paid_bct']} BCT")
    print(f"price {found['price_usd_e18']} / 10^18 USD per BCT ({found['price_source']})")
    print(f"payout root {found['payout_root']}\nusage root  {found['usage_root']}\nfile        {found['file_hash']}")
    rows = [(line["gpu"], str(line["gpu_ms"]), line["usd"], str(line["payers"])) for line in found["usage"]]
    print_table(("GPU", "GPU-MS", "USED", "PAYERS"), rows)


def _print_verdict(verdict: Verdict, faults: Sequence[str], state: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"epoch": verdict.epoch, "agrees": not faults, "chain": state, "faults": list(faults)})
    else:
        print(f"payout root 0x{verdict.payout_root.hex()}\nusage root  0x{verdict.usage_root.hex()}")
        for fault in faults:
            print(f"differs: {fault}")
        print(f"epoch {verdict.epoch}: " + ("disagrees" if faults else "every number agrees") + f"; {state}")
    if faults:
        raise typer.Exit(1)


def _print_flow(lines: Iterable[Mapping[str, Any]]) -> None:
    rows = [(str(line["epoch"]), line["gpu"][:10], line["usd"], f"{line['bct']} BCT", line["holder"]) for line in lines]
    print_table(("EPOCH", "GPU", "USED", "EARNED", "HOLDER"), rows)
