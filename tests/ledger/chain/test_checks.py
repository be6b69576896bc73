"""Each checker of what came from the chain: silent on rows that are right, and naming the row that is not."""

from dataclasses import replace

import pytest
from indexed import BOOK, START, WALLETS, Place
from sqlalchemy import text
from sqlmodel import Session

from ledger.audit import run_audit
from ledger.chain import crediting
from ledger.chain.checks import CHAIN_CHECKS
from ledger.chain.following import Block
from ledger.chain.index import Index
from ledger.chain.tables import (
    ClaimRow,
    DepositRow,
    EventRow,
    ExitPaymentRow,
    ExitRequestRow,
    FinalisationRow,
    MintRow,
    OwnerRow,
    PostRow,
    RewindRow,
)
from ledger.checks import LEDGER_CHECKS
from ledger.closing import EpochTerms
from ledger.leaves import gpu_id_hex
from ledger.settings import LedgerSettings
from ledger.usage import Usage

ALICE, HEIDI, IVAN = WALLETS["alice"], "0x" + "4e" * 20, "0x" + "1a" * 20
GPU = gpu_id_hex("GPU-1")
ROOT = bytes(32)


class Told:
    """A database into which blocks are told, final at once."""

    def __init__(self, place: Place) -> None:
        self.place, self.session = place, Session(place.engine)
        self.ledger = place.ledger(self.session)
        self.index, self.number = Index(self.session), START - 1
        self.index.begin(BOOK)

    def block(self, *events: EventRow, book: bool = True) -> None:
        self.number += 1
        for i, event in enumerate(events):
            event.block_number, event.log_index, event.tx_hash = self.number, i, ROOT
        block = Block(self.number, self.number.to_bytes(32, "big"), (self.number - 1).to_bytes(32, "big"), self.number)
        self.index.append(block, events)
        if book:
            crediting.book(self.session, self.ledger, events)
        self.index.finalise(self.number)

    def findings(self) -> dict[str, str]:
        """The first finding of each checker that has one."""
        results = run_audit(self.session, (*LEDGER_CHECKS, *CHAIN_CHECKS), now_ms=self.place.clock.now_ms()).results
        return {result.name: result.findings[0].message for result in results if result.findings}


@pytest.fixture
def told() -> Told:
    place = Place()
    place.link()
    return Told(place)


def deposit(dc: int, account: str = ALICE) -> DepositRow:
    return DepositRow(account=account, dc=dc, total_dc=dc)


def post(epoch: int, post_id: int, **members) -> PostRow:
    given = {"value_wei": 0, "ready_at_s": 0, "burned_dc": 0, "rewards_wei": 0, "stake_wei": 0, "exited_total_dc": 0}
    roots = dict.fromkeys(("payout_root", "exit_root", "usage_root", "file"), ROOT)
    return PostRow(epoch=epoch, post_id=post_id, **(given | roots | members))


def finalisation(epoch: int, post_id: int, *, paid_wei: int = 0, payout_root: bytes = ROOT) -> FinalisationRow:
    return FinalisationRow(epoch=epoch, post_id=post_id, paid_wei=paid_wei, payout_root=payout_root)


def claim(wei: int, cumulative_wei: int) -> ClaimRow:
    return ClaimRow(gpu_id=GPU, holder=HEIDI, wei=wei, cumulative_wei=cumulative_wei)


@pytest.fixture
def closed(told) -> tuple[Told, dict]:
    """An epoch closed by the ledger, and what the chain says of it when it is settled as it was closed."""
    clock, ledger = told.place.clock, told.ledger
    clock.advance(LedgerSettings().genesis_ms - clock.now_ms())
    told.block(deposit(1_000_000), MintRow(account=ALICE, bct_wei=10**19, dc=1, price_usd_e18=1))
    told.block(OwnerRow(gpu_id=GPU, holder=HEIDI, from_ms=1000))
    ledger.hold("lease-1", "run-1", "alice", 100_000, "hold/1")
    ledger.charge("lease-1", usage(told))
    ledger.release_hold("lease-1")
    clock.advance(2 * 86_400_000)
    result = ledger.close_epoch(0, EpochTerms())
    said = {"payout_root": result.payout_root, "usage_root": result.usage_root, "burned_dc": result.totals.burned_dc}
    row = told.session.execute(text("SELECT file_hash FROM ledger_epoch")).scalar_one()
    return told, said | {"file": row, "paid_wei": result.totals.paid_wei, "wei": result.payouts[0].wei}


def usage(told: Told, **members) -> Usage:
    given = Usage(
        lease_id="lease-1", generation=1, seq=1, run_id="run-1", customer="alice", gpu_id=GPU, operator="op-1",
        pool="op-1", holder=HEIDI, model="H100", share_milli=1000, price_dc_per_gpu_hour=200_000,
        cumulative_gpu_ms=1_800_000, at_ms=told.place.clock.now_ms(),
    )  # fmt: skip
    return replace(given, **members)


def test_a_database_that_never_saw_a_chain_has_nothing_to_find():
    with Session(Place().engine) as session:
        assert run_audit(session, CHAIN_CHECKS, now_ms=0).clean


def test_a_settled_and_claimed_epoch_is_clean(closed):
    told, said = closed
    members = {name: said[name] for name in ("payout_root", "usage_root", "burned_dc", "file")}
    told.block(post(0, 1), RewindRow(to_epoch=0, refusal=0), post(0, 2, **members))
    told.block(finalisation(0, 2, paid_wei=said["paid_wei"], payout_root=said["payout_root"]))
    told.block(claim(5, 5), claim(said["wei"] - 5, said["wei"]))
    told.block(ExitRequestRow(account=ALICE, dc=2**255, requested_dc=2**255))
    told.block(ExitPaymentRow(account=ALICE, dc=7, paid_dc=7))
    assert told.findings() == {}


@pytest.mark.parametrize(
    "events",
    [
        (post(1, 1),),
        (post(0, 1), post(0, 2)),
        (post(0, 1), finalisation(0, 2)),
        (finalisation(0, 1),),
        (post(0, 1), post(1, 2), finalisation(1, 2)),
        (post(0, 1), RewindRow(to_epoch=0, refusal=1), finalisation(0, 1)),
    ],
    ids=["gap", "twice", "other post", "no post", "out of order", "after a rewind"],
)
def test_settlements_out_of_order_are_found(told, events):
    told.block(*[type(event)(**event.model_dump()) for event in events])
    assert "was next" in told.findings()["settlements are in order"]


def test_a_halt_a_broken_trail_and_an_event_without_its_block_are_found(told):
    told.block(deposit(5))
    told.block()
    assert told.findings() == {}
    told.index.halt("a reorg below finality", 0)
    assert "a reorg below finality" in told.findings()["the chain is followed"]
    told.index.unhalt()
    told.session.add(DepositRow(block_number=99, log_index=0, tx_hash=ROOT, account=ALICE, dc=1, total_dc=1))
    told.session.flush()
    assert told.findings() == {"the chain is followed": "its block is not known"}
    told.session.execute(text("UPDATE chain_block SET hash = x'00'"))
    assert "not the block that was final" in told.findings()["the chain is followed"]


def test_what_was_not_booked_or_booked_otherwise_or_of_no_event_is_found(told):
    name = "what is final on the chain is booked"
    told.block(deposit(5, IVAN), deposit(5))
    assert told.findings() == {}
    told.block(deposit(6), book=False)
    assert told.findings()[name] == "it is final and was not booked"
    told.ledger.deposit("bob", 6, f"chain/{told.number}/0")
    assert "the chain says 6" in told.findings()[name]
    told.ledger.deposit("bob", 6, "chain/99/0")
    assert "the chain says 6" in told.findings()[name]
    told.block(deposit(8), book=False)
    told.ledger.request_exit("alice", 2, f"chain/{told.number}/0")
    assert len(list(CHAIN_CHECKS[2].run(told.session))) == 3


def test_settled_otherwise_than_closed_or_never_closed_is_found(closed):
    told, said = closed
    members = {name: said[name] for name in ("payout_root", "usage_root", "burned_dc", "file")}
    told.block(post(0, 1, **(members | {"burned_dc": 1})))
    told.block(finalisation(0, 1, paid_wei=said["paid_wei"], payout_root=said["payout_root"]))
    assert "other roots or sums" in told.findings()["settled is what was closed"]
    told.block(post(1, 2), finalisation(1, 2))
    assert "did not close" in list(CHAIN_CHECKS[3].run(told.session))[1].message


def test_claims_beyond_promises_and_pay_beyond_emission_and_burned_are_found(closed):
    told, said = closed
    told.block(post(0, 1), finalisation(0, 1, paid_wei=10**30))
    told.block(claim(said["wei"] + 1, said["wei"] + 1), book=False)
    messages = [one.message for one in CHAIN_CHECKS[4].run(told.session)]
    assert "emission and burned BCT allow" in messages[0]
    assert "promised" in messages[1]


def test_usage_booked_for_another_than_who_held_the_nft_is_found(told):
    told.block(deposit(1_000_000), OwnerRow(gpu_id=GPU, holder=IVAN, from_ms=1000))
    told.ledger.hold("lease-1", "run-1", "alice", 100_000, "hold/1")
    told.ledger.charge("lease-1", usage(told, cumulative_gpu_ms=1000))
    assert f"{IVAN} held" in told.findings()["usage is booked for who held the NFT"]
    told.block(OwnerRow(gpu_id=GPU, holder=HEIDI, from_ms=2000))
    assert told.findings() == {}
