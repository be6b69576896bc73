import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from ledger.audit import Check, Finding, run_audit
from ledger.sealer import LINK, Sealer


@pytest.fixture
def sealer(session) -> Sealer:
    return Sealer(session)


def test_sealing_covers_every_committed_entry_once(funded, sealer, session, clock):
    head = sealer.seal(clock.now_ms())
    assert sealer.seal(clock.now_ms()) == head
    report = sealer.verify(clock.now_ms())
    assert (report.sealed, report.tail, report.head, report.fault) == (2, 0, head, None)


def test_entries_after_the_last_seal_are_the_tail(funded, sealer, use, clock):
    sealer.seal(clock.now_ms())
    funded.charge("lease-1", use(1, 1000))
    report = sealer.verify(clock.now_ms())
    assert (report.sealed, report.tail, report.fault) == (2, 1, None)


def test_the_chain_is_the_same_however_often_it_is_sealed_on_the_way(funded, sealer, session, use, clock):
    for seq in range(1, 5):
        funded.charge("lease-1", use(seq, seq * 1000))
        if seq % 2:
            sealer.seal(clock.now_ms())
    often = sealer.seal(clock.now_ms())
    session.execute(text("DROP TRIGGER ledger_link_no_delete"))
    session.execute(text("DELETE FROM ledger_link"))
    assert sealer.seal(clock.now_ms()) == often


def test_two_sealers_at_once_cannot_both_link(funded, sealer, session):
    sealer.seal(0)
    with pytest.raises(IntegrityError):
        session.execute(LINK.insert().values(position=2, entry_id=99, hash=b"", sealed_ms=0))


def test_a_head_seen_before_must_still_be_in_the_chain(funded, sealer, clock):
    head = sealer.seal(clock.now_ms())
    assert sealer.verify(0, {2: head}).fault is None
    for known in ({2: b"other"}, {3: head}):
        fault = sealer.verify(0, known).fault
        assert fault is not None
        assert fault.table == "ledger_head"


def test_an_empty_ledger_verifies(sealer):
    report = sealer.verify(0)
    assert (report.sealed, report.tail, report.fault) == (0, 0, None)


def test_an_audit_runs_the_checks_it_is_given_and_the_chain(funded, session):
    odd = Finding("table", "7", "odd")
    checks = [Check("mine", 99, lambda _: [odd] * 50), Check("fine", 98, lambda _: [])]
    report = run_audit(session, checks, now_ms=0)
    assert [(result.name, len(result.findings)) for result in report.results] == [
        ("mine", 10),
        ("fine", 0),
        ("sealed chain", 0),
    ]
    assert not report.clean
    assert report.unsealed_tail == 2
