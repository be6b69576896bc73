"""How long an epoch of many GPUs takes to close: allocation, both Merkle roots, and the epoch's file.

The clock runs from usage lines in memory to the file's bytes and its hash; with a database, an empty one, from rows
that receipts left there to the commit of the closed epoch: sealed, made final, read, allocated, booked and kept. A
control plane has sealed all and made all but the last minute final before an epoch is over: ``close_s`` is without
both. Every GPU has a holder, some share pools with terms, each has the root of its leases.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Engine, func, select
from sqlmodel import Session, SQLModel

from fabric.wire.clock import ManualClock
from fabric.wire.hashing import keccak256
from ledger.allocate import EpochInput, GpuUsage, allocate
from ledger.closing import EpochTerms, file_of
from ledger.collection import collection_paused
from ledger.database import open_engine
from ledger.emission import DEFAULT_SCHEDULE
from ledger.epoch import CloseFacts, epoch_file, file_hash, verify_file
from ledger.sealer import Sealer
from ledger.settings import NOT_SETTLED, LedgerSettings
from ledger.split import PoolTerms, UsageLine
from ledger.store import Ledger
from ledger.tables import EpochUsageRow, PayoutRow, create_schema
from ledger.usage import Usage

_GPUS_PER_POOL = 64
_HOUR_MS, _PRICE_DC = 3_600_000, 200_000
_AT_ONCE = 5_000
_TERMS = PoolTerms(operator_bps=1000, shared_bps=0, used_bps=9000, operator_payout="0x" + "99" * 20)


def made_up_epoch(gpus: int) -> EpochInput:
    """An epoch in which every one of ``gpus`` GPUs was used; half of the pools have an operator's part."""
    ids = ["0x" + keccak256(b"gpu", n.to_bytes(8, "big")).hex() for n in range(gpus)]
    holders = ["0x" + keccak256(b"holder", (n // 8).to_bytes(8, "big"))[:20].hex() for n in range(gpus)]
    usage = [(3_600_000 + n % 977, 200_000 + n % 1009) for n in range(gpus)]
    lines = [
        UsageLine(ids[n], holders[n], f"pool-{n // _GPUS_PER_POOL}", f"op-{n // _GPUS_PER_POOL}", *usage[n])
        for n in range(gpus)
    ]
    return EpochInput(
        epoch=100,
        start_ms=0,
        end_ms=86_400_000,
        lines=lines,
        gpus=[GpuUsage(ids[n], *usage[n], bytes.fromhex(ids[n][2:]), 3, 5000) for n in range(gpus)],
        pools={f"pool-{n}": _TERMS for n in range(0, gpus // _GPUS_PER_POOL + 1, 2)},
        previous={(ids[n], holders[n]): 10**18 + n for n in range(gpus)},
        price_usd_e18=10**17,
        price_source="test",
        emission_wei=DEFAULT_SCHEDULE.emission_wei(100),
        remintable_wei=10**24,
        stake_bps=500,
    )


def measure(gpus: int, *, verify: bool) -> dict[str, float | int]:
    given = made_up_epoch(gpus)
    facts = CloseFacts(closed_ms=0, head=bytes(32), payers={"0x00": sum(line.dc for line in given.lines)},
                       settlement=NOT_SETTLED)  # fmt: skip
    with collection_paused():
        begin, cpu = time.perf_counter(), time.process_time()
        result = allocate(given)
        allocated = time.perf_counter()
        body = epoch_file(given, result, facts)
        address = file_hash(body)
        end, cpu = time.perf_counter(), time.process_time() - cpu
    figures: dict[str, float | int] = {
        "gpus": gpus,
        "seconds": round(end - begin, 3),
        "cpu_s": round(cpu, 3),
        "allocate_s": round(allocated - begin, 3),
        "file_s": round(end - allocated, 3),
        "file_mib": round(len(body) / 2**20, 1),
        "payouts": len(result.payouts),
    }
    if verify:
        begin = time.perf_counter()
        verdict = verify_file(body)
        if verdict.faults or verdict.file_hash != address or verdict.payout_root != result.payout_root:
            raise SystemExit(f"the file does not verify: {verdict.faults[:3]}")
        figures["verify_s"] = round(time.perf_counter() - begin, 3)
    figures["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return figures


def measure_rows(url: str, gpus: int) -> dict[str, float | int]:
    """The same from rows to rows: an hour of each GPU, in leases of a whole pool each."""
    engine, clock = open_engine(url), ManualClock()
    settings = LedgerSettings(genesis_ms=clock.now_ms(), epoch_ms=_HOUR_MS)
    begin = time.perf_counter()
    _use(engine, clock, settings, made_up_epoch(gpus).lines)
    clock.advance(_HOUR_MS)
    terms = EpochTerms(pools={f"pool-{n}": _TERMS for n in range(0, gpus // _GPUS_PER_POOL + 1, 2)})
    figures: dict[str, float | int] = {"gpus": gpus, "seconds": 0, "cpu_s": 0}
    fill_s = round(time.perf_counter() - begin, 3)
    steps: dict[str, Callable[[Session], object]] = {
        "seal": lambda session: Sealer(session).seal(clock.now_ms()),
        "finalise": lambda session: _finalise(session, clock, settings),
        "close": lambda session: Ledger(session, clock, settings).close_epoch(0, terms),
    }
    for name, step in steps.items():
        begin, cpu = time.perf_counter(), time.process_time()
        with Session(engine) as session:
            step(session)
            session.commit()
        took, cpu = time.perf_counter() - begin, time.process_time() - cpu
        figures |= {f"{name}_s": round(took, 3), f"{name}_cpu_s": round(cpu, 3)}
        figures["seconds"], figures["cpu_s"] = figures["seconds"] + took, figures["cpu_s"] + cpu
    with Session(engine) as session:
        body = file_of(session, 0)
        payouts, usages = (_count(session, row) for row in (PayoutRow, EpochUsageRow))
    engine.dispose()
    assert body is not None
    assert usages == gpus
    return figures | {
        "seconds": round(figures["seconds"], 3),
        "cpu_s": round(figures["cpu_s"], 3),
        "fill_s": fill_s,
        "file_mib": round(len(body) / 2**20, 1),
        "payouts": payouts,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _finalise(session: Session, clock: ManualClock, settings: LedgerSettings) -> None:
    Ledger(session, clock, settings).finalise_usage()
    Sealer(session).seal(clock.now_ms())


def _count(session: Session, row: type[SQLModel]) -> int:
    return session.execute(select(func.count()).select_from(row)).scalar_one()


def _use(engine: Engine, clock: ManualClock, settings: LedgerSettings, lines: Sequence[UsageLine]) -> None:
    """Book each line's time as receipts would, at one price."""
    with engine.begin() as connection:
        create_schema(connection)
    for first in range(0, len(lines), _AT_ONCE):
        some = lines[first : first + _AT_ONCE]
        with Session(engine) as session:
            ledger = Ledger(session, clock, settings)
            lease = f"lease-{first}"
            ledger.credit_test("alice", 2 * _PRICE_DC * len(some), f"test/{lease}")
            ledger.hold(lease, f"run-{first}", "alice", 2 * _PRICE_DC * len(some), f"hold/{lease}")
            ledger.charge_many(
                [
                    Usage(
                        lease_id=lease, generation=1, seq=1, run_id=f"run-{first}", customer="alice",
                        gpu_id=line.gpu_id, operator=line.operator, pool=line.pool, holder=line.holder,
                        model="H100", share_milli=1000, price_dc_per_gpu_hour=_PRICE_DC,
                        cumulative_gpu_ms=line.gpu_ms, at_ms=clock.now_ms(),
                    )
                    for line in some
                ]
            )  # fmt: skip
            session.commit()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch_close", description=__doc__)
    parser.add_argument("--gpus", type=int, default=20_000, help="the published figure uses 1000000 (default 20000)")
    parser.add_argument("--database-url", default="", help="close it from rows in this empty database")
    parser.add_argument("--verify", action="store_true", help="also recompute the epoch from its file (without rows)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    url = given.database_url
    figures = measure_rows(url, given.gpus) if url else measure(given.gpus, verify=given.verify)
    database = url.partition(":")[0].partition("+")[0] if url else "none"
    config = {"gpus": given.gpus, "database": database, "verify": given.verify, "python": sys.version.split()[0]}
    if given.json:
        print(json.dumps({"name": "epoch_close", "config": config, "figures": figures}))
        return
    for name, value in figures.items():
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
