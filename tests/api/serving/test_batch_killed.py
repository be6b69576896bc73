"""A batch whose client is killed, and one of whose workers is: each row stands once in the output, or its error."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from workloads.batch.batch import read_output

pytestmark = pytest.mark.slow

ROWS = 60
CLIENT = """
import sys
from pathlib import Path

import fabric
from workloads.batch import Batch

FOLDER = sys.argv[1]
DIES_AT, FAILING = 40, (5, 50)


def work(row):
    import os, signal, time

    with open(FOLDER + "/calls", "a") as calls:
        calls.write(f"{row}\\n")
    time.sleep(0.02)
    if row == DIES_AT and not os.path.exists(FOLDER + "/died"):
        open(FOLDER + "/died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if row in FAILING:
        raise ValueError(f"row {row} is not to be squared")
    return row * row


if __name__ == "__main__":
    retry = fabric.Retry(on=("error", "interruption"), max=3, backoff=0.1)
    report = Batch(work, range(60), FOLDER + "/out.jsonl", gpu="L4", max_parallel=1, retry=retry).run()
    print(report.resumed, report.failed, report.cost.gpu_ms, report.cost.accrued, report.usd_per_1000_rows)
"""


def test_after_kill_9_of_the_client_and_of_a_worker_each_row_is_there_once(make_town, tmp_path):
    town = make_town()
    town.operator("op-1")
    town.operator("op-2")  # while the killed client's lease is found out
    folder = tmp_path / "batch"
    folder.mkdir()
    (tmp_path / "client.py").write_text(CLIENT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
    environ = kept | {"FABRIC_URL": town.url, "FABRIC_API_KEY": "fk_" + "1" * 43, "FABRIC_QUIET": "1"}
    command = [sys.executable, str(tmp_path / "client.py"), str(folder)]
    journal = folder / "out.jsonl.journal"
    first = subprocess.Popen(command, env=environ)
    try:
        town.wait(lambda: len(journal.read_bytes().splitlines()) >= 10, within_s=180)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = journal.read_bytes().count(b"\n")
    assert 10 <= done < ROWS
    second = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=240)
    assert second.returncode == 0, second.stderr
    answers = [{"row": n, "value": n * n} for n in range(ROWS)]
    for failing in (5, 50):
        answers[failing] = {"row": failing, "error": f"ValueError: row {failing} is not to be squared"}
    assert read_output(folder / "out.jsonl") == answers
    assert not journal.exists()
    resumed, failed, gpu_ms, charged, per_1000 = second.stdout.split()
    assert (int(resumed), int(failed)) == (done, 2)
    assert int(gpu_ms) >= 20 * (ROWS - done)
    assert float(charged) > 0
    assert float(per_1000) == pytest.approx(float(charged) * 1000 / (ROWS - done))
    calls = Counter(map(int, (folder / "calls").read_text().split()))
    assert (folder / "died").exists()
    assert calls[40] >= 2
    assert calls[5] == calls[50] == 4, "as often as the rule says"
    assert all(calls[row] == 1 for row in range(done) if row != 5), "what was done is not done again"
    town.wait(lambda: town.get("/v1/audit", key="fk_" + "2" * 43)["ok"])
