"""One sum, three ways: what the API says, what raw rows give by other code, and what the chain pays.

Over several epochs with a pool of three parts, an NFT that changes hands in the middle of a lease, a GPU that leaves
the pool, and one that takes the place of the NFT's GPU; settled on a real EVM, and claimed there.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from chained import BCT, EPOCH_S, HEIDI, HOUSE, IVAN, bootstrap_without_test_balance, deposit
from eth_account import Account
from scripted import PAYOUT, Agent, Fabric, gpu, nodes
from test_pools import GPU_1, GPU_2, WALLETS, _give_wallets, move, pass_challenges, post, terms

from fabric.wire import link
from fabric.wire.merkle import leaf, root, tag
from fabric.wire.receipts import ReceiptKind
from ledger.chain import calls
from ledger.chain.book import AddressBook
from ledger.chain.client import ChainClient
from ledger.leaves import gpu_id_hex

pytestmark = pytest.mark.chain

OPERATOR_BPS, SHARED_BPS, USED_BPS, WEIGHTS = 1000, 3000, 6000, {"H100": 10, "L4": 1}
POOL_PAYOUT = "0x" + "cd" * 20
NEW = gpu_id_hex("GPU-9")
PRICE_DC = 360_000


class Economy:
    """A fabric whose epochs are settled on a chain, with an agent that never forgets to beat."""

    def __init__(self, fabric: Fabric, client: ChainClient) -> None:
        self.fabric, self.client = fabric, client
        self.agent = Agent(fabric)
        assert isinstance(self.agent.connect(), link.Welcome)
        self.open: list[tuple[link.Grant, int]] = []

    def live(self, seconds: int) -> None:
        """Time passes, receipts come, challenges are passed, the chain is read and written."""
        for _ in range(0, seconds, 6):
            self.agent.beat(6000)
            self.fabric.call("POST", "/v1/sessions/ses-alice/heartbeat")
            for grant, since in self.open:
                self.agent.receipt(grant, ReceiptKind.TICK, self.fabric.clock.now_ms() - since)

    def epoch(self) -> int:
        return self.fabric.call("GET", "/v1/ledger/epochs")["current"]["n"]

    def next_epoch(self) -> int:
        now = self.epoch()
        while self.epoch() == now:
            self.live(6)
        pass_challenges(self.fabric)
        return self.epoch()

    def rent(self, count: int) -> None:
        for _ in range(count):
            self.fabric.submit(gpu=["H100"])
            grant = self.agent.expect(link.Grant)
            self.agent.open(grant)
            self.open.append((grant, self.fabric.clock.now_ms()))

    def give_back(self) -> None:
        for grant, since in self.open:
            self.fabric.call("POST", f"/v1/runs/{grant.run}/finish", {"state": "SUCCEEDED", "reason": "done"})
            self.agent.receipt(grant, ReceiptKind.CLOSE, self.fabric.clock.now_ms() - since, reason="done")
        self.open.clear()

    def settled(self, through: int) -> None:
        deadline = time.monotonic() + 60
        while (found := self.fabric.call("GET", "/v1/ledger/settlement"))["finalised"] <= through:
            assert time.monotonic() < deadline, found
            self.live(6)


@pytest.fixture
def lived(start_chained, chain_settings, tmp_path) -> Economy:
    """Some epochs of it, all settled."""
    fabric = start_chained(
        chain_settings, bootstrap=bootstrap_without_test_balance(tmp_path), allow_simulated=True, challenges=False,
        pool_exit_delay_epochs=1,
    )  # fmt: skip
    client = ChainClient.open(chain_settings.url, AddressBook.read(chain_settings.addresses))
    deposit(fabric, client, 5_000_000)
    _give_wallets(fabric)
    WALLETS["heidi"] = Account.from_key(b"\2" * 32)
    economy = Economy(fabric, client)
    hosting = calls.Hosting(bytes(32), bytes(32), HOUSE.address, 1)
    client.send(HOUSE, calls.register_gpu(HEIDI.address, bytes.fromhex(GPU_1[2:]), b"\7" * 32, hosting))
    economy.live(12)
    parts = {"operator_bps": OPERATOR_BPS, "shared_bps": SHARED_BPS, "used_bps": USED_BPS}
    post(fabric, "op-a", terms(fabric, **parts, operator_payout=POOL_PAYOUT, model_weights=WEIGHTS))
    economy.next_epoch()
    post(fabric, "op-a", move(fabric, "invite", GPU_1))
    post(fabric, "heidi", move(fabric, "join", GPU_1))
    post(fabric, "op-a", move(fabric, "join", GPU_2))
    economy.next_epoch()
    economy.rent(2)
    economy.next_epoch()
    economy.live(18)
    client.send(HEIDI, calls.transfer_gpu(HEIDI.address, IVAN.address, bytes.fromhex(GPU_1[2:])))
    post(fabric, "op-a", move(fabric, "leave", GPU_2))
    for _ in range(2):
        economy.next_epoch()
    economy.live(12)
    economy.give_back()
    economy.agent.close()
    economy.agent = Agent(fabric, nodes=nodes(gpu(9)))
    economy.agent.connect()
    economy.live(12)
    economy.rent(1)
    economy.next_epoch()
    economy.live(12)
    economy.give_back()
    last = economy.epoch()
    economy.next_epoch()
    economy.settled(last)
    return economy


class Recomputed:
    """Usage, rewards and payouts from raw rows, by code that shares nothing with the ledger's."""

    def __init__(self, path: Path, genesis_ms: int) -> None:
        self.rows, self.genesis_ms = sqlite3.connect(f"file:{path}?mode=ro", uri=True), genesis_ms
        self.epochs = [row[0] for row in self.rows.execute("SELECT n FROM ledger_epoch ORDER BY n")]
        self.rewards: dict[tuple[int, str, str, str], int] = {}
        self.used: dict[tuple[int, str, str, str], tuple[int, int]] = {}
        self.paid: dict[int, int] = {}
        self.staked: dict[int, int] = {}
        for epoch in self.epochs:
            self._epoch(epoch)

    def _epoch(self, epoch: int) -> None:
        lines = list(self._usage(epoch))
        by_pool: defaultdict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for gpu_id, holder, pool, gpu_ms, dc in lines:
            self.used[epoch, gpu_id, holder, pool] = (gpu_ms, dc)
            by_pool[pool].append((gpu_id, holder, dc))
        price, emission, remintable, stake_bps = self._facts(epoch)
        value = sum(dc for *_, dc in lines) * 10**31 // price
        self.paid[epoch] = min(value, emission + remintable)
        self.staked[epoch] = self.paid[epoch] * stake_bps // 10_000
        weights = {(pool,): sum(dc for *_, dc in used) for pool, used in by_pool.items()}
        for (pool,), wei in remainders(self.paid[epoch] - self.staked[epoch], weights).items():
            for (gpu_id, holder), part in self._pool(pool, by_pool[pool], wei).items():
                key = (epoch, gpu_id, holder, pool)
                self.rewards[key] = self.rewards.get(key, 0) + part

    def _usage(self, epoch: int) -> Iterator[tuple[str, str, str, int, int]]:
        """(GPU, holder, pool, GPU-ms, DC): the holder from the chain's transfers, or from who stands in for whom."""
        start = self.genesis_ms + epoch * EPOCH_S * 1000
        yield from self.rows.execute(
            """
            WITH placed AS (
                SELECT u.*, m.gpu_id, coalesce((
                    SELECT s.nft_gpu_id FROM chain_stand_in s WHERE s.gpu_id = m.gpu_id AND s.from_ms <= u.at_ms
                    ORDER BY s.from_ms DESC LIMIT 1), m.gpu_id) AS nft
                FROM ledger_usage u JOIN ledger_meter m ON m.id = u.meter_id
                WHERE u.accepted_ms >= :start AND u.accepted_ms < :end AND NOT EXISTS (
                    SELECT 1 FROM ledger_entry e WHERE e.reverses_id = u.entry_id)
            )
            SELECT gpu_id, coalesce((
                SELECT lower(o.holder) FROM chain_owner o WHERE o.gpu_id = nft AND o.from_ms <= at_ms
                ORDER BY o.block_number DESC, o.log_index DESC LIMIT 1), :payout) AS who, pool, sum(gpu_ms), sum(dc)
            FROM placed GROUP BY gpu_id, who, pool
            """,
            {"start": start, "end": start + EPOCH_S * 1000, "payout": PAYOUT},
        )

    def _facts(self, epoch: int) -> tuple[int, int, int, int]:
        """Price, emission by the schedule's formula, what was burned and not minted again, the stakers' bps."""
        price, stake_bps = self.rows.execute(
            "SELECT price_usd_e18, stake_bps FROM ledger_epoch WHERE n = ?", (epoch,)
        ).fetchone()
        supply, count = 500_000_000 * BCT, 2557
        emitted = [supply * x * (2 * count - x) // count**2 for x in (epoch, epoch + 1)]
        burned = sum(number(row[0]) for row in self.rows.execute("SELECT bct_wei FROM chain_mint"))
        beyond = sum(max(0, self.paid[n] - self._emission(n)) for n in self.paid)
        return number(price), emitted[1] - emitted[0], burned - beyond, stake_bps

    def _emission(self, epoch: int) -> int:
        supply, count = 500_000_000 * BCT, 2557
        return (
            supply * (epoch + 1) * (2 * count - epoch - 1) // count**2
            - supply * epoch * (2 * count - epoch) // count**2
        )

    def _pool(self, pool: str, used: list[tuple[str, str, int]], wei: int) -> dict[tuple[str, str], int]:
        by_usage = {(gpu_id, holder): dc for gpu_id, holder, dc in used}
        if not pool.startswith("green"):
            return remainders(wei, by_usage)
        by_gpu: defaultdict[tuple[str, str], int] = defaultdict(int)
        for gpu_id, _, dc in used:
            by_gpu[gpu_id, POOL_PAYOUT] += dc
        available = self._available(int(pool.rpartition("@")[2]))
        operator, shared = wei * OPERATOR_BPS // 10_000, wei * SHARED_BPS // 10_000 if available else 0
        parts = [
            remainders(wei - operator - shared, by_usage),
            remainders(shared, available),
            remainders(operator, by_gpu),
        ]
        return {key: sum(part.get(key, 0) for part in parts) for key in {key for part in parts for key in part}}

    def _available(self, epoch: int) -> dict[tuple[str, str], int]:
        """Weighted time of members that were there, challenged, in that epoch; by who held the NFT."""
        start = self.genesis_ms + epoch * EPOCH_S * 1000
        end = start + EPOCH_S * 1000
        members: dict[str, bool] = {}
        moves = "SELECT gpu_id, enters FROM ledger_pool_move WHERE from_epoch <= ? ORDER BY gpu_id, nth"
        for gpu_id, enters in self.rows.execute(moves, (epoch,)):
            members[gpu_id] = bool(enters)
        challenged = {
            row[0]
            for row in self.rows.execute(
                "SELECT gpu_id FROM challenges WHERE ended_ms >= ? AND ended_ms < ?", (start, end)
            )
        }
        found: dict[tuple[str, str], int] = {}
        uptime = "SELECT gpu_id, from_ms, until_ms, model FROM ledger_gpu_uptime WHERE from_ms < ?"
        mark = self.rows.execute("SELECT through_ms FROM ledger_uptime_mark").fetchone()[0]
        for gpu_id, since, until, model in self.rows.execute(uptime, (end,)):
            if members.get(gpu_id) and gpu_id in challenged:
                self._add_time(found, gpu_id, max(since, start), min(until or mark, end), WEIGHTS[model])
        return {key: weight for key, weight in found.items() if weight}

    def _add_time(self, found: dict[tuple[str, str], int], gpu_id: str, since: int, until: int, weight: int) -> None:
        query = "SELECT from_ms, lower(holder) FROM chain_owner WHERE gpu_id = ? ORDER BY from_ms"
        held = list(self.rows.execute(query, (gpu_id,)))
        for ms_from, ms_to, who in zip(
            [0, *(at for at, _ in held)],
            [*(at for at, _ in held), 2**62],
            [PAYOUT, *(who for _, who in held)],
            strict=True,
        ):
            ms = max(0, min(until, ms_to) - max(since, ms_from))
            found[gpu_id, who] = found.get((gpu_id, who), 0) + ms * weight

    def total(self, **of: Any) -> int:
        """Wei of all rewards with this GPU, holder or pool."""
        names = ("epoch", "gpu", "holder", "pool")
        return sum(
            wei
            for key, wei in self.rewards.items()
            if all(dict(zip(names, key, strict=True))[name].startswith(value) for name, value in of.items())
        )

    def cumulative(self) -> dict[tuple[str, str], int]:
        found: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (_, gpu_id, holder, _), wei in self.rewards.items():
            found[gpu_id, holder] += wei
        return dict(sorted(found.items()))


def number(stored: Any) -> int:
    return int.from_bytes(stored, "big") if isinstance(stored, bytes) else int(stored)


def remainders(wei: int, weights: dict[Any, int]) -> dict[Any, int]:
    """Largest remainder, ties by name."""
    weights = {key: weight for key, weight in weights.items() if weight}
    whole = sum(weights.values())
    exact = {key: Fraction(wei * weight, whole) for key, weight in weights.items()}
    found = {key: int(part) for key, part in exact.items()}
    order = sorted(exact, key=lambda key: (found[key] - exact[key], key))
    for key in order[: wei - sum(found.values())]:
        found[key] += 1
    return found


def test_the_apis_totals_are_those_of_raw_rows_and_what_the_chain_pays(lived, tmp_path):
    get: Callable[[str], Any] = lambda path: lived.fabric.call("GET", f"/v1/ledger/{path}")
    last = lived.client.finalised() - 1
    raw = Recomputed(tmp_path / "state" / "fabric.db", lived.fabric.plane.ledger_settings.genesis_ms)
    assert len({epoch for epoch, *_ in raw.used}) >= 4
    pairs = raw.cumulative()
    heidi, ivan = HEIDI.address.lower(), IVAN.address.lower()
    assert {(GPU_1, heidi), (GPU_1, ivan), (NEW, ivan), (GPU_2, PAYOUT), (GPU_1, POOL_PAYOUT)} <= pairs.keys()

    shown = [(line["epoch"], line["gpu"], line["holder"], line["pool"], int(line["wei"]))
             for line in get("operators/op-1?limit=1000")["cash_flow"]]  # fmt: skip
    assert sorted(shown) == sorted((*key, wei) for key, wei in raw.rewards.items())
    for (epoch, gpu_id, holder, pool), (gpu_ms, dc) in raw.used.items():
        flow = get(f"gpus/{gpu_id}?limit=1000")["cash_flow"]
        (line,) = [one for one in flow if (one["epoch"], one["holder"], one["pool"]) == (epoch, holder, pool)]
        assert (line["gpu_ms"], int(line["dc"])) == (gpu_ms, dc)
    for who in {holder for _, holder in pairs}:
        seen = lived.fabric.call("GET", f"/v1/ledger/holders/{who}", who="admin")
        assert int(seen["wei"]) == raw.total(holder=who)
    for gpu_id in {gpu_id for gpu_id, _ in pairs}:
        assert int(get(f"gpus/{gpu_id}")["earned_wei"]) == raw.total(gpu=gpu_id)
    assert int(get("pools/green")["wei"]) == raw.total(pool="green") > 0
    for row in get("epochs?limit=1000")["epochs"]:
        assert (int(row["paid_wei"]), int(row["staking_wei"])) == (raw.paid[row["n"]], raw.staked[row["n"]])

    assert last == max(raw.epochs)
    leaves = [
        leaf(tag("fabric.payout.v1"), bytes.fromhex(gpu_id[2:]), bytes.fromhex(holder[2:]), wei)
        for (gpu_id, holder), wei in pairs.items()
    ]
    assert lived.client.payout_root() == root(leaves)
    assert lived.client.dc_burned_total() == sum(dc for _, dc in raw.used.values())
    for holder, signer in ((heidi, HEIDI), (ivan, IVAN)):
        owed = {gpu_id: wei for (gpu_id, who), wei in pairs.items() if who == holder}
        paths = {gpu_id: get(f"epochs/{last}/proofs/{gpu_id}:{holder}")["path"] for gpu_id in owed}
        listed = [
            calls.Payout(bytes.fromhex(gpu_id[2:]), wei, [bytes.fromhex(node[2:]) for node in paths[gpu_id]])
            for gpu_id, wei in owed.items()
        ]
        lived.client.send(signer, calls.claim(signer.address, listed))
        assert lived.client.bct_balance_wei(signer.address) == sum(owed.values()) > 0
    assert lived.fabric.audit() == []
