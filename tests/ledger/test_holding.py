from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.holding import by_holder, holder_at
from ledger.leaves import gpu_id_hex
from ledger.store import Balance
from ledger.usage import Usage

ANN, BEA, OPERATOR = ("0x" + digit * 40 for digit in "abc")
GPU = gpu_id_hex("GPU-1")
USAGE = Usage(
    lease_id="l", generation=1, seq=1, run_id="r", customer="c", gpu_id=GPU, operator="o", pool="o", holder=OPERATOR,
    model="H100", share_milli=1000, price_dc_per_gpu_hour=200_000, cumulative_gpu_ms=1000, at_ms=5000, energy_mj=7,
)  # fmt: skip

changes = st.lists(st.tuples(st.integers(0, 6000), st.sampled_from([ANN, BEA])), max_size=5).map(sorted)


@given(changes, st.integers(0, 1000))
def test_parts_sum_to_the_whole_and_each_goes_to_the_holder_of_its_milliseconds(holders, added_ms):
    parts = by_holder(USAGE, added_ms, holders)
    assert parts[-1].cumulative_gpu_ms == USAGE.cumulative_gpu_ms
    assert sum(part.energy_mj for part in parts) == USAGE.energy_mj
    earned: dict[str, int] = {}
    before = USAGE.cumulative_gpu_ms - added_ms
    for i, part in enumerate(parts):
        assert (part.part, part.seq) == (i, USAGE.seq)
        assert part.holder == (holder_at(holders, part.at_ms) or OPERATOR)
        assert part.cumulative_gpu_ms > before or added_ms == 0
        earned[part.holder] = earned.get(part.holder, 0) + part.cumulative_gpu_ms - before
        before = part.cumulative_gpu_ms
    for who in (ANN, BEA, OPERATOR):
        used = range(USAGE.at_ms - added_ms + 1, USAGE.at_ms + 1)
        assert earned.get(who, 0) == sum((holder_at(holders, ms) or OPERATOR) == who for ms in used)


def test_who_holds_it_from_the_first_to_the_last_millisecond():
    holders = [(10, ANN), (20, BEA)]
    assert [holder_at(holders, ms) for ms in (9, 10, 19, 20, 99)] == [None, ANN, ANN, BEA, BEA]


@pytest.fixture
def standing(session):
    """(holder, DC) of the usage rows that stand."""

    def read():
        undone = "SELECT reverses_id FROM ledger_entry WHERE reverses_id IS NOT NULL"
        sql = f"SELECT holder, gpu_ms, dc FROM ledger_usage WHERE entry_id NOT IN ({undone}) ORDER BY entry_id"
        return [tuple(row) for row in session.connection().exec_driver_sql(sql)]

    return read


def test_usage_that_is_not_final_goes_to_who_held_it_when_that_becomes_known_and_no_bill_changes(
    funded, session, use, clock, standing
):
    for seq in range(1, 5):
        clock.advance(1000)
        funded.charge("lease-1", replace(use(seq, seq * 1000), holder=OPERATOR))
    bills = [dc for _, _, dc in standing()]
    due_ms = clock.now_ms() + 600_000
    changed = clock.now_ms() - 1499
    assert funded.reassign(GPU, [(changed, ANN)], "chain/7/0") == 2
    assert funded.reassign(GPU, [(changed, ANN)], "chain/7/0") == 0
    rows = standing()
    assert [(who, ms) for who, ms, _ in rows] == [
        (OPERATOR, 1000), (OPERATOR, 1000), (OPERATOR, 500), (ANN, 500), (ANN, 1000),
    ]  # fmt: skip
    assert sum(dc for _, _, dc in rows) == sum(bills)
    balance = funded.balance("alice")
    clock.advance(30_000)
    funded.release_hold("lease-1")
    assert funded.reassign(GPU, [(changed, ANN), (clock.now_ms() - 30_099, BEA)], "chain/9/3") == 1
    assert standing()[-1][:2] == (BEA, 100)
    assert funded.balance("alice") == Balance(balance.available + balance.held, 0, 0)
    assert funded.finalise_usage(due_ms + 1) == sum(bills), "its ten minutes do not begin anew"
    session.commit()
    report = run_audit(session, LEDGER_CHECKS, now_ms=clock.now_ms())
    assert report.clean, report


def test_what_is_final_stays_with_whom_it_was_booked_for(funded, session, use, clock, standing):
    funded.charge("lease-1", replace(use(1, 1000), holder=OPERATOR))
    clock.advance(600_001)
    funded.finalise_usage()
    assert funded.reassign(GPU, [(0, ANN)], "chain/7/0") == 0
    assert [who for who, _, _ in standing()] == [OPERATOR]
