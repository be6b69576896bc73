from sqlmodel import Session

from benchmarks.epoch_close import measure_rows
from fabric.wire.clock import ManualClock
from ledger.audit import run_audit
from ledger.checks import LEDGER_CHECKS
from ledger.database import open_engine


def test_the_epoch_that_is_closed_from_rows_is_one_that_the_audit_accepts(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    figures = measure_rows(url, 130)
    assert {"gpus", "seconds", "peak_mib"} <= figures.keys()
    assert figures["payouts"] == 130 + 66  # of the 66 in pools 0 and 2 the operator has a part
    engine = open_engine(url)
    with Session(engine) as session:
        report = run_audit(session, LEDGER_CHECKS, now_ms=ManualClock().now_ms())
    engine.dispose()
    assert report.clean, report
