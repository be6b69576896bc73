"""How fast the ledger answers people while it is large: latency at a given rate of mixed questions.

A ledger (`benchmarks.large_ledger`), a SQLite file unless a URL is given, gets questions at random moments, at a rate
that waits for no answer, and each is timed from the moment it came, so waiting counts. They are what the API's routes
ask of `ledger.queries`, page size included, on the reading connections of a control plane, without HTTP: a page of a
customer's entries, of a lease's, a GPU with its cash flow, an operator with its own, epochs with what is pending, and a
balance.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlmodel import Session

from api.database import Database
from benchmarks.large_ledger import CUSTOMERS, GENESIS_MS, OPERATORS, Size, fill
from fabric.wire.clock import ManualClock
from ledger import queries
from ledger.leaves import gpu_id_hex
from ledger.queries import Party
from ledger.store import Ledger

Question = Callable[[Session], object]


def questions(size: Size, seed: int) -> Iterator[tuple[str, Question]]:
    """An endless mix of what people ask, each by its name."""
    draw = random.Random(seed)
    clock = ManualClock(GENESIS_MS)
    while True:
        number = draw.randrange(size.leases)
        customer, lease = f"c{draw.randrange(CUSTOMERS)}", f"lease-{number}"
        gpu, operator = gpu_id_hex(f"GPU-{draw.randrange(size.gpus)}"), f"op-{draw.randrange(OPERATORS)}"
        asked: dict[str, Question] = {
            "entries": lambda session, c=customer: queries.entries(session, customer=c),
            "lease": lambda session, n=number, name=lease: queries.entries(
                session, customer=f"c{n % CUSTOMERS}", lease_id=name
            ),
            "gpu": lambda session, g=gpu: (queries.gpu(session, g), queries.gpu_cash_flow(session, g)),
            "operator": lambda session, o=operator: (
                queries.cash_flow(session, Party.OPERATOR, o),
                queries.earnings(session, Party.OPERATOR, o),
            ),
            "epochs": lambda session: (queries.epochs(session), queries.pending_dc(session)),
            "balance": lambda session, c=customer: Ledger(session, clock).balance(c),
        }
        yield draw.choice(list(asked.items()))


def ask(
    database: Database, asked: Iterator[tuple[str, Question]], *, rate: int, seconds: float, readers: int, seed: int
) -> list[tuple[str, float]]:
    """Name and latency in ms of each question, from when it came."""
    draw = random.Random(seed)
    count = int(rate * seconds)
    moments = list(itertools.accumulate(draw.expovariate(rate) for _ in range(count)))
    waiting = iter(list(zip(moments, itertools.islice(asked, count), strict=True)))
    begin = time.perf_counter()

    def answer() -> list[tuple[str, float]]:
        done: list[tuple[str, float]] = []
        for came, (name, question) in waiting:
            if (early := begin + came - time.perf_counter()) > 0:
                time.sleep(early)
            with database.read() as session:
                question(session)
            done.append((name, (time.perf_counter() - begin - came) * 1000))
        return done

    with ThreadPoolExecutor(readers) as pool:
        return [one for part in [pool.submit(answer) for _ in range(readers)] for one in part.result()]


def measure(
    folder: Path, *, entries: int, rate: int, seconds: float, readers: int, seed: int, url: str = ""
) -> dict[str, float]:
    size, url = Size.of(entries), url or f"sqlite:///{folder}/ledger.db"
    begin = time.perf_counter()
    written = fill(url, size)
    filled = time.perf_counter()
    database = Database(url)
    ask(database, questions(size, seed + 1), rate=rate, seconds=min(2.0, seconds), readers=readers, seed=seed + 1)
    asking, worked = time.perf_counter(), time.process_time()
    answered = ask(database, questions(size, seed), rate=rate, seconds=seconds, readers=readers, seed=seed)
    took, work = time.perf_counter() - asking, time.process_time() - worked
    database.close()
    cuts = statistics.quantiles((ms for _, ms in answered), n=100)
    return {
        "entries": written,
        "requests_per_s": round(len(answered) / took, 1),
        "p50_ms": round(cuts[49], 3),
        "p99_ms": round(cuts[98], 3),
        "cpu_ms": round(work * 1000 / len(answered), 3),
        "fill_s": round(filled - begin, 1),
        **{
            f"p50_ms_{name}": round(statistics.median(ms for what, ms in answered if what == name), 3)
            for name in sorted({what for what, _ in answered})
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger_query", description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000, help="the published figure uses 10000000")
    parser.add_argument("--rate", type=int, default=300, help="questions per second (default 300)")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--readers", type=int, default=4, help="threads that answer, each on a connection (default 4)")
    parser.add_argument("--database-url", default="", help="SQLAlchemy URL of an empty database (default: SQLite file)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), entries=given.entries, rate=given.rate, seconds=given.seconds,
                          readers=given.readers, seed=given.seed, url=given.database_url)  # fmt: skip
    database = given.database_url.split(":", 1)[0].split("+")[0] or "sqlite"
    if given.json:
        config = {"rate": given.rate, "seconds": given.seconds, "readers": given.readers, "database": database}
        config["python"] = sys.version.split()[0]
        print(json.dumps({"name": "ledger_query", "config": config, "figures": figures}))
        return
    for name, value in figures.items():
        print(f"{name:16} {value:>14,}")


if __name__ == "__main__":
    main()
