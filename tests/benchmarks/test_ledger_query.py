from sqlmodel import Session

from benchmarks.large_ledger import Size, fill
from benchmarks.ledger_query import measure
from ledger import entry_checks, usage_checks
from ledger.database import open_engine


def test_the_ledger_that_is_measured_keeps_the_rules_of_a_real_one(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    assert fill(url, Size(gpus=2, turns=3)) > 3000
    engine = open_engine(url)
    with Session(engine) as session:
        for check in (*entry_checks.CHECKS, *usage_checks.CHECKS):
            assert list(check.run(session)) == [], check.name
    engine.dispose()


def test_all_figures_are_measured(tmp_path):
    figures = measure(tmp_path, entries=2_000, rate=100, seconds=0.3, readers=2, seed=1)
    assert {"entries", "requests_per_s", "p50_ms", "p99_ms"} <= figures.keys()
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
