"""The money of the demo: BCT become credits, GPUs have owners, one changes hands, owners claim what was settled."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fabric
from workloads.demo.chain import Chain
from workloads.demo.stage import Stage

WEI_PER_BCT = 10**18
PRICE_USD_E18 = 10**17
"""A tenth of a dollar per BCT."""

SPENT_BCT = 2_000
OWNERS = ("Heidi", "Ivan")
POST_EVENT = (
    "Posted(uint256,uint256,(uint64,uint128,uint128,uint128,uint128,bytes32,bytes32,bytes32,bytes32),uint256,uint256)"
)
FINALISED_EVENT = "Finalised(uint256,uint256,uint256,bytes32)"
_WAIT_S = 60.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Settled:
    """What stands on the chain at the end. DC are whole, BCT in wei; `gas` by what was done."""

    burned_dc: int
    deposited_dc: int
    claimed_wei: dict[str, int]
    owed_wei: dict[str, int]
    sold_gpu: str
    epochs: int
    gas: dict[str, int]

    @property
    def paid_out(self) -> bool:
        """Whether both owners got something, and exactly what the ledger owed them."""
        return self.claimed_wei == self.owed_wei and len(self.owed_wei) == len(OWNERS) and all(self.owed_wei.values())


class Economy:
    """The demo's wallets at work."""

    def __init__(self, stage: Stage, chain: Chain) -> None:
        self._stage = stage
        self._chain = chain
        self._sold = ""

    def begin(self) -> None:
        """Give every GPU an owner, burn BCT for credits, and wait until they are credited."""
        chain, stage = self._chain, self._stage
        self._link_wallet()
        chain.send("house", "price_oracle", "report(uint88)", PRICE_USD_E18)
        for at, gpu in enumerate(stage.get("/v1/gpus")["gpus"]):
            self._register(gpu["id"], OWNERS[at % len(OWNERS)])
        wei = SPENT_BCT * WEI_PER_BCT
        chain.send("customer", "bct", "approve(address,uint256)", chain.contract("data_credits"), wei)
        chain.send("customer", "data_credits", "mint(uint256,uint256)", wei, 1)
        dc = chain.read("data_credits", "balanceOf(address)", "uint256", chain.address("customer"))
        chain.send("customer", "data_credits", "deposit(uint256)", dc)
        _until("the deposit was not credited", lambda: int(stage.get("/v1/account")["available_dc"]) == dc)

    def change_hands(self, run_name: str) -> None:
        """The owner of the GPU that a run used sells it to the other; returns when the fabric knows for good."""
        runs = self._stage.get("/v1/runs", limit=100)["runs"]
        used = next(run for run in runs if run["name"] == run_name)["leases"][0]["gpus"][0]["id"]
        token = int(used, 16)
        seller = self._chain.person(self._chain.read("gpu_nft", "ownerOf(uint256)", "address", token))
        buyer = next(name for name in OWNERS if name != seller)
        addresses = (self._chain.address(seller), self._chain.address(buyer))
        mined = self._chain.send(seller, "gpu_nft", "transferFrom(address,address,uint256)", *addresses, token)
        self._stage.say(f"{seller} sells GPU {used[:10]} to {buyer}: what it earns from now on is {buyer}'s")
        self._sold = used
        _until(
            "the transfer did not become final",
            lambda: self._stage.get("/v1/ledger/settlement")["final_block"] >= mined["blockNumber"],
        )

    def settle(self) -> Settled:
        """Wait until every closed epoch with usage is final on the chain, let the owners claim, and read the totals."""
        last = max(
            epoch["n"] for epoch in self._stage.get("/v1/ledger/epochs", limit=100)["epochs"] if int(epoch["burned_dc"])
        )
        _until(f"epoch {last} was not settled", lambda: self._finalised() > last)
        owed = {name: self._claim(name) for name in OWNERS}
        chain = self._chain
        balances = {name: chain.read("bct", "balanceOf(address)", "uint256", chain.address(name)) for name in OWNERS}
        posts, finals = chain.gas_of(POST_EVENT), chain.gas_of(FINALISED_EVENT)
        gas = {"post an epoch": max(posts), "finalise an epoch": max(finals)} | chain.gas
        return Settled(
            burned_dc=chain.read("data_credits", "burnedTotal()", "uint256"),
            deposited_dc=chain.read("data_credits", "depositedTotal()", "uint256"),
            claimed_wei=balances,
            owed_wei=owed,
            sold_gpu=self._sold,
            epochs=self._finalised(),
            gas=gas,
        )

    def _link_wallet(self) -> None:
        account, health = self._stage.get("/v1/account"), self._stage.get("/healthz")
        address = self._chain.address("customer").lower()
        text = f"wallet {address} is account {account['id']} of fabric {health['fabric_id']}"
        signature = self._chain.sign_text("customer", text)
        self._stage.put("/v1/account/wallet", {"address": address, "signature": signature})

    def _register(self, gpu: str, owner: str) -> None:
        serial = bytes.fromhex(gpu[2:])  # the demo's GPUs have no printed serial numbers
        hosting = (bytes(32), bytes(32), self._chain.address("house"), int(time.time()))
        self._chain.send(
            "house",
            "gpu_nft",
            "register(address,uint256,bytes32,(bytes32,bytes32,address,uint64))",
            self._chain.address(owner),
            int(gpu, 16),
            serial,
            hosting,
        )

    def _finalised(self) -> int:
        """The chain's own answer."""
        return self._chain.read("settlement", "finalised()", "uint64")

    def _claim(self, owner: str) -> int:
        """Claim for all GPUs that ever earned for an owner; returns what the ledger says it is owed, in wei."""
        address = self._chain.address(owner).lower()
        flow = self._stage.get(f"/v1/ledger/holders/{address}", limit=1000)
        epoch = self._finalised() - 1
        gpus = sorted({line["gpu"] for line in flow["cash_flow"] if int(line["wei"])})
        proofs = [self._stage.get(f"/v1/ledger/epochs/{epoch}/proofs/{gpu}:{address}") for gpu in gpus]
        payouts = [_payout(proof) for proof in proofs]
        if payouts:
            self._chain.send(owner, "settlement", "claim(address,(bytes32,uint256,bytes32[])[])", address, payouts)
        return int(flow["wei"])


def _payout(proof: dict[str, Any]) -> tuple[bytes, int, list[bytes]]:
    gpu, _, cumulative = proof["values"]
    return bytes.fromhex(gpu[2:]), int(cumulative), [bytes.fromhex(node[2:]) for node in proof["path"]]


def _until(otherwise: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise fabric.ServiceError(f"{otherwise} within {_WAIT_S:.0f} s; look into the demo's logs with --keep")
        time.sleep(_POLL_S)
