"""`fabric operator …`: enrol, launch, examine and stop a pool operator's cluster."""

import getpass
import json
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fabric.operator import init as enrolment
from fabric.operator.browser_wallet import BrowserWallet
from fabric.operator.enrol import ControlPlane, operator_of
from fabric.operator.findings import Finding, Verdict, failed
from fabric.operator.folder import OperatorFolder
from fabric.operator.orders_cli import drain, price_app, selftest, undrain
from fabric.operator.refusals import Refusals
from fabric.operator.wallet import Signer, WalletError, from_key, open_keystore
from fabric.wire.clock import SystemClock
from fabric.wire.delegation import Revocation
from fabric.wire.errors import InvalidRequest

app = typer.Typer(name="operator", help="Run a cluster of GPUs for the fabric.", no_args_is_help=True)
app.add_typer(price_app)
app.command()(drain)
app.command()(undrain)
app.command()(selftest)

_KEY_VARIABLE = "OPERATOR_WALLET_KEY"
_PASSWORD_VARIABLE = "OPERATOR_WALLET_PASSWORD"  # noqa: S105 - the name of a variable

FolderOption = Annotated[Path, typer.Option("--folder", "-C", help="The operator's folder, with cluster.yaml.")]
WalletOption = Annotated[
    Path | None,
    typer.Option(help=f"Keystore file of the operator's wallet; without it, the key in {_KEY_VARIABLE} is used."),
]
BrowserOption = Annotated[
    bool, typer.Option("--browser", help="Sign with the wallet in your browser; a page on this machine shows what.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DaysOption = Annotated[int, typer.Option(min=1, max=366, help="For how many days the wallet lets the key act.")]


@app.command()
def init(
    token: Annotated[str, typer.Option(help="The one-time join token.")],
    url: Annotated[str, typer.Option(envvar="FABRIC_URL", help="The control plane.")],
    head: Annotated[str, typer.Option(help="The head's address, as the machines reach each other.")],
    price: Annotated[list[str], typer.Option(help="USD per GPU-hour, such as H100:on_demand=2.49; may be repeated.")],
    worker: Annotated[list[str] | None, typer.Option(help="A further machine's address; may be repeated.")] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help='Settings of one machine, such as 10.0.0.12={"num_gpus": 4}; may be repeated.'),
    ] = None,
    wallet: WalletOption = None,
    browser: BrowserOption = False,
    cluster: Annotated[str, typer.Option(help="The cluster's name.")] = "gpus",
    region: Annotated[str, typer.Option(help="Where the machines stand, such as eu-central.")] = "unknown",
    ssh_user: Annotated[str, typer.Option(help="An account on the machines, of this cluster alone.")] = "fabric",
    ssh_key: Annotated[
        str, typer.Option(help="Private key for that account; Ray copies it to the head.")
    ] = "~/.ssh/id_ed25519",
    venv: Annotated[str, typer.Option(help="A Python environment with Ray and this package on every machine.")] = "",
    index: Annotated[str, typer.Option(help="Package index for the machines; default PyPI.")] = "",
    offline: Annotated[bool, typer.Option(help="Machines install from the folder's wheels/ alone.")] = False,
    folder: Annotated[Path | None, typer.Option("--folder", "-C", help="Where to write.")] = None,
    days: DaysOption = 90,
) -> None:
    """Enrol with a join token, and write cluster.yaml, key and delegation."""
    place = OperatorFolder(folder or enrolment.default_folder(cluster))
    with Refusals():
        site = enrolment.Site(
            url=url,
            cluster=cluster,
            head=head,
            workers=tuple(worker or ()),
            region=region,
            ssh_user=ssh_user,
            ssh_key=ssh_key,
            prices=_prices(price),
            nodes=_nodes(node or []),
            venv=venv,
            index=index,
            offline=offline,
        )
        place.lay_out()
        enrolment.write_cluster_file(place, site, operator_of(token))
        delegation = enrolment.enrol(place, token, _open_wallet(wallet, browser=browser), url, SystemClock(), days=days)
    print(f"Operator {delegation.operator} enrolled; its key is delegated for {days} days.")
    print(f"Next: look at {place.cluster_file}, then `fabric operator doctor -C {place.path}` and")
    print(f"`fabric operator up -C {place.path}` (or plain `ray up {place.cluster_file}`).")


@app.command()
def renew(
    folder: FolderOption = Path(), wallet: WalletOption = None, browser: BrowserOption = False, days: DaysOption = 90
) -> None:
    """Let the wallet sign again, before the delegation ends; key and cluster stay."""
    with Refusals():
        signer = _open_wallet(wallet, browser=browser)
        delegation = enrolment.renew(OperatorFolder(folder), signer, SystemClock(), days=days)
    print(f"Operator {delegation.operator}: delegated for {days} more days.")


@app.command()
def revoke(folder: FolderOption = Path(), wallet: WalletOption = None, browser: BrowserOption = False) -> None:
    """Take the folder's session key back, for good."""
    place = OperatorFolder(folder)
    with Refusals():
        cluster, control_plane = place.cluster(), ControlPlane(place.cluster().url)
        key = bytes(place.session_key().verify_key)
        revocation = Revocation(control_plane.fabric_id(), cluster.operator, key)
        control_plane.revoke(revocation, _open_wallet(wallet, browser=browser).sign(revocation.typed_data()))
    print("The key is revoked: no agent can use it any more. For a new one delete session.key and renew.")


@app.command()
def up(
    folder: FolderOption = Path(),
    restart: Annotated[bool, typer.Option(help="Restart Ray everywhere; ends running leases.")] = False,
    timeout: Annotated[int, typer.Option(help="Seconds to wait for every machine.")] = 300,
) -> None:
    """`ray up`, and wait until every machine is in the cluster and the agent runs."""
    from fabric.operator import doctor, launcher

    place = OperatorFolder(folder)
    with Refusals():
        findings = doctor.examine_logins(place.cluster())
        if failed(findings):
            _show(findings)
            raise typer.Exit(1)
        status = launcher.bring_up(place, restart=restart, timeout_s=timeout)
    print(f"Up: the agent, and machines: {len(status.nodes)}.")


@app.command()
def down(
    folder: FolderOption = Path(),
    notice: Annotated[
        int | None, typer.Option(min=0, help="Seconds that leases get first; default: notice_s of cluster.yaml.")
    ] = None,
) -> None:
    """Drain, `ray down`, and see that nothing is left on any machine."""
    from fabric.operator import launcher

    with Refusals():
        launcher.take_down(OperatorFolder(folder), notice_s=notice)
    print("Every machine is stopped; nothing is left running.")


@app.command()
def status(folder: FolderOption = Path(), as_json: JsonOption = False) -> None:
    """Which machines are in the cluster, whether the agent runs, and which GPUs the fabric lists."""
    from fabric.operator import launcher

    with Refusals():
        cluster = OperatorFolder(folder).cluster()
        seen = launcher.read_status(cluster)
        gpus = ControlPlane(cluster.url).operator_gpus(cluster.operator)
    nodes = {state.address: state for state in seen.nodes}
    if as_json:
        listed = [{"address": a, "alive": a not in seen.missing} for a in cluster.addresses]
        print(json.dumps({"agent": seen.agent, "nodes": listed, "gpus": gpus}))
    else:
        for address in cluster.addresses:
            print(f"{address}  {'missing' if address in seen.missing else f'alive, {nodes[address].gpus} GPUs'}")
        print(
            f"agent {'runs' if seen.agent else 'does not run'}; the fabric lists {len(gpus)} GPUs of {cluster.operator}"
        )
    raise typer.Exit(0 if seen.complete else 1)


@app.command()
def doctor(
    folder: FolderOption = Path(),
    here: Annotated[bool, typer.Option("--here", help="Examine this machine alone, as a host of the cluster.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine folder, control plane and every machine; says how to mend what is bad, and then ends with 1."""
    from fabric.operator import doctor as examine

    place = OperatorFolder(folder)
    with Refusals():
        cluster = place.cluster()
        if here:
            findings = examine.examine_host(cluster, place.path)
        else:
            findings = examine.examine_folder(place) + examine.examine_hosts(cluster)
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings]))
    else:
        _show(findings)
    raise typer.Exit(1 if failed(findings) else 0)


@app.command()
def join(
    folder: FolderOption = Path(),
    address: Annotated[str, typer.Option(help="The Ray cluster's GCS; default: the head of cluster.yaml.")] = "",
    state: Annotated[Path, typer.Option(help="Where the agent keeps its state.")] = Path("~/.fabric-operator/agent"),
) -> None:
    """Run only the agent, in the foreground, on a Ray cluster that is there already (KubeRay, for example)."""
    from fabric.operator import joining

    with Refusals():
        command = joining.prepare(OperatorFolder(folder), state.expanduser(), address)
    os.execvp(command[0], command)  # noqa: S606 - a list of arguments, no shell


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "where", "what was seen"):
        table.add_column(column, overflow="fold")
    marks = {Verdict.OK: "ok", Verdict.WARNING: "warn", Verdict.BAD: "BAD"}
    for finding in findings:
        seen = f"{finding.detail}\n-> {finding.mend}" if finding.mend else finding.detail
        table.add_row(marks[finding.verdict], finding.check, finding.where or "here", seen)
    Console(soft_wrap=False).print(table)


def _open_wallet(keystore: Path | None, *, browser: bool) -> Signer:
    if browser and keystore is not None:
        raise WalletError("--wallet and --browser are two wallets; give one")
    if browser:
        return BrowserWallet(_open_page)
    if keystore is None:
        key = os.environ.get(_KEY_VARIABLE)
        if not key:
            raise WalletError(f"no wallet: give --browser, or --wallet KEYSTORE, or the key in {_KEY_VARIABLE}")
        return from_key(key)
    password = os.environ.get(_PASSWORD_VARIABLE)
    return open_keystore(keystore, getpass.getpass("Keystore password: ") if password is None else password)


def _open_page(url: str) -> None:
    print(f"Open this page in the browser that has your wallet, look, and sign:\n  {url}")
    webbrowser.open(url)


def _prices(texts: list[str]) -> dict[str, dict[str, str]]:
    prices: dict[str, dict[str, str]] = {}
    for text in texts:
        offer, _, usd = text.partition("=")
        model, _, tier = offer.partition(":")
        if not (model and tier and usd):
            raise InvalidRequest(f"{text!r} is not a price; write MODEL:TIER=USD, such as H100:on_demand=2.49")
        prices.setdefault(model, {})[tier] = usd
    return prices


def _nodes(texts: list[str]) -> dict[str, dict[str, object]]:
    nodes = {}
    for text in texts:
        address, _, settings = text.partition("=")
        try:
            nodes[address] = dict(json.loads(settings))
        except (ValueError, TypeError):
            raise InvalidRequest(f'{text!r} is not a machine\'s settings; write ADDRESS={{"num_gpus": 4}}') from None
    return nodes
