"""`fabric operator drain | undrain | price set | selftest`; what the folder's key signs changes a running cluster."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.operator.folder import OperatorFolder
from fabric.operator.orders import Orders, read_prices, write_prices
from fabric.operator.refusals import Refusals
from fabric.wire.amounts import format_dc
from fabric.wire.clock import SystemClock
from fabric.wire.errors import AuthError, InvalidRequest
from fabric.wire.operator_orders import WHOLE_CLUSTER

price_app = typer.Typer(name="price", help="What the cluster's GPUs cost.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--folder", "-C", help="The operator's folder, with cluster.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Its name or address; left out with --all.")]
Everything = Annotated[bool, typer.Option("--all", help="The whole cluster.")]
Notice = Annotated[int, typer.Option(help="Seconds that leases there get, and pay for; at most 604800.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when no lease is left there.")]
Price = Annotated[
    list[str], typer.Argument(metavar="MODEL:TIER=USD", help="Per GPU-hour, such as H100:on_demand=2.49; or =off.")
]


def drain(
    node: Node = "",
    *,
    everything: Everything = False,
    notice: Notice = 300,
    wait: Wait = False,
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """No new leases on a node; those that are there are told, wait out the notice, and go on elsewhere."""
    with Refusals():
        orders, name = orders_of(OperatorFolder(folder)), _name(node, everything=everything)
        left = orders.empty(name, notice) if wait else orders.drain(name, draining=True, notice_s=notice)["leases"]
    _say({"cluster": orders.cluster.name, "node": name, "draining": True, "leases": left}, as_json=as_json)
    raise typer.Exit(1 if wait and left else 0)


def undrain(node: Node = "", *, everything: Everything = False, folder: Folder = Path(), as_json: Json = False) -> None:
    """A node takes new leases again."""
    with Refusals():
        done = orders_of(OperatorFolder(folder)).drain(_name(node, everything=everything), draining=False)
    _say(done, as_json=as_json)


@price_app.command("set")
def set_price(price: Price, folder: Folder = Path(), as_json: Json = False) -> None:
    """Change prices from now on; running leases keep theirs. cluster.yaml is changed too."""
    place = OperatorFolder(folder)
    with Refusals():
        done = orders_of(place).set_prices(read_prices(price))
        kept = write_prices(place.cluster_file, price)
    if as_json:
        print(json.dumps({**done, "cluster_file": kept}))
        return
    for model, tiers in sorted(done["prices"].items()):
        for tier, dc in sorted(tiers.items()):
            print(f"{model}  {tier}  {format_dc(int(dc))} per GPU-hour")
    if not kept:
        print(f"{place.cluster_file} is as it was: its prices do not stand on one line; change it before the next up.")


def selftest(
    *,
    here: Annotated[bool, typer.Option("--here", help="Only this machine's GPUs.")] = False,
    simulated: Annotated[str, typer.Option(help="With --here, to see how it goes without a GPU: such as L4:2.")] = "",
    folder: Folder = Path(),
    as_json: Json = False,
) -> None:
    """Challenge every machine's GPUs as the fabric does; ends with 1 unless all pass. Not while work runs there."""
    from fabric.operator.selftest import examine_here, examine_hosts

    with Refusals():
        if simulated and not here:
            raise InvalidRequest("--simulated is for --here alone")
        found = {"here": examine_here(simulated)} if here else examine_hosts(OperatorFolder(folder).cluster())
    if as_json:
        print(json.dumps(found))
    else:
        _show_tested(found)
    bad = [one for gpus in found.values() for one in ([{"problem": gpus}] if isinstance(gpus, str) else gpus)]
    raise typer.Exit(1 if not bad or any(one["problem"] for one in bad) else 0)


def orders_of(place: OperatorFolder) -> Orders:
    """Orders with the folder's own key.

    Raises:
        AuthError: the folder has none. ClusterFileError: its cluster.yaml is missing or wrong.
    """
    cluster = place.cluster()
    if not place.session_key_file.exists():
        raise AuthError(f"{place.session_key_file} is missing; `fabric operator renew` makes a key and delegates to it")
    return Orders(cluster, place.session_key(), SystemClock())


def _show_tested(found: Mapping[str, list[dict[str, Any]] | str]) -> None:
    for where, gpus in found.items():
        if isinstance(gpus, str) or not gpus:
            print(f"{where}  {gpus or 'no GPUs'}")
            continue
        for gpu in gpus:
            times = (
                ("product", gpu["fill_ms"], gpu["fill_limit_ms"]),
                ("digests", gpu["digest_ms"], gpu["digest_limit_ms"]),
            )
            took = ", ".join(f"{what} {ms} of {limit_ms} ms" for what, ms, limit_ms in times)
            print(f"{where}  {gpu['uuid']}  {gpu['model']}  {gpu['problem'] or 'passed: ' + took}")


def _name(node: str, *, everything: bool) -> str:
    if bool(node) == everything:
        raise InvalidRequest("name one node, or the whole cluster with --all")
    return WHOLE_CLUSTER if everything else node


def _say(done: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    what = done["node"] or f"all of {done['cluster']}"
    if not done["draining"]:
        print(f"{what} takes new leases again" + (f"; {len(done['leases'])} leave still" if done["leases"] else ""))
        return
    print(f"{what} gets no new leases; {len(done['leases']) or 'no'} leases leave")
    for lease in done["leases"]:
        print(f"  {lease['lease']} on {lease['node']}")
