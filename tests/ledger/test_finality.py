from sqlalchemy import text

from ledger import accounts
from ledger.book import Book
from ledger.leaves import gpu_id_hex

GPU = gpu_id_hex("GPU-1")
HOUR = 3_600_000
TEN_MINUTES = 600_000


def test_usage_counts_in_the_epoch_in_which_its_ten_minutes_end(funded, session, use, clock):
    clock.advance(HOUR - TEN_MINUTES - 1)
    funded.charge("lease-1", use(1, 1000))  # final one ms before the end of epoch 0
    clock.advance(1)
    funded.charge("lease-1", use(2, 2000))  # final at the first ms of epoch 1
    clock.advance(HOUR)
    assert funded.finalise_usage() == 112
    balances = Book(session).balances([accounts.usage_final(GPU, epoch) for epoch in (0, 1)])
    assert list(balances.values()) == [56, 56]


def test_finality_that_runs_late_puts_usage_where_it_would_have_been(funded, session, use, clock):
    funded.charge("lease-1", use(1, 1000))
    clock.advance(5 * HOUR)
    funded.finalise_usage()
    assert Book(session).balance(accounts.usage_final(GPU, 0)) == 56


def test_finality_is_once_and_leaves_younger_usage_pending(funded, session, use, clock):
    funded.charge("lease-1", use(1, 1000))
    clock.advance(TEN_MINUTES + 1)
    funded.charge("lease-1", use(2, 2000))
    assert [funded.finalise_usage(), funded.finalise_usage()] == [56, 0]
    assert Book(session).balance(accounts.usage_pending(GPU)) == 56


def test_time_without_usage_takes_no_step(funded, session, use, clock):
    clock.advance(1000 * HOUR)
    funded.charge("lease-1", use(1, 1000))
    clock.advance(HOUR)
    funded.finalise_usage()
    assert session.execute(text("SELECT count(*) FROM ledger_finality")).scalar_one() == 1
    clock.advance(HOUR)
    assert funded.finalise_usage() == 0
    assert session.execute(text("SELECT count(*) FROM ledger_finality")).scalar_one() == 1


def test_usage_undone_before_it_is_final_never_becomes_final(funded, session, use, clock):
    funded.charge("lease-1", use(1, 1000))
    funded.undo("lease-1", 1, GPU, 0, "undo")
    clock.advance(HOUR)
    assert funded.finalise_usage() == 0


def test_what_is_charged_again_after_an_undo_keeps_its_ten_minutes(funded, session, use, clock):
    funded.charge("lease-1", use(1, 2000))
    clock.advance(TEN_MINUTES // 2)
    funded.undo("lease-1", 1, GPU, 1000, "undo")
    clock.advance(TEN_MINUTES // 2 + 1)
    assert funded.finalise_usage() == 56
