from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import accounts, booking
from ledger.book import Book
from ledger.entries import Entry, EntryKind, move
from ledger.errors import ForbiddenFlow, InsufficientFunds, Overdrawn, SourceConflict

ALICE = accounts.available("alice")
EXAMPLES = count()


@pytest.fixture
def book(session) -> Book:
    return Book(session)


def credit(source_id: str, dc: int = 100, at_ms: int = 0) -> Entry:
    return booking.test_credit("alice", dc, source_id=source_id, at_ms=at_ms)


def test_a_source_id_books_once_and_answers_the_same_id(book):
    (first,) = book.append([credit("a")])
    assert book.append([credit("a", at_ms=5), credit("b"), credit("a")]) == [first, first + 1, first]
    assert book.balance(ALICE) == 200


def test_a_source_id_with_other_content_is_refused_and_books_nothing(book):
    book.append([credit("a")])
    with pytest.raises(SourceConflict):
        book.append([credit("b"), credit("a", dc=101)])
    with pytest.raises(SourceConflict, match="twice"):
        book.append([credit("c"), credit("c", dc=101)])
    assert book.balance(ALICE) == 100


def test_an_entry_that_is_not_permitted_is_refused(book):
    with pytest.raises(ForbiddenFlow):
        book.append([replace(credit("a"), kind=EntryKind.DEPOSIT)])


def test_no_account_but_a_source_goes_below_zero(book):
    book.append([credit("a")])
    leave = Entry(EntryKind.HOLD, "h", 0, move(ALICE, accounts.held("alice", "l"), 101))
    with pytest.raises(InsufficientFunds, match="has 100 DC"):
        book.append([leave])
    charge = Entry(EntryKind.CHARGE, "c", 0, move(accounts.held("alice", "l"), accounts.usage_pending("0xg"), 1))
    with pytest.raises(Overdrawn):
        book.append([charge])
    assert book.balance(accounts.test_credit()) == -100


def test_an_account_that_was_never_used_stands_at_zero(book):
    assert book.balances([ALICE, accounts.remintable()]) == {ALICE: 0, accounts.remintable(): 0}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2**40)), max_size=12))
def test_balances_are_the_fold_of_entries_in_both_assets(engine, book, bookings):
    before = book.balances([accounts.available(name) for name in "abc"])
    expected = dict(before)
    entries = []
    for number, (name, amount) in enumerate(bookings):
        expected[accounts.available(name)] += amount
        entries.append(booking.deposit(name, amount, source_id=f"{next(EXAMPLES)}/{number}", at_ms=0))
    book.append(entries)
    assert book.balances(list(expected)) == expected


def test_wei_balances_pass_64_bits(book):
    book.append([booking.bct_burned(10**27, source_id=f"{n}", at_ms=0) for n in range(3)])
    assert book.balance(accounts.remintable()) == 3 * 10**27
    assert book.balance(accounts.bct_burned()) == -3 * 10**27


def test_more_entries_than_one_statement_takes_are_booked(book):
    entries = [booking.deposit(f"c{n}", n + 1, source_id=f"d{n}", at_ms=0) for n in range(1200)]
    ids = book.append(entries)
    assert len(set(ids)) == 1200
    assert book.append(entries) == ids
    assert book.balance(accounts.deposits()) == -sum(range(1, 1201))


def test_the_postings_of_an_entry_come_back_in_their_order(book):
    book.append([credit("a")])
    (entry_id,) = book.append([credit("b", dc=7)])
    assert book.postings(entry_id) == list(credit("b", dc=7).postings)
