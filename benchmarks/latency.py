"""How well round trips that nobody measured are estimated, and how good choices made from the estimates are.

Every place is measured with at most 32 others, counting both who measures and who is measured. Errors are over all
other pairs. Choices: of 20 random candidates the nearest by estimate, and the best of at most five that were probed.

`python -m benchmarks.latency [--rtt MATRIX] [--json]`
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.rtt_matrix import MatrixError, read_matrix
from fabric.placement.coordinates import NEIGHBOURS, PROBES, RttMap

DATA = Path(__file__).parent / "data"
_CANDIDATES = 20
_CLOSE_MS = 5.0
_TRIALS = 4000

Floats = npt.NDArray[np.float64]


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 2 when the file or an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rtt", type=Path, default=DATA / "planetlab_98.txt", help="square matrix of ms, may be .gz")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="places each one is measured with, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        matrix = read_matrix(options.rtt)
    except (MatrixError, OSError) as error:
        print(f"benchmarks.latency: {error}", file=sys.stderr)
        return 2
    figures = figures_of(matrix, options.neighbours, options.seed)
    config = {"rtt": options.rtt.name, "places": len(matrix), "neighbours": options.neighbours, "seed": options.seed}
    report = {"name": "latency", "config": config, "figures": figures}
    print(json.dumps(report) if options.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))
    return 0


def figures_of(matrix: Floats, neighbours: int, seed: int) -> dict[str, float]:
    """Measure, fit, and judge; a zero off the diagonal counts as not measurable and is left out."""
    names = [f"place-{index}" for index in range(len(matrix))]
    known = measure(matrix, names, neighbours, seed)
    known.fit()
    places = range(len(names))
    estimates = [known.estimates(name, names) for name in names]
    rtt = np.array([[one.rtt_ms if one else np.nan for one in row] for row in estimates])
    hidden = np.array([[one is not None and not one.measured for one in row] for row in estimates]) & (matrix > 0)
    relative = np.abs(rtt[hidden] - matrix[hidden]) / matrix[hidden]
    draw, nearest, close = random.Random(seed), 0, 0
    for _ in range(_TRIALS):
        here, *others = draw.sample(places, min(_CANDIDATES + 1, len(names)))
        real = {names[other]: matrix[here, other] for other in others}
        best = min(real.values())
        nearest += real[min(real, key=lambda name: rtt[here, names.index(name)])] <= best
        close += min(real[name] for name in known.to_probe(names[here], list(real), PROBES)) <= best + _CLOSE_MS
    return {
        "median_rel_err": round(float(np.median(relative)), 4),
        "p90_rel_err": round(float(np.percentile(relative, 90)), 4),
        "nearest_pct": round(100 * nearest / _TRIALS, 2),
        "within_5ms_pct": round(100 * close / _TRIALS, 2),
        "measured_per_place_max": max(known.measured_count(name) for name in names),
    }


def measure(matrix: Floats, names: list[str], neighbours: int, seed: int) -> RttMap:
    """Random pairs until everybody has been measured with so many others, and nobody with more."""
    known, count = RttMap(), [0] * len(names)
    pairs = [(one, other) for one in range(len(names)) for other in range(one) if matrix[one, other] > 0]
    random.Random(seed).shuffle(pairs)
    for one, other in pairs:
        if count[one] < neighbours and count[other] < neighbours:
            known.measured(names[one], names[other], float(matrix[one, other]))
            count[one] += 1
            count[other] += 1
    return known


if __name__ == "__main__":
    sys.exit(main())
