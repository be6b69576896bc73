from sqlmodel import Session

from benchmarks.ledger_query import Filler, measure
from ledger import entry_checks, usage_checks
from ledger.database import open_engine
from ledger.tables import create_schema


def test_the_ledger_that_is_measured_keeps_the_rules_of_a_real_one():
    engine = open_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection)
    Filler(engine, 3).fill(4)
    with Session(engine) as session:
        for check in (*entry_checks.CHECKS, *usage_checks.CHECKS):
            assert list(check.run(session)) == [], check.name
    engine.dispose()


def test_all_figures_are_measured(tmp_path):
    figures = measure(tmp_path, entries=2_000, rate=100, seconds=0.3, seed=1)
    assert {"entries", "requests_per_s", "p50_ms", "p99_ms"} <= figures.keys()
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
