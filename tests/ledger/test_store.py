import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session

from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.errors import (
    BudgetExceeded,
    InsufficientFunds,
    NoHold,
    Overdrawn,
    SourceConflict,
    UsageIsFinal,
    UsageOutOfOrder,
    UsageTooLate,
)
from ledger.leaves import gpu_id_hex
from ledger.pricing import PricedShare, charge_due_up
from ledger.store import Balance, Ledger

GPU = gpu_id_hex("GPU-1")


def test_a_hold_moves_available_to_held_and_release_gives_the_rest_back(funded, use):
    assert funded.balance("alice") == Balance(960_000, 40_000, 0)
    funded.charge("lease-1", use(1, 1000))
    assert funded.release_hold("lease-1") == 40_000 - 56
    assert funded.balance("alice") == Balance(1_000_000 - 56, 0, 0)


def test_release_is_once(funded):
    funded.release_hold("lease-1")
    assert funded.release_hold("lease-1") == 0
    with pytest.raises(NoHold):
        funded.release_hold("lease-2")


def test_no_lease_without_the_money_for_its_hold(ledger):
    ledger.credit_test("bob", 10, "t")
    with pytest.raises(InsufficientFunds):
        ledger.hold("l", "r", "bob", 11, "h")
    with pytest.raises(InsufficientFunds):
        ledger.hold("m", "r", "nobody", 1, "h2")


def test_a_refused_hold_leaves_nothing_behind(ledger):
    ledger.credit_test("bob", 10, "t")
    with pytest.raises(InsufficientFunds):
        ledger.hold("l", "r", "bob", 11, "h")
    assert ledger.find_hold("l") is None
    ledger.hold("l", "r", "bob", 10, "h")


def test_charged_and_held_of_all_leases_of_a_run_stay_within_its_budget(ledger, use):
    ledger.credit_test("alice", 1_000_000, "t")
    ledger.hold("lease-1", "run-1", "alice", 600, "h1", budget_dc=1000)
    ledger.charge("lease-1", use(1, 3600))  # 200 DC
    with pytest.raises(BudgetExceeded) as refused:
        ledger.hold("lease-2", "run-1", "alice", 401, "h2", budget_dc=1000)
    assert refused.value.left_dc == 400


def test_what_a_lease_gives_back_is_budget_again(ledger, use):
    ledger.credit_test("alice", 1_000_000, "t")
    ledger.hold("lease-1", "run-1", "alice", 600, "h1", budget_dc=1000)
    ledger.charge("lease-1", use(1, 3600))
    ledger.release_hold("lease-1")
    assert ledger.committed_dc("run-1") == 200
    ledger.hold("lease-2", "run-1", "alice", 800, "h2", budget_dc=1000)
    with pytest.raises(BudgetExceeded):
        ledger.top_up("lease-2", 1, "u", budget_dc=1000)


def test_holds_and_top_ups_happen_once(funded):
    funded.hold("lease-1", "run-1", "alice", 40_000, "hold/lease-1")
    funded.top_up("lease-1", 500, "top/1")
    funded.top_up("lease-1", 500, "top/1")
    assert funded.balance("alice") == Balance(959_500, 40_500, 0)
    with pytest.raises(SourceConflict, match="top it up"):
        funded.hold("lease-1", "run-1", "alice", 40_000, "another")
    with pytest.raises(SourceConflict, match="run-1"):
        funded.hold("lease-1", "run-2", "alice", 40_000, "hold/lease-1")


def test_a_replayed_hold_is_the_same_even_when_the_money_is_gone_meanwhile(ledger):
    ledger.credit_test("alice", 100, "t")
    ledger.hold("l", "r", "alice", 100, "h", budget_dc=100)
    ledger.hold("l", "r", "alice", 100, "h", budget_dc=100)
    assert ledger.balance("alice") == Balance(0, 100, 0)


def test_only_a_lease_with_an_open_hold_can_be_charged_or_topped_up(funded, use):
    with pytest.raises(NoHold):
        funded.charge("lease-2", use(1, 1000, lease_id="lease-2"))
    with pytest.raises(NoHold):
        funded.charge("lease-1", use(1, 1000, customer="bob"))
    with pytest.raises(NoHold):
        funded.charge("lease-2", use(1, 1000))
    funded.release_hold("lease-1")
    with pytest.raises(NoHold):
        funded.charge("lease-1", use(1, 1000))
    with pytest.raises(NoHold):
        funded.top_up("lease-1", 5, "late")


def test_a_receipt_sent_again_changes_nothing_and_answers_the_same(funded, use):
    first = funded.charge("lease-1", use(1, 1000))
    second = funded.charge("lease-1", use(2, 2000))
    assert funded.charge_many([use(1, 1000), use(2, 2000), use(2, 2000)]) == [first, second, second]
    assert funded.balance("alice").held == 40_000 - first.dc - second.dc


def test_one_number_with_another_content_is_refused(funded, use):
    funded.charge("lease-1", use(1, 1000))
    with pytest.raises(SourceConflict):
        funded.charge("lease-1", use(1, 1001))
    with pytest.raises(SourceConflict):
        funded.charge("lease-1", use(1, 1000, receipt_hash=b"\1" * 32))
    with pytest.raises(SourceConflict):
        funded.charge_many([use(2, 2000), use(2, 2001)])


def test_a_meter_grows_and_receipts_come_in_order(funded, use):
    funded.charge("lease-1", use(2, 1000))
    for late in (use(1, 2000), use(3, 999)):
        with pytest.raises(UsageOutOfOrder):
            funded.charge("lease-1", late)


@pytest.mark.parametrize(
    "other", [{"price_dc_per_gpu_hour": 1}, {"share_milli": 500}, {"operator": "op-2"}, {"model": "L4"}]
)
def test_price_share_operator_and_model_are_fixed_for_the_life_of_a_lease(funded, use, other):
    funded.charge("lease-1", use(1, 1000))
    with pytest.raises(SourceConflict, match="life of the lease"):
        funded.charge("lease-1", use(2, 2000, **other))


def test_each_generation_and_each_gpu_has_a_meter_of_its_own(funded, use):
    for usage in (use(1, 1000), use(1, 1000, generation=2), use(1, 1000, gpu="GPU-2")):
        assert funded.charge("lease-1", usage).charged_dc == 56


def test_the_hold_bounds_the_charge_and_a_top_up_lets_the_rest_be_charged(ledger, use):
    ledger.credit_test("alice", 1000, "t")
    ledger.hold("lease-1", "run-1", "alice", 50, "h")
    short = ledger.charge("lease-1", use(1, 1000))
    assert (short.dc, short.short_dc) == (50, 6)
    ledger.top_up("lease-1", 100, "u")
    assert ledger.charge("lease-1", use(2, 1000)).dc == 6


def test_a_lease_that_changed_hands_in_one_receipt_pays_each_holder_for_its_time(funded, use, clock):
    other = "0x" + "22" * 20
    funded.charge_many([use(1, 250), use(1, 1000, part=1, holder=other)])
    clock.advance(3_600_000)
    rewards = {reward.holder: reward.gpu_ms for reward in funded.close_epoch(0).rewards}
    assert rewards == {"0x" + "11" * 20: 250, other: 750}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=15), st.data())
def test_however_receipts_are_batched_and_repeated_the_bill_is_the_same(engine, clock, settings, use, steps, data):
    with Session(engine) as session:
        ledger = Ledger(session, clock, settings)
        ledger.credit_test("alice", 10**9, "t")
        ledger.hold("lease-1", "run-1", "alice", 10**6, "h")
        receipts = [use(seq, sum(steps[: seq + 1])) for seq in range(len(steps))]
        sent = 0
        while sent < len(receipts):
            end = data.draw(st.integers(sent + 1, len(receipts)))
            start = data.draw(st.integers(0, sent))
            ledger.charge_many(receipts[start:end])
            sent = end
        due = charge_due_up(sum(steps), PricedShare(1000, 200_000))
        assert ledger.balance("alice") == Balance(10**9 - 10**6, 10**6 - due, 0)
        session.rollback()


def test_an_undo_charges_only_the_time_that_stands_and_happens_once(funded, use):
    for seq in range(1, 6):
        funded.charge("lease-1", use(seq, seq * 1000))
    funded.undo("lease-1", 1, GPU, 2500, "undo/1")
    funded.undo("lease-1", 1, GPU, 2500, "undo/1")
    assert funded.balance("alice").held == 40_000 - charge_due_up(2500, PricedShare(1000, 200_000))


def test_an_undo_of_everything_leaves_nothing_charged_and_the_meter_can_go_on(funded, use):
    funded.charge("lease-1", use(1, 1000))
    funded.undo("lease-1", 1, GPU, 0, "undo/1")
    assert funded.balance("alice").held == 40_000
    assert funded.charge("lease-1", use(2, 2000)).charged_dc == 112


def test_what_is_undone_after_the_release_goes_back_to_the_customer(funded, use):
    funded.charge("lease-1", use(1, 1000))
    funded.release_hold("lease-1")
    funded.undo("lease-1", 1, GPU, 0, "undo/1")
    assert funded.balance("alice") == Balance(1_000_000, 0, 0)


def test_usage_that_is_final_cannot_be_undone(funded, use, clock):
    funded.charge("lease-1", use(1, 1000))
    clock.advance(600_000)
    assert funded.finalise_usage() == 0
    clock.advance(1)
    assert funded.finalise_usage() == 56
    funded.charge("lease-1", use(2, 2000))
    with pytest.raises(UsageIsFinal):
        funded.undo("lease-1", 1, GPU, 0, "undo/1")
    funded.undo("lease-1", 1, GPU, 1000, "undo/2")
    with pytest.raises(NoHold):
        funded.undo("lease-9", 1, GPU, 0, "undo/3")


def test_nothing_is_booked_into_time_that_is_final(funded, use, clock):
    funded.charge("lease-1", use(1, 1000))
    clock.advance(700_000)
    funded.finalise_usage()
    clock.skew(-700_000)
    with pytest.raises(UsageTooLate):
        funded.charge("lease-1", use(2, 2000))


def test_dc_leave_by_exit_and_nobody_exits_more_than_is_available(funded):
    funded.deposit("alice", 5, "d")
    for _ in range(2):
        assert funded.request_exit("alice", 900_000, "x") == 900_000
    assert funded.balance("alice") == Balance(60_005, 40_000, 900_000)
    assert funded.request_exit("alice", 2**256 - 1, "y") == 60_005
    assert funded.request_exit("alice", 1, "z") == 0
    assert funded.balance("alice") == Balance(0, 40_000, 960_005)
    with pytest.raises(Overdrawn):
        funded.exit_paid("alice", 960_006, "q")
    funded.exit_paid("alice", 900_000, "p")
    assert funded.balance("alice") == Balance(0, 40_000, 60_005)


def test_a_ledger_that_did_all_of_this_audits_clean(funded, session, use, clock):
    for seq in range(1, 6):
        funded.charge("lease-1", use(seq, seq * 1000))
    funded.undo("lease-1", 1, GPU, 2500, "undo/1")
    funded.release_hold("lease-1")
    clock.advance(3_600_000)
    funded.close_epoch(0)
    session.commit()
    report = run_audit(session, LEDGER_CHECKS, now_ms=clock.now_ms())
    assert report.clean, report
    assert (report.sealed > 0, report.unsealed_tail) == (True, 1)  # the close itself is sealed by the next run
