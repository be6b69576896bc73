"""A model over a data set, one row at a time: `python -m workloads.examples.batch [ROWS]`.

Needs `pip install 'berkeley-compute[demo]'`. Kill it and start it again: it goes on where it was.
"""

import sys
from pathlib import Path

import fabric
from workloads.batch import Batch, Report
from workloads.batch.batch import read_output


class Digits:
    """Trained where it works, once per worker, on the images that the batch does not ask about."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression

        pixels, labels = load_digits(return_X_y=True)
        self._model = LogisticRegression(max_iter=300).fit(pixels[360:] / 16, labels[360:])

    def __call__(self, row: dict[str, list[float]]) -> int:
        return int(self._model.predict([row["pixels"]])[0])


def main(rows: int = 360, output: str | Path = "digits.jsonl") -> tuple[Report, float]:
    """The report, and the part of the digits that were recognised."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = [{"pixels": [value / 16 for value in image]} for image in pixels[:rows].tolist()]
    report = Batch(Digits, inputs, output, budget=1, retry=fabric.Retry(on=("error", "interruption"))).run()
    print(report)
    right = sum(row.get("value") == label for row, label in zip(read_output(output), labels.tolist(), strict=False))
    print(f"{right} of {rows} digits recognised")
    return report, right / rows


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 360)
