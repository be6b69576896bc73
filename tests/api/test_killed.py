"""The control plane killed with -9 at every point between receipt and closed epoch: what it acknowledged is there once.

A point is: before a commit, after it, before an acknowledgement leaves and after it has left (with the hypothesis
profile `thorough` also before every statement that writes). For each one a process walks the way until it is killed
there, another goes on from what is on the disk, and the books are compared with those of a walk that nobody disturbed.
The world outside does what it does after a crash: an agent sends again what was not acknowledged, beats come again.
How the settler survives the same treatment is tested beside it (`tests/ledger/chain/test_settler.py`).
"""

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from sqlalchemy import event, select
from sqlmodel import Session

from api import audit, ledger_jobs, sweeps
from api.metering import Arrived, Metering
from api.plane import Plane, build
from api.settings import Settings
from api.tables import EquivocationRow, LeaseGpuRow, LeaseRow, ReceiptRow, TaskRow
from benchmarks.receipts import Bench
from fabric.wire.clock import ManualClock
from fabric.wire.receipts import GpuLine, ReceiptKind, RunLine, SignedReceipt, sign
from ledger.database import open_engine
from ledger.tables import (
    AccountRow,
    BctPostingRow,
    DcPostingRow,
    EntryRow,
    EpochFileRow,
    EpochRow,
    EpochUsageRow,
    FinalityRow,
    HoldRow,
    MeterRow,
    PayoutRow,
    RewardRow,
    UsageRow,
    table_of,
)

OPEN, TICK, CLOSE = ReceiptKind.OPEN, ReceiptKind.TICK, ReceiptKind.CLOSE
DAY = 86_400_000
BOOKS = (
    AccountRow, EntryRow, DcPostingRow, BctPostingRow, HoldRow, MeterRow, UsageRow, FinalityRow, EpochRow,
    EpochUsageRow, RewardRow, PayoutRow, EpochFileRow, ReceiptRow, TaskRow, LeaseRow, LeaseGpuRow,
    EquivocationRow,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What the world asks of the control plane at one moment: receipts to take, or, without any, a beat."""

    at_ms: int
    receipts: tuple[Arrived, ...] = ()


@dataclass(frozen=True)
class Way:
    """A folder to copy, and the steps from there to the closed epoch."""

    folder: Path
    steps: tuple[Step, ...]


@pytest.fixture(scope="module")
def way(tmp_path_factory) -> Way:
    folder = tmp_path_factory.mktemp("way")
    bench = Bench(folder, 2, "")
    steps: list[Step] = []

    def step(ms: int, *receipts: Arrived) -> None:
        bench.clock.advance(ms)
        steps.append(Step(bench.clock.now_ms(), receipts))

    step(0, *bench.signed_round(OPEN, 0))
    bench.clock.advance(1_000)
    first = bench.signed_round(TICK, 1_000)
    step(0, *first)
    bench.clock.advance(1_000)
    second, third = bench.signed_round(TICK, 2_000), bench.signed_round(TICK, 2_500)
    step(500, *first, third[0])  # again, and early: the answer says from where to send
    step(0, second[0])
    step(60_000, third[0])
    step(0)
    step(0, second[1], third[1], contradiction(bench, first[1]))
    step(
        0, *bench.signed_round(CLOSE, 2_600)
    )  # both before time passes: silence counts from a start, so what is open would end otherwise
    step(11 * 60_000)
    step(2 * DAY)
    bench.plane.database.close()
    return Way(folder, tuple(steps))


def contradiction(bench: Bench, arrived: Arrived) -> Arrived:
    """Another body under the number of a receipt that was sent."""
    said = SignedReceipt.from_bytes(arrived.data).receipt
    lie = replace(
        said, gpus=(GpuLine(said.gpus[0].uuid, 1000, 999),), runs=(RunLine(said.runs[0].run, 999),), reason="x"
    )
    tasks = SignedReceipt.from_bytes(arrived.data).tasks
    return Arrived(arrived.operator, arrived.keys, sign(lie, tasks, bench.key).to_bytes())


class Points:
    """Counts the points that are passed; the process dies at one of them."""

    def __init__(self, dies_at: int | None) -> None:
        self.passed, self._dies_at = 0, dies_at

    def __call__(self, *_: object) -> None:
        if self.passed == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def watch(self, plane: Plane, *, statements: bool) -> None:
        event.listen(plane.database.writer, "commit", self)
        event.listen(Session, "after_commit", self)
        if statements:
            event.listen(plane.database.writer, "before_cursor_execute", self._statement)

    def _statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.split(None, 1)[0] in {"INSERT", "UPDATE", "DELETE"}:
            self()


def walk(way: Way, folder: Path, points: Points, *, statements: bool = False) -> None:
    """From the first step that was not acknowledged to the end."""
    told = folder / "told"
    begin = len(told.read_bytes()) if told.exists() else 0
    if begin == len(way.steps):
        return
    clock = ManualClock(way.steps[begin].at_ms)
    plane = build(Settings(state_dir=folder, allow_simulated=True), clock)
    points.watch(plane, statements=statements)
    for step in way.steps[begin:]:
        clock.advance(step.at_ms - clock.now_ms())
        answer(plane, step)
        points()
        with told.open("ab") as file:
            file.write(b".")
        points()


def answer(plane: Plane, step: Step) -> None:
    if step.receipts:
        assert Metering(plane).take(step.receipts)
    else:
        sweeps.sweep(plane)
        ledger_jobs.tick(plane)


def books(folder: Path) -> dict[str, list[Any]]:
    """Every row of money and of what it follows from; not when the sealer came, nor who held which lock."""
    engine = open_engine(f"sqlite:///{folder / 'fabric.db'}")
    with Session(engine) as session:
        found = {
            str(row.__tablename__): sorted(map(tuple, session.execute(select(table_of(row)))), key=repr)
            for row in BOOKS
        }
    engine.dispose()
    return found


def faults(folder: Path) -> list[Any]:
    plane = build(Settings(state_dir=folder, allow_simulated=True), ManualClock())
    with plane.database.read() as session:
        bad = [check for check in audit.run(plane, session) if check.findings]
    plane.database.close()
    return bad


def in_a_child(work: Callable[[], None]) -> int:
    """Exit status of a forked process that did this: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in the child
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_point_the_books_end_as_if_nothing_had_been(way, tmp_path):
    statements = hypothesis_settings().max_examples > 100
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(way.folder, undisturbed)
    assert in_a_child(lambda: walk(way, undisturbed, Points(None))) == 0
    expected = books(undisturbed)
    assert [len(expected[name]) for name in ("ledger_epoch", "equivocations", "receipts")] == [2, 1, 10]
    assert faults(undisturbed) == []
    point = 0
    while True:
        folder = tmp_path / f"killed-{point}"
        shutil.copytree(way.folder, folder)
        ended = in_a_child(lambda at=point, there=folder: walk(way, there, Points(at), statements=statements))
        assert ended in (0, -signal.SIGKILL)
        if ended == 0:
            break
        assert in_a_child(lambda there=folder: walk(way, there, Points(None))) == 0
        assert books(folder) == expected, f"killed at point {point}"
        shutil.rmtree(folder)
        point += 1
    assert point > 3 * len(way.steps)
