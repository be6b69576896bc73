import pytest
from sqlalchemy import text

from fabric.wire.clock import ManualClock
from fabric.wire.merkle import verify
from ledger import queries
from ledger.leaves import address_bytes, gpu_id_hex, id_bytes, payout_leaf, usage_leaf
from ledger.queries import Earnings, Party
from ledger.store import Ledger

GPU, OTHER = gpu_id_hex("GPU-1"), gpu_id_hex("GPU-2")
HOLDER, NEXT = "0x" + "11" * 20, "0x" + "22" * 20
HOUR = 3_600_000


@pytest.fixture
def closed(funded, use, clock):
    """Two epochs: GPU-1 changes hands between them, GPU-2 is used in the second only, a run is still going."""
    funded.charge("lease-1", use(1, 180_000, utilised_gpu_ms=90_000, energy_mj=5))
    clock.advance(HOUR)
    funded.close_epoch(0)
    funded.charge_many([use(2, 360_000, holder=NEXT), use(1, 36_000, gpu="GPU-2", pool="q", utilised_gpu_ms=1)])
    clock.advance(HOUR)
    funded.close_epoch(1)
    funded.charge("lease-1", use(3, 370_000, holder=NEXT))
    return funded


def test_entries_come_newest_first_in_pages_and_each_once(closed, session):
    seen, cursor = [], None
    while True:
        page = queries.entries(session, before=cursor, limit=3)
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    ids = [entry.id for entry in seen]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == session.execute(text("SELECT count(*) FROM ledger_entry")).scalar_one()
    assert all(sum(p.amount for p in entry.postings) == 0 for entry in seen)


def test_a_customer_sees_only_entries_that_are_the_customers(closed, session):
    closed.credit_test("bob", 5, "t/bob")
    assert [entry.source_id for entry in queries.entries(session, customer="bob").items] == ["t/bob"]
    mine = queries.entries(session, customer="alice", limit=1000).items
    assert {entry.customer for entry in mine} == {"alice"}
    assert {entry.kind for entry in mine} == {"test_credit", "hold", "charge"}
    assert {entry.lease_id for entry in queries.entries(session, lease_id="lease-1").items} == {"lease-1"}


def test_a_gpus_cash_flow_stays_with_it_whoever_holds_it(closed, session):
    flow = queries.gpu_cash_flow(session, GPU).items
    assert [(line.epoch, line.holder, line.dc) for line in flow] == [(1, NEXT, 10_000), (0, HOLDER, 10_000)]
    first = queries.gpu_cash_flow(session, GPU, limit=1)
    assert (first.items, first.next_cursor) == (flow[:1], 1)
    assert queries.gpu_cash_flow(session, GPU, before=first.next_cursor, limit=1).items == flow[1:]


def test_a_gpu_shows_all_its_use_and_what_closed_epochs_paid(closed, session):
    view = queries.gpu(session, GPU)
    assert view is not None
    assert (view.used_gpu_ms, view.utilised_gpu_ms, view.energy_mj, view.rewarded_dc) == (370_000, 90_000, 5, 20_000)
    assert view.used_dc == 20_556
    assert view.share_milli_ms == 370_000_000
    assert queries.gpu(session, gpu_id_hex("never")) is None
    assert queries.gpus(session) == sorted([GPU, OTHER])
    assert queries.gpus(session, after=min(GPU, OTHER)) == [max(GPU, OTHER)]


def test_totals_agree_three_ways(closed, session):
    """By the queries, by plain SQL over postings, and by the leaves under the epochs' roots."""
    by_pool = [queries.earnings(session, Party.POOL, pool) for pool in ("op-1", "q")]
    by_holder = [queries.earnings(session, Party.HOLDER, who) for who in (HOLDER, NEXT)]
    by_operator = queries.earnings(session, Party.OPERATOR, "op-1")
    wei, dc = by_operator.wei, by_operator.dc
    assert sum(e.wei for e in by_pool) == sum(e.wei for e in by_holder) == wei
    assert sum(e.dc for e in by_pool) == sum(e.dc for e in by_holder) == dc == 22_000
    burned = session.execute(
        text(
            "SELECT sum(p.amount) FROM ledger_dc_posting p JOIN ledger_account a ON a.id = p.account_id "
            "WHERE a.kind = 'burned'"
        )
    ).scalar_one()
    assert burned == dc
    leaves = queries.payouts_upto(session, 1)
    assert sum(payout.cumulative_wei for payout in leaves) == wei
    assert sum(usage.dc for n in (0, 1) for usage in queries.epoch_usages(session, n)) == dc


def test_a_party_without_rewards_earned_nothing(closed, session):
    assert queries.earnings(session, Party.POOL, "nobody") == Earnings(0, 0, 0, 0, 0)
    assert queries.cash_flow(session, Party.POOL, "nobody").items == ()
    assert [line.gpu_id for line in queries.cash_flow(session, Party.POOL, "q").items] == [OTHER]


def test_every_payout_and_usage_leaf_can_be_proven_against_its_epoch(closed, session):
    for n in (0, 1):
        epoch = queries.epoch(session, n)
        assert epoch is not None
        for payout in queries.payouts_upto(session, n):
            proof = queries.payout_proof(session, n, payout.gpu_id, payout.holder)
            assert proof is not None
            leaf = payout_leaf(id_bytes(payout.gpu_id), address_bytes(payout.holder), payout.cumulative_wei)
            assert proof.leaf == leaf
            assert verify(epoch.payout_root, leaf, proof.path)
        for usage in queries.epoch_usages(session, n):
            proof = queries.usage_proof(session, n, usage.gpu_id)
            assert proof is not None
            leaf = usage_leaf(n, id_bytes(usage.gpu_id), usage.gpu_ms, usage.dc, usage.leases_root)
            assert verify(epoch.usage_root, leaf, proof.path)


def test_what_is_not_in_an_epoch_has_no_proof(closed, session):
    assert queries.payout_proof(session, 0, GPU, NEXT) is None
    assert queries.usage_proof(session, 0, OTHER) is None
    assert queries.payout_proof(session, 9, GPU, HOLDER) is None
    assert queries.epoch(session, 9) is None


def test_epochs_are_paged_newest_first(closed, session):
    page = queries.epochs(session, limit=1)
    assert ([epoch.n for epoch in page.items], page.next_cursor) == ([1], 1)
    assert [epoch.n for epoch in queries.epochs(session, before=1).items] == [0]


def test_what_is_pending_is_charged_and_not_final(closed, session):
    assert queries.pending_dc(session) == 556
    closed.undo("lease-1", 1, GPU, 360_000, "undo")
    assert queries.pending_dc(session) == 0


QUESTIONS = {
    "a customer's entries": lambda session: queries.entries(session, customer="alice", limit=2),
    "a lease's entries": lambda session: queries.entries(session, customer="alice", lease_id="lease-1", limit=2),
    "entries of a lease of long ago": lambda session: queries.entries(session, customer="alice", lease_id="short-0"),
    "a GPU": lambda session: queries.gpu(session, GPU),
    "a GPU's cash flow": lambda session: queries.gpu_cash_flow(session, GPU, limit=2),
    "an operator's cash flow": lambda session: queries.cash_flow(session, Party.OPERATOR, "op-1", limit=2),
    "epochs": lambda session: queries.epochs(session, limit=2),
    "what is pending": queries.pending_dc,
    "a balance": lambda session: Ledger(session, ManualClock()).balance("alice"),
    "what a run has taken of its budget": lambda session: Ledger(session, ManualClock()).committed_dc("run-1"),
}


def test_no_question_takes_more_work_the_longer_the_history_is(funded, session, use, clock):
    """Work is what SQLite does for it, in steps of its virtual machine."""
    for sql in ("DROP INDEX ledger_entry_customer", "CREATE INDEX later ON ledger_entry (customer, id)"):
        session.execute(text(sql))  # of two indexes SQLite takes any
    live(funded, use, clock, epochs=range(5))
    before = {name: steps(session, ask) for name, ask in QUESTIONS.items()}
    live(funded, use, clock, epochs=range(5, 40))
    after = {name: steps(session, ask) for name, ask in QUESTIONS.items()}
    assert {name: (before[name], n) for name, n in after.items() if n > 1.2 * before[name]} == {}


def live(ledger, use, clock, epochs):
    """In each epoch a lease goes on, and on another GPU one comes and goes."""
    for epoch in epochs:
        lease = f"short-{epoch}"
        ledger.hold(lease, lease, "alice", 1000, f"hold/{lease}")
        for seq in range(10 * epoch, 10 * epoch + 10):
            clock.advance(60_000)
            short = use(seq, 1000 * (seq % 10), lease_id=lease, run_id=lease)
            ledger.charge_many([use(seq, 1000 * seq, gpu="GPU-2"), short])
        ledger.release_hold(lease)
        clock.advance(HOUR - 600_000)
        ledger.close_epoch(epoch)


def steps(session, ask):
    ask(session)
    found = []
    raw = session.connection().connection.driver_connection
    raw.set_progress_handler(lambda: found.append(1), 1)
    ask(session)
    raw.set_progress_handler(None, 1)
    return len(found)
