from dataclasses import replace

import pytest
from sqlalchemy import select

from fabric.wire.merkle import root
from ledger import accounts
from ledger.book import Book
from ledger.closing import EPOCH, EpochTerms, file_of
from ledger.emission import WEI_PER_BCT, Schedule
from ledger.epoch import read_file, verify_file
from ledger.errors import EpochNotOver, EpochOutOfOrder, Overdrawn
from ledger.leaves import gpu_id_hex, lease_leaf
from ledger.sealer import Sealer
from ledger.settings import NOT_SETTLED
from ledger.split import AvailableLine, PoolTerms
from ledger.store import Ledger

GPU = gpu_id_hex("GPU-1")
HOLDER = "0x" + "11" * 20
HOUR = 3_600_000


@pytest.fixture
def used(funded, use, clock):
    """A tenth of a dollar and a bit of usage, in epoch 0."""
    funded.charge("lease-1", use(1, 180_000))
    return funded


def test_an_epoch_burns_its_final_usage_and_pays_its_value(used, session, clock):
    clock.advance(HOUR)
    result = used.close_epoch(0)
    book = Book(session)
    assert result.totals.burned_dc == book.balance(accounts.burned(0)) == 10_000
    assert result.totals.paid_wei == WEI_PER_BCT  # 0.1 USD at 0.1 USD per BCT
    assert book.balance(accounts.payable(GPU, HOLDER)) == WEI_PER_BCT * 95 // 100
    assert book.balance(accounts.staking(0)) == WEI_PER_BCT * 5 // 100
    assert book.balance(accounts.emission(0)) == -WEI_PER_BCT
    assert book.balance(accounts.usage_final(GPU, 0)) == 0


def test_without_a_chain_the_epoch_says_so_and_its_price_is_marked_test(used, session, clock):
    clock.advance(HOUR)
    used.close_epoch(0)
    row = session.execute(select(EPOCH)).one()
    assert (row.price_source, row.settlement) == ("test", NOT_SETTLED)
    assert NOT_SETTLED == "not settled: no chain configured"


def test_an_epoch_closes_once_and_answers_the_same_again(used, session, clock):
    clock.advance(HOUR)
    first = used.close_epoch(0)
    body = file_of(session, 0)
    assert used.close_epoch(0, EpochTerms(price_usd_e18=1)) == first
    assert file_of(session, 0) == body


def test_an_epoch_does_not_close_before_its_end(used, clock):
    clock.advance(HOUR - 1)
    with pytest.raises(EpochNotOver):
        used.close_epoch(0)
    clock.advance(1)
    used.close_epoch(0)


def test_epochs_close_in_order_and_none_with_usage_is_left_out(used, use, clock):
    clock.advance(3 * HOUR)
    with pytest.raises(EpochOutOfOrder, match="epoch 0 is the next"):
        used.close_epoch(1)
    used.close_epoch(0)
    with pytest.raises(EpochOutOfOrder, match="epoch 1 is the next"):
        used.close_epoch(2)
    assert used.close_epoch(1).totals.paid_wei == 0
    used.close_epoch(2)


def test_the_first_epoch_to_close_is_the_first_one_used(funded, use, clock):
    clock.advance(5 * HOUR)
    funded.charge("lease-1", use(1, 1000))
    clock.advance(2 * HOUR)
    with pytest.raises(EpochOutOfOrder, match="epoch 5"):
        funded.close_epoch(6)
    assert funded.close_epoch(5).totals.burned_dc == 56


def test_usage_of_a_closed_epoch_never_changes_and_late_usage_goes_to_the_next(used, use, clock):
    clock.advance(HOUR - 300_000)
    used.charge("lease-1", use(2, 200_000))  # final in epoch 1
    clock.advance(300_000)
    assert used.close_epoch(0).totals.burned_dc == 10_000
    clock.advance(HOUR)
    assert used.close_epoch(1).totals.gpu_ms == 20_000


def test_cumulative_payouts_grow_and_past_payees_stay_leaves(used, use, clock):
    clock.advance(HOUR)
    first = used.close_epoch(0).payouts[0]
    other = "0x" + "22" * 20
    used.charge("lease-1", use(2, 360_000, holder=other))
    clock.advance(HOUR)
    payouts = {payout.holder: payout for payout in used.close_epoch(1).payouts}
    assert (payouts[HOLDER].wei, payouts[HOLDER].cumulative_wei) == (0, first.cumulative_wei)
    assert payouts[other].wei == payouts[other].cumulative_wei > 0


def test_the_usage_leaf_holds_the_last_receipt_of_each_lease(used, use, clock):
    used.charge("lease-1", use(2, 360_000, receipt_hash=b"\7" * 32))
    used.hold("lease-2", "run-1", "alice", 40_000, "hold/2")
    used.charge("lease-2", use(1, 36_000, lease_id="lease-2", receipt_hash=b"\x08" * 32))
    clock.advance(HOUR)
    (usage,) = used.close_epoch(0).usages
    leaves = [lease_leaf("lease-1", 360_000, 20_000, b"\7" * 32), lease_leaf("lease-2", 36_000, 2_000, b"\x08" * 32)]
    assert usage.leases_root == root(leaves)
    assert (usage.gpu_ms, usage.dc) == (396_000, 22_000)


def test_a_gpus_payers_are_counted_over_the_last_epochs(used, use, clock):
    used.credit_test("bob", 100_000, "t/bob")
    used.hold("lease-2", "run-2", "bob", 40_000, "hold/2")
    clock.advance(HOUR)
    used.close_epoch(0)
    used.charge("lease-2", use(1, 540_000, lease_id="lease-2", customer="bob"))
    clock.advance(HOUR)
    (usage,) = used.close_epoch(1).usages
    assert (usage.payers, usage.largest_payer_bps) == (2, 7500)


def test_what_emission_does_not_cover_comes_from_burned_bct(session, clock, settings, use):
    poor = Ledger(session, clock, replace(settings, schedule=Schedule(WEI_PER_BCT // 4, 1)))
    poor.credit_test("alice", 1_000_000, "t")
    poor.hold("lease-1", "run-1", "alice", 40_000, "h")
    poor.record_bct_burned(WEI_PER_BCT // 2, "burned/1")
    poor.charge("lease-1", use(1, 180_000))
    clock.advance(HOUR)
    totals = poor.close_epoch(0).totals
    assert totals.paid_wei == WEI_PER_BCT * 3 // 4
    assert Book(session).balance(accounts.remintable()) == 0


def test_a_claim_takes_what_was_promised_and_no_more(used, session, clock):
    clock.advance(HOUR)
    wei = used.close_epoch(0).payouts[0].wei
    with pytest.raises(Overdrawn):
        used.record_claim(GPU, HOLDER, wei + 1, "claim/0")
    used.record_claim(GPU, HOLDER, wei, "claim/1")
    assert Book(session).balance(accounts.claimed(GPU, HOLDER)) == wei


def test_a_pools_terms_split_its_reward_and_stand_in_the_file(used, session, clock):
    operator, idle = "0x" + "99" * 20, gpu_id_hex("GPU-2")
    terms = EpochTerms(
        price_usd_e18=2 * 10**17,
        price_source="oracle",
        pools={"op-1": PoolTerms(1000, 2000, 7000, operator, {"H100": 1})},
        available=[AvailableLine(idle, HOLDER, "op-1", "op-1", "H100", 1000)],
        payer_salt=b"salt",
        settlement="posted",
    )
    clock.advance(HOUR)
    result = used.close_epoch(0, terms)
    reward = WEI_PER_BCT // 2 * 95 // 100
    assert {(p.gpu_id, p.holder): p.wei for p in result.payouts} == {
        (GPU, HOLDER): reward * 7 // 10,
        (GPU, operator): reward // 10,
        (idle, HOLDER): reward * 2 // 10,
    }
    body = file_of(session, 0)
    assert body is not None
    assert verify_file(body).faults == ()
    given, content = read_file(body)
    assert given.pools == terms.pools
    assert b"alice" not in body
    assert content["payers"][0][1] == "10000"


def test_the_same_facts_have_the_roots_files_and_seals_that_they_always_had(ledger, session, use, clock):
    """Of a ledger of any age: what is sealed and published must come out bit for bit, however it is computed."""
    operator = "0x" + "99" * 20
    shared = EpochTerms(pools={"pool-1": PoolTerms(1000, 0, 9000, operator)}, payer_salt=b"salt")
    ledger.record_bct_burned(10**20, "burned/1")
    for n, customer in enumerate(("alice", 'b/%"\\ü')):
        ledger.credit_test(customer, 10**6, f"t/{n}")
        ledger.hold(f"lease-{n}", f"run-{n}", customer, 500_000, f"hold/{n}")
    for epoch, terms in enumerate((shared, EpochTerms())):
        for n, customer in enumerate(("alice", 'b/%"\\ü')):
            ledger.charge_many(
                [
                    use(epoch, 61_001 * (i + 1) * (epoch + 1), gpu=f"GPU-{i}", lease_id=f"lease-{n}", run_id=f"run-{n}",
                        customer=customer, pool=f"pool-{i % 3}", receipt_hash=bytes([n, i, epoch, 255]) * 8,
                        holder=f"0x{i % 4:040x}")
                    for i in range(7)
                ]
            )  # fmt: skip
        ledger.undo("lease-1", 1, gpu_id_hex("GPU-3"), 100_000 * (epoch + 1), f"undo/{epoch}")
        ledger.undo("lease-1", 1, gpu_id_hex("GPU-4"), 0, f"undo/all/{epoch}")
        clock.advance(HOUR)
        ledger.close_epoch(epoch, terms)
    rows = session.execute(select(EPOCH.c.payout_root, EPOCH.c.usage_root, EPOCH.c.file_hash, EPOCH.c.head))
    assert [[value.hex()[:16] for value in row] for row in rows] == [
        ["dbb073fc9b5f0edb", "e166281450fc60c0", "5e0c07c50c932894", "8a30533cef225c1b"],
        ["b0407c6f37824199", "1dcaa216083486cd", "1af4d048f9b38dce", "f94dd3acffbcd9fe"],
    ]
    assert Sealer(session).seal(clock.now_ms()).hex()[:16] == "eb3c9dee6ca83c40"
