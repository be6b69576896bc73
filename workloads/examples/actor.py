"""An object that keeps its state on a GPU: `python -m workloads.examples.actor`."""

from collections.abc import Iterator

import fabric


class Mean:
    """A running mean; what it has seen stays where it lives."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, number: float) -> float:
        self.total, self.count = self.total + number, self.count + 1
        return self.total / self.count

    def countdown(self, start: int) -> Iterator[int]:
        yield from range(start, 0, -1)


def main() -> list[float]:
    """Means of 1, 2, 3; then a stream."""
    with fabric.actor(Mean)() as mean:
        means = [mean.add.remote(number) for number in (1, 2, 3)]
        print("means:", means)
        print("countdown:", *mean.countdown.stream(3))
        print("cost:", mean.run.cost)
    return means


if __name__ == "__main__":
    main()
