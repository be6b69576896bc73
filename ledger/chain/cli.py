"""`fabric chain`: deploy the contracts, look at them, settle closed epochs. Chain and key come from `FABRIC_CHAIN_*`.

`settle` needs no access to the control plane's database: it takes the published epoch files, computes every number in
them again, and keeps what it sends in a file of its own. So the key that posts may lie on another machine.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.wire.clock import SystemClock
from fabric.wire.errors import InvalidRequest
from ledger.chain.book import AddressBook
from ledger.chain.calls import Closing
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment
from ledger.chain.deploy import deploy as deploy_contracts
from ledger.chain.errors import BadKey, Disagreement, PriceUnavailable
from ledger.chain.link import ChainLink
from ledger.chain.outbox import Outbox
from ledger.chain.settings import ChainSettings
from ledger.chain.settler import Settler, Step
from ledger.chain.signer import Signer
from ledger.chain.statement import closing_of
from ledger.chain.tables import OutboxRow
from ledger.chain.telling import settings_told, told
from ledger.database import Transactions, open_engine
from ledger.emission import DEFAULT_SCHEDULE, WEI_PER_BCT
from ledger.epoch import not_carried
from ledger.leaves import address_bytes
from ledger.published import fetch, get, post
from ledger.tables import table_of

MAX_BCT = (2**96 - 1) // WEI_PER_BCT
MAX_SECONDS = 30 * 86_400
"""As in the contracts: what they would refuse in the end is not begun, for contracts once created stay."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[str, typer.Option("--url", envvar="FABRIC_URL", help="The control plane; default: this machine's.")]
Out = Annotated[Path, typer.Option(help="Where to write the address book.", dir_okay=False)]
Address = Annotated[str, typer.Option(metavar="ADDRESS", help="Default: the deploying key's.")]
Bct = Annotated[int, typer.Option(min=1, max=MAX_BCT, help="Whole BCT.")]

_POLL_S = 1.0


@app.command()
def deploy(
    *,
    out: Out,
    genesis_bct: Annotated[int, typer.Option(min=0, max=MAX_BCT, help="BCT that exist from the beginning.")],
    genesis_holder: Address = "",
    owner: Address = "",
    poster: Address = "",
    registrar: Address = "",
    stakers: Address = "",
    reporter: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Repeatable; default: the key's.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, max=15, help="Fresh reports that make a price.")] = 1,
    start_s: Annotated[
        int | None, typer.Option(min=0, max=2**40, help="Unix second at which epoch 0 begins; default: now.")
    ] = None,
    epoch_s: Annotated[int, typer.Option(min=1, max=MAX_SECONDS, help="Seconds of an epoch.")] = 86_400,
    window_s: Annotated[int, typer.Option(min=1, max=MAX_SECONDS, help="Seconds of the dispute window.")] = 86_400,
    supply_bct: Bct = DEFAULT_SCHEDULE.total_wei // WEI_PER_BCT,
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Epochs over which the supply is emitted.")] = (
        DEFAULT_SCHEDULE.epochs
    ),
    stake_bps: Annotated[int, typer.Option(min=200, max=1000, help="Stakers' share of each epoch's pay.")] = 500,
    step_bps: Annotated[
        int, typer.Option(min=100, max=5000, help="A larger move of the price within an hour halts the oracle.")
    ] = 2000,
    freshness_s: Annotated[
        int, typer.Option(min=60, max=86_400, help="Seconds for which a reported price holds.")
    ] = 3600,
    bond_bct: Annotated[int, typer.Option(min=1, max=1_000_000, help="Whole BCT that a dispute puts at stake.")] = 1000,
    base_uri: Annotated[str, typer.Option(help="Of the GPU titles' metadata.")] = "",
    as_json: Json = False,
) -> None:
    """Create the five contracts and write their address book, to which FABRIC_CHAIN_ADDRESSES then points."""
    with told():
        settings = settings_told()
        signer = Signer.from_settings(settings)
        if out.exists():
            raise InvalidRequest(f"{out} exists; a deployment is not undone: name another file, or move this one away")
        if not os.access(out.absolute().parent, os.W_OK):
            raise InvalidRequest(f"no file can be written in {out.absolute().parent}; name another place for --out")
        named = {"genesis_holder": genesis_holder, "owner": owner, "poster": poster, "registrar": registrar}
        roles = {
            name: _address(name, given or signer.address) for name, given in (named | {"stakers": stakers}).items()
        }
        wanted = Deployment(
            **roles,
            reporters=tuple(_address("reporter", given) for given in reporter or [signer.address]),
            genesis_wei=genesis_bct * WEI_PER_BCT,
            start_s=int(time.time()) if start_s is None else start_s,
            epoch_s=epoch_s,
            window_s=window_s,
            supply_wei=supply_bct * WEI_PER_BCT,
            epochs=epochs,
            quorum=quorum,
            freshness_s=freshness_s,
            step_bps=step_bps,
            stake_bps=stake_bps,
            bond_wei=bond_bct * WEI_PER_BCT,
            base_uri=base_uri,
        )
        book = deploy_contracts(_url(settings), signer, wanted)
        book.write(out)
    if as_json:
        print(out.read_text())
    else:
        print(f"deployed on chain {book.chain_id}, epoch 0 begins at {wanted.start_s}; the address book is {out}")


@app.command()
def status(*, as_json: Json = False) -> None:
    """What stands on the chain: the queue of epochs, the totals, the oracle, the settler's funds."""
    with told():
        link = _link()
        found = _standing(link.client(), link.book)
        if link.signer is not None:
            found["key"] = {"address": link.signer.address, "wei": str(link.client().balance_wei(link.signer.address))}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"chain {found['chain_id']}, block {found['block']}, Settlement {found['settlement']}")
    print(f"epochs finalised: {found['finalised']}, posted: {found['posted']}")
    print(f"DC deposited {found['deposited_dc']}, burned {found['burned_dc']}")
    print(f"BCT paid {found['paid_wei']} wei, promised {found['promised_wei']}, claimed {found['claimed_wei']}")
    print(f"oracle: {found['oracle']}")
    if "key" in found:
        print(f"key {found['key']['address']} has {found['key']['wei']} wei for gas")


@app.command()
def resume(*, url: Url = "") -> None:
    """Let a control plane follow the chain again after it halted; needs an admin's FABRIC_API_KEY."""
    answer = post(url, "/v1/chain/resume")
    typer.echo(f"following chain {answer['chain_id']} again from block {answer['final']}")


@app.command()
def settle(
    *,
    url: Url = "",
    outbox: Annotated[Path | None, typer.Option(help="Where to keep what was sent.", dir_okay=False)] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="Go on for so long, until all closed epochs are final.")] = 0,
    as_json: Json = False,
) -> None:
    """Post and finalise what is due: every closed epoch, from its published file, once and in order."""
    with told():
        link = _link()
        if link.signer is None:
            raise BadKey("no key to settle with; set FABRIC_CHAIN_KEYSTORE and its password, or FABRIC_CHAIN_KEY")
        engine = open_engine(f"sqlite:///{_outbox_file(outbox)}")
        with engine.begin() as connection:
            table_of(OutboxRow).create(connection, checkfirst=True)
        sent = Outbox(link.client(), link.signer, Transactions(engine), SystemClock(), link.confirmations)
        closings = PublishedClosings(url, link.settlement)
        step = _settle(Settler(link.client(), sent, closings), closings, wait_s)
        engine.dispose()
    if as_json:
        print(json.dumps({"finalised": step.finalised, "posted": step.posted, "says": step.text}, indent=2))
    else:
        print(f"epochs finalised: {step.finalised}, posted: {step.posted}; {step.text}")


class PublishedClosings:
    """Closings from the files that a control plane publishes, each computed again before it is believed.

    Each is also held to the file of the epoch before, whose sums it has to go on from.
    """

    def __init__(self, url: str, settlement: str) -> None:
        self._url = url
        self._settlement = settlement

    @property
    def closed(self) -> int:
        """How many epochs are closed."""
        found = get(self._url, "/v1/ledger/epochs?limit=1")["epochs"]
        return found[0]["n"] + 1 if found else 0

    def closing(self, epoch: int) -> Closing | None:
        if epoch >= self.closed:
            return None
        body = self._file(epoch)
        closing = closing_of(body, self._settlement)
        fault = next(not_carried(body, self._file(epoch - 1) if epoch else None), None)
        if fault is not None:
            raise Disagreement(f"the file of epoch {epoch} does not go on from the one before: {fault}")
        return closing

    def _file(self, epoch: int) -> bytes:
        return fetch(self._url, f"/v1/ledger/epochs/{epoch}/file").content


def _settle(settler: Settler, closings: PublishedClosings, wait_s: float) -> Step:
    deadline = time.monotonic() + wait_s
    while True:
        step = settler.step()
        if not step.busy and (time.monotonic() >= deadline or step.finalised >= closings.closed):
            return step
        if not step.busy:
            time.sleep(_POLL_S)


def _standing(client: ChainClient, book: AddressBook) -> dict[str, Any]:
    head = client.head()
    paid, promised, claimed = client.totals_wei()
    try:
        price, average = client.price_and_average(head.time_s)
        oracle = f"{price} USD x 10^-18 per BCT, 24 h average {average}"
    except PriceUnavailable as why:
        oracle = str(why)
    return {
        "chain_id": book.chain_id,
        "block": head.number,
        "settlement": book.settlement,
        "posted": client.posted(),
        "finalised": client.finalised(),
        "deposited_dc": str(client.dc_deposited_total()),
        "burned_dc": str(client.dc_burned_total()),
        "bct_supply_wei": str(client.bct_supply_wei()),
        "paid_wei": str(paid),
        "promised_wei": str(promised),
        "claimed_wei": str(claimed),
        "oracle": oracle,
    }


def _url(settings: ChainSettings) -> str:
    if settings.url is None:
        raise InvalidRequest("no chain to deploy on; set FABRIC_CHAIN_URL to the address of its JSON-RPC")
    return settings.url


def _link() -> ChainLink:
    link = ChainLink.from_settings(settings_told())
    if link is None:
        raise InvalidRequest(
            "no chain is configured; set FABRIC_CHAIN_URL to its JSON-RPC and FABRIC_CHAIN_ADDRESSES to the file that "
            "`fabric chain deploy` wrote"
        )
    return link


def _address(name: str, given: str) -> str:
    from eth_utils.address import to_checksum_address

    try:
        return to_checksum_address(address_bytes(given))
    except ValueError as error:
        raise InvalidRequest(f"--{name.replace('_', '-')}: {error}") from None


def _outbox_file(given: Path | None) -> Path:
    home = Path(os.environ.get("FABRIC_HOME") or Path.home() / ".fabric")
    path = given or home / "chain-outbox.db"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path.absolute()
