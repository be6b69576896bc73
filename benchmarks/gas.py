"""Gas of every operation of the contracts, from the receipts of an EVM.

Uses anvil when it is found (on the PATH, beside the contracts' compiler, or given with ``--anvil``), else the
product's own EVM, whose receipts say the same. The cost of closing an epoch is measured for two numbers of GPUs, each
on contracts deployed afresh and after a first, small epoch: it must not depend on them (a zero byte in a root's call
data is 12 gas cheaper than another).
"""

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ledger.contracts
from fabric.wire import merkle
from fabric.wire.hashing import keccak256
from ledger.chain import calls
from ledger.chain.calls import Call, Closing, Hosting, Payout
from ledger.chain.client import ChainClient
from ledger.chain.deploy import Deployment, deploy
from ledger.chain.errors import ChainUnreachable
from ledger.chain.rpc import ask, connect
from ledger.chain.signer import Signer
from ledger.leaves import address_bytes, payout_leaf

BCT = USD = 10**18
EPOCH_S, WINDOW_S = 6, 1
BATCH = 32
PAID = 10**17
EXITED = 1000
PEOPLE = ("deployer", "customer", "poster", "reporter", "holder", "auditor")
FUND_WEI = 10**22


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gas", description=__doc__)
    parser.add_argument("--gpus", type=int, nargs=2, default=[1_000, 100_000], help="numbers of GPUs to close with")
    parser.add_argument("--anvil", type=Path, default=None, help="path of the anvil binary (default: found, or none)")
    parser.add_argument("--own-evm", action="store_true", help="use the product's own EVM even if anvil is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    anvil = None if arguments.own_evm else arguments.anvil or find_anvil()
    with running_chain(anvil) as url:
        figures = measure(url, arguments.gpus)
    config = {"engine": "anvil" if anvil else "own", "gpus": arguments.gpus}
    if arguments.json:
        print(json.dumps({"name": "gas", "config": config, "figures": figures}))
    else:
        print(f"on {config['engine']}")
        for name, gas in figures.items():
            print(f"{name:28} {gas:>9,}")


def find_anvil() -> Path | None:
    """The binary on the PATH, else the one of the contracts' development packages."""
    found = shutil.which("anvil")
    beside = Path(ledger.contracts.__file__).parent / "node_modules" / "@foundry-rs"
    return Path(found) if found else next(beside.glob("anvil-*/bin/anvil"), None)


@contextlib.contextmanager
def running_chain(anvil: Path | None) -> Iterator[str]:
    """A chain on loopback on which everybody has funds, stopped at the end."""
    addresses = [signer_of(person).address for person in PEOPLE]
    if anvil is None:
        command = [sys.executable, "-P", "-m", "ledger.chain.evm"]
        funded = [word for address in addresses for word in ("--fund", address)]
        with _process([*command, *funded]) as process:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        return
    port = _free_port()
    with _process([str(anvil), "--hardfork", "prague", "--port", str(port), "--silent"]) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        for address in addresses:
            connect(url).provider.make_request("anvil_setBalance", [address, hex(FUND_WEI)])  # type: ignore[arg-type]
        yield url


def measure(url: str, sizes: Sequence[int]) -> dict[str, int]:
    """Gas per operation; closing once per size, everything else once."""
    first, *others = sizes
    bench = Bench(url)
    figures = bench.measure(first)
    for gpus in others:
        bench = Bench(url)
        figures |= bench.measure(gpus)
    return figures | bench.claims()


class Bench:
    """Freshly deployed contracts with deposits, GPUs and a price; remembers what each operation cost."""

    def __init__(self, url: str) -> None:
        self.people = {person: signer_of(person) for person in PEOPLE}
        at = {person: signer.address for person, signer in self.people.items()}
        start = max(int(time.time()), ask("head", lambda: connect(url).eth.get_block("latest"))["timestamp"])  # type: ignore[typeddict-item]
        deployment = Deployment(
            owner=at["deployer"],
            reporters=(at["reporter"],),
            registrar=at["deployer"],
            genesis_holder=at["customer"],
            genesis_wei=10**24,
            poster=at["poster"],
            stakers=at["deployer"],
            start_s=start,
            epoch_s=EPOCH_S,
            window_s=WINDOW_S,
            supply_wei=500_000_000 * BCT,
            epochs=2557,
        )
        self.client = ChainClient.open(url, deploy(url, self.people["deployer"], deployment))
        self.gas: dict[str, int] = {}
        self._set_up()

    def measure(self, gpus: int) -> dict[str, int]:
        """Gas of everything up to a closed epoch of so many GPUs."""
        self._close(0, BATCH + 1, "first")
        self._close(1, gpus, str(gpus))
        total = self.gas[f"post_{gpus}"] + self.gas[f"finalise_{gpus}"]
        return self.gas | {f"post_finalise_{gpus}": total}

    def _close(self, epoch: int, gpus: int, name: str) -> None:
        holder, customer = address_bytes(self.people["holder"].address), self.people["customer"].address
        ids = [keccak256(gpus.to_bytes(4, "big"), i.to_bytes(4, "big")) for i in range(gpus)]
        each = PAID // gpus
        self.tree = merkle.levels([payout_leaf(gpu, holder, each) for gpu in ids])
        self.payouts = [Payout(ids[i], each, merkle.proof_in(self.tree, i)) for i in range(BATCH + 1)]
        exited = EXITED * (epoch + 1)
        exit_root = merkle.leaf(merkle.tag("fabric.exit.v1"), address_bytes(customer), exited)
        stake = PAID // 19  # 5 % of the whole
        closing = Closing(epoch, 100_000, PAID, stake, exited, self.tree[-1][0], exit_root, b"\x01" * 32, b"\x02" * 32)
        self._pass(self.client.epoch_end_s(epoch))
        self._send("poster", f"post_{name}", calls.post(closing))
        self._pass(self.client.ready_at_s(epoch))
        self._send("poster", f"finalise_{name}", calls.finalise(closing))

    def claims(self) -> dict[str, int]:
        """What is paid out of the epoch closed last."""
        holder, customer = self.people["holder"].address, self.people["customer"].address
        self._send("holder", "claim_1_gpu", calls.claim(holder, self.payouts[:1]))
        self._send("holder", f"claim_{BATCH}_gpus", calls.claim(holder, self.payouts[1:]))
        self._send("customer", "claim_exit", calls.claim_exit(customer, 2 * EXITED, []))
        self._send("reporter", "report", calls.report_price(USD))
        return self.gas

    def _set_up(self) -> None:
        customer, holder = self.people["customer"].address, self.people["holder"].address
        self._send("reporter", "report_first", calls.report_price(USD))
        self._send("customer", "bct_approve", calls.approve_bct(self.client.book.data_credits))
        self._send("customer", "dc_mint", calls.mint_dc(100 * BCT, 0))
        self._send("customer", "dc_deposit", calls.deposit_dc(10_000_000))
        self._send("customer", "request_exit", calls.request_exit(2 * EXITED))
        hosting = Hosting(b"\x01" * 32, b"\x02" * 32, customer, 1)
        gpu = keccak256(b"gpu")
        self._send("deployer", "gpu_register", calls.register_gpu(holder, gpu, keccak256(b"serial"), hosting))
        self._send("holder", "gpu_transfer", calls.transfer_gpu(holder, customer, gpu))

    def _send(self, person: str, operation: str, call: Call) -> None:
        self.gas[operation] = self.client.send(self.people[person], call).gas_used

    def _pass(self, second: int) -> None:
        """Waits until the clock is past ``second``; a transaction of no effect then makes a block of that time."""
        while time.time() < second + 1:
            time.sleep(0.1)
        self.client.send(self.people["reporter"], calls.transfer_bct(self.people["reporter"].address, 0))


def signer_of(person: str) -> Signer:
    return Signer(keccak256(b"benchmark", person.encode()))


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    """Waits until our own process answers; a stranger on the port would be found by its exit."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ChainUnreachable):
            ask("chain id", lambda: connect(url).eth.chain_id)
            return
        time.sleep(0.05)
    raise SystemExit(f"anvil did not answer at {url}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
