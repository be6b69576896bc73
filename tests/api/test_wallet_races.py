"""Many clients of one wallet at once, on SQLite: what is there is held once, and nobody overspends."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.plane import Plane, build
from api.settings import Settings
from fabric.wire.clock import ManualClock
from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.errors import BudgetExceeded, InsufficientFunds

CLIENTS = 64


@pytest.fixture
def plane(tmp_path):
    made = build(Settings(state_dir=tmp_path), ManualClock())
    yield made
    made.database.close()


def at_once(act):
    """What each of the clients got, all of whom began together."""
    gate = threading.Barrier(CLIENTS)

    def one(number):
        gate.wait(60)
        return act(number)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(one, range(CLIENTS)))


def fund(plane: Plane, dc: int) -> None:
    with plane.database.write() as session:
        plane.ledger(session).credit_test("alice", dc, "t")


def is_clean(plane: Plane) -> bool:
    with plane.database.read() as session:
        return run_audit(session, LEDGER_CHECKS, now_ms=plane.now_ms()).clean


def test_sixty_four_clients_never_hold_more_than_one_wallet_has(plane):
    fund(plane, 1_000)

    def hold(number):
        try:
            with plane.database.write() as session:
                plane.ledger(session).hold(f"l{number}", f"r{number}", "alice", 30, f"h{number}", budget_dc=None)
        except InsufficientFunds:
            return False
        return True

    assert sum(at_once(hold)) == 33
    with plane.database.read() as session:
        balance = plane.ledger(session).balance("alice")
    assert (balance.available, balance.held) == (10, 990)
    assert is_clean(plane)


def test_sixty_four_leases_of_one_run_never_hold_more_than_its_budget(plane):
    fund(plane, 1_000_000)

    def hold(number):
        try:
            with plane.database.write() as session:
                plane.ledger(session).hold(f"l{number}", "run", "alice", 30, f"h{number}", budget_dc=500)
        except BudgetExceeded:
            return False
        return True

    assert sum(at_once(hold)) == 16
    with plane.database.read() as session:
        assert plane.ledger(session).balance("alice").held == 480


def test_top_ups_and_holds_that_race_leave_no_debt_and_the_same_key_once(plane):
    fund(plane, 1_000)
    with plane.database.write() as session:
        plane.ledger(session).hold("l", "r", "alice", 100, "h", budget_dc=None)

    def spend(number):
        try:
            with plane.database.write() as session:
                ledger = plane.ledger(session)
                if number % 2:
                    ledger.top_up("l", 50, f"t{number % 8}", budget_dc=None)
                else:
                    ledger.hold(f"l{number}", f"r{number}", "alice", 50, f"h{number}", budget_dc=None)
        except InsufficientFunds:
            return False
        return True

    at_once(spend)
    with plane.database.read() as session:
        balance = plane.ledger(session).balance("alice")
    assert (balance.available, balance.held) == (0, 1_000)
    assert is_clean(plane)
