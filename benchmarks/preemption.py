"""From the moment another run needs the GPU to the user's hook, to a stored checkpoint, and to the run going on.

A spot run holds the only GPU of a small fabric; an on-demand run is posted for it, and the control plane notes when it
gave the notice. The spot run's hook notes when it was called, writes its state and stores it; when the on-demand run is
over, the spot run comes back and notes when it has its state again. All clocks are this machine's. The promised notice
is shortened to `--notice` seconds, so that a round does not take half a minute; only the on-demand run waits for it.
"""

import argparse
import json
import os
import sqlite3
import time
from contextlib import closing
from typing import Any

from benchmarks.small_fabric import SmallFabric, small_fabric

NAME = "preemption"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="evictions (default 5)")
    parser.add_argument("--mib", type=int, default=16, help="size of the state that the hook saves (default 16)")
    parser.add_argument("--notice", type=float, default=4.0, help="seconds of notice (default 4; the product's: 30)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with small_fabric(nodes=1, notice_ms=round(arguments.notice * 1000)) as here:
        rounds = [measure(here, arguments.mib) for _ in range(arguments.rounds)]
    figures = summary(rounds)
    report = {"name": NAME, "config": vars(arguments) | {"cores": os.cpu_count()}, "figures": figures}
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value:12.1f}")


def measure(here: SmallFabric, mib: int) -> dict[str, float]:
    """Milliseconds of one eviction."""
    import fabric

    spot = fabric.submit(train, mib, gpu="L4", tier="spot", budget=5)
    here.wait(lambda: "at work" in list(spot.logs()), "the spot run's start")
    asked = time.time()
    assert fabric.run(noop, gpu="L4", linger=0) is None
    freed = time.time()
    called, stored, resumed = spot.result(timeout=120)
    return {
        "asked_to_hook": (called - asked) * 1000,
        "notice_to_hook": called * 1000 - given_ms(here, spot.id),
        "hook_to_stored": (stored - called) * 1000,
        "asked_to_other_done": (freed - asked) * 1000,
        "free_to_resumed": (resumed - freed) * 1000,
    }


def given_ms(here: SmallFabric, run: str) -> int:
    """When the control plane decided that the run's first lease must leave."""
    lease = here.get(f"/v1/runs/{run}")["leases"][0]["id"]
    with closing(sqlite3.connect(f"file:{here.folder / 'control' / 'fabric.db'}?mode=ro", uri=True)) as database:
        return database.execute("SELECT given_ms FROM notices WHERE lease = ?", (lease,)).fetchone()[0]


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in rounds[0]:
        values = sorted(one[name] for one in rounds)
        figures |= {f"{name}_p50_ms": values[len(values) // 2], f"{name}_max_ms": values[-1]}
    return figures


def train(mib: int) -> Any:
    """(when the hook was called, when its state was stored, when a later attempt had it back)."""
    import json
    import os
    import time

    import fabric

    note, weights = fabric.checkpoint_dir() / "note", fabric.checkpoint_dir() / "weights"
    if note.exists():
        assert weights.stat().st_size == mib << 20
        return [*json.loads(note.read_text()), time.time()]
    weights.write_bytes(os.urandom(mib << 20))
    fabric.checkpoint()
    grown = os.urandom(mib << 20)

    def save(_left_s: float) -> None:
        called = time.time()
        weights.write_bytes(grown)
        fabric.checkpoint()
        note.write_text(json.dumps([called, time.time()]))

    fabric.on_preempt(save)
    print("at work", flush=True)
    while True:
        time.sleep(0.01)


def noop() -> None:
    """Nothing."""


if __name__ == "__main__":
    main()
