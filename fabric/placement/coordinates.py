"""Round-trip times between any two places of the fabric, estimated from a few that were measured.

Each place gets a point in five dimensions and a height, its way into the network that every one of its round trips
includes (Vivaldi, Dabek et al., SIGCOMM '04), but fitted over all measurements together and for relative error, because
the control plane has them all. What the coordinates get wrong is alike for places near each other, so an estimate is
corrected by the errors of measured pairs nearby. A measured pair is its measurement.

It measures nothing itself: `to_measure` and `to_probe` say what would be worth measuring. No clock and no randomness:
the same measurements in the same order give the same map.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 32
PROBES = 5

_DIMENSIONS = 5
_SPREAD_MS = 30.0  # where places that know nothing of each other start
_FLOOR_MS = 5.0  # errors below this are not worth a bent map
_OUTLIER = 0.3  # relative error from which a measurement pulls no harder
_NEARBY_MS = 10.0  # distance at which the errors of pairs count for a third
_DOUBT = 0.1  # weight of "no correction"
_LEAST_MS = 0.05
_LEAST_SEEN = 3  # measurements that place somebody in the map at all
_FIRST_STEPS = 600
_MORE_STEPS = 150
_STEP_MS = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A round trip in ms and how far it is typically off; a measured one is as good as measurements are."""

    rtt_ms: float
    error_ms: float
    measured: bool


class RttMap:
    """Measurements and what follows from them. `fit` after new ones; estimates use the last fit."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._pair: dict[tuple[int, int], float] = {}
        self._at: Floats = np.zeros((0, _DIMENSIONS))
        self._height: Floats = np.zeros(0)
        self._error: Floats = np.zeros(0)
        self._ends: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] = (np.zeros(0, np.intp), np.zeros(0, np.intp))
        self._residual: Floats = np.zeros(0)

    def measured(self, one: str, other: str, rtt_ms: float) -> None:
        """Note a measurement; later ones of the same pair move it by a quarter, so that one odd packet does little.

        Raises:
            ValueError: a pair of one place with itself, or a time that is not positive and finite.
        """
        if one == other or not 0 < rtt_ms < float("inf"):
            raise ValueError(
                f"round trip {one!r} to {other!r} of {rtt_ms} ms; two places and a time above 0 are wanted"
            )
        first, second = self._known(one), self._known(other)
        pair = (min(first, second), max(first, second))
        before = self._pair.get(pair, rtt_ms)
        self._pair[pair] = before + (rtt_ms - before) / 4

    def fit(self) -> None:
        """Place everything anew; starts from the last fit."""
        if not self._pair:
            return
        ends = np.array(list(self._pair), np.intp).T
        rtt_ms = np.fromiter(self._pair.values(), np.float64)
        fresh = len(self._number) - len(self._height)
        steps = _FIRST_STEPS if fresh * 4 > len(self._number) else _MORE_STEPS
        start = [_start(name) for name in list(self._number)[len(self._height) :]]
        at = np.concatenate([self._at, np.array(start).reshape(-1, _DIMENSIONS)])
        height = np.concatenate([self._height, np.full(fresh, _FLOOR_MS)])
        self._at, self._height = _relax(at, height, ends, rtt_ms, steps)
        self._ends = (ends[0], ends[1])
        guess = _distance(self._at[ends[0]], self._at[ends[1]]) + self._height[ends[0]] + self._height[ends[1]]
        self._residual = np.clip(np.log(rtt_ms / np.maximum(guess, _LEAST_MS)), -1, 1)
        self._error = self._mean_error(np.abs(guess / rtt_ms - 1))

    def estimate(self, one: str, other: str) -> Estimate | None:
        """The pair's round trip; None while one of them is in no fit."""
        return self.estimates(one, [other])[0]

    def estimates(self, one: str, others: Sequence[str]) -> list[Estimate | None]:
        """The round trips from one place to many."""
        here = self._number.get(one, -1)
        there = np.array([self._number.get(name, -1) for name in others], np.intp)
        fitted = len(self._height)
        if not 0 <= here < fitted:
            return [None] * len(others)
        guess = self._from(here)
        found: list[Estimate | None] = []
        for index in there.tolist():
            if not 0 <= index < fitted or index == here:
                found.append(Estimate(0.0, 0.0, measured=True) if index == here else None)
                continue
            known = self._pair.get((min(here, index), max(here, index)))
            if known is not None:
                found.append(Estimate(known, 0.0, measured=True))
                continue
            rtt_ms = float(guess[index])
            relative = float(np.hypot(self._error[here], self._error[index]))
            found.append(Estimate(rtt_ms, rtt_ms * relative, measured=False))
        return found

    def to_probe(self, one: str, others: Sequence[str], at_most: int = PROBES) -> list[str]:
        """The few of `others` that may be the nearest: by estimate, and one that may be much nearer than estimated.

        Places without an estimate come last.
        """
        return worth_probing(dict(zip(others, self.estimates(one, others), strict=True)), at_most)

    def seen_from(self, measured: Mapping[str, float], others: Sequence[str]) -> list[Estimate | None]:
        """The round trips from somewhere that is not on the map, by what was measured from there; the map stays.

        Args:
            measured: round trips in ms to places of the map. Of others only these themselves are answered, and with
                fewer than three on the map nothing but what was measured.
            others: where to.
        """
        known = [name for name in measured if self._number.get(name, len(self._height)) < len(self._height)]
        found = self._seen(known, measured, others) if len(known) >= _LEAST_SEEN else [None] * len(others)
        pairs = zip(others, found, strict=True)
        return [Estimate(measured[name], 0.0, measured=True) if name in measured else one for name, one in pairs]

    def _seen(self, known: list[str], measured: Mapping[str, float], others: Sequence[str]) -> list[Estimate | None]:
        """Estimates from a point that fits the measured places best, corrected by the errors of those nearby."""
        at = np.array([self._number[name] for name in known], np.intp)
        rtt_ms = np.array([measured[name] for name in known])
        nearest = self._at[at[rtt_ms.argmin()]]
        ends = np.array([np.full(at.size, at.size), np.arange(at.size)])
        places, heights = np.vstack([self._at[at], nearest]), np.append(self._height[at], _FLOOR_MS)
        placed, height = _relax(places, heights, ends, rtt_ms, _MORE_STEPS, fixed=at.size)
        guess = _distance(self._at, placed[-1]) + self._height + height[-1]
        residual = np.clip(np.log(rtt_ms / np.maximum(guess[at], _LEAST_MS)), -1, 1)
        close = np.exp(-_distance(self._at[:, None], self._at[at][None]) / _NEARBY_MS)
        corrected = guess * np.exp(close @ residual / (close.sum(axis=1) + _DOUBT))
        mine = max(float(np.abs(guess[at] / rtt_ms - 1).mean()), float(self._error.mean()))
        numbers = [self._number.get(name, len(self._height)) for name in others]
        return [
            Estimate(float(corrected[n]), float(corrected[n] * np.hypot(mine, self._error[n])), measured=False)
            if n < len(self._height)
            else None
            for n in numbers
        ]

    def to_measure(self, one: str, others: Iterable[str], at_most: int = NEIGHBOURS) -> list[str]:
        """Which of `others` to measure so that `one` is well placed, fewer by those it has been measured with already.

        Evenly strewn over the fabric: a fixed shuffle that differs from place to place.
        """
        have = self._measured_with(one)
        fresh = sorted((name for name in others if name != one and name not in have), key=lambda name: _hash(one, name))
        return fresh[: max(at_most - len(have), 0)]

    def measured_count(self, one: str) -> int:
        """With how many places this one has been measured."""
        return len(self._measured_with(one))

    def _known(self, name: str) -> int:
        return self._number.setdefault(name, len(self._number))

    def _measured_with(self, one: str) -> set[str]:
        here, names = self._number.get(one), list(self._number)
        return {names[second if first == here else first] for first, second in self._pair if here in (first, second)}

    def _mean_error(self, relative: Floats) -> Floats:
        """Each place's mean relative error over its measured pairs, before correction: a cautious figure."""
        places, both = len(self._height), np.concatenate(self._ends)
        count = np.bincount(both, minlength=places)
        total = np.bincount(both, np.concatenate([relative, relative]), minlength=places)
        return total / np.maximum(count, 1)

    def _from(self, here: int) -> Floats:
        """Corrected round trips from one place to all."""
        away = _distance(self._at, self._at[here])
        guess = away + self._height + self._height[here]
        first, second = self._ends
        near = np.exp(-away / _NEARBY_MS)
        # Pairs (other, k) where k is near here ...
        error = np.bincount(first, self._residual * near[second], minlength=len(guess))
        error += np.bincount(second, self._residual * near[first], minlength=len(guess))
        weight = np.bincount(first, near[second], minlength=len(guess))
        weight += np.bincount(second, near[first], minlength=len(guess))
        # ... and pairs (here, k) where k is near the other.
        mine = np.flatnonzero((first == here) | (second == here))
        far = np.where(first[mine] == here, second[mine], first[mine])
        close = np.exp(-_distance(self._at[:, None], self._at[far][None]) / _NEARBY_MS)
        error += close @ self._residual[mine]
        weight += close.sum(axis=1)
        return np.maximum(guess * np.exp(error / (weight + _DOUBT)), _LEAST_MS)


def worth_probing(known: Mapping[str, Estimate | None], at_most: int = PROBES) -> list[str]:
    """The few that may be the nearest: by estimate, and one that may be much nearer; those without one come last."""
    guesses = list(known.items())
    by_estimate = sorted(guesses, key=lambda pair: pair[1].rtt_ms if pair[1] else float("inf"))
    picked = [name for name, _ in by_estimate[: max(at_most - 1, 1)]]
    hopeful = sorted(guesses, key=lambda pair: pair[1].rtt_ms - pair[1].error_ms if pair[1] else float("inf"))
    picked += [name for name, _ in hopeful if name not in picked]
    return picked[:at_most]


def _relax(
    at: Floats, height: Floats, ends: npt.NDArray[np.intp], rtt_ms: Floats, steps: int, fixed: int = 0
) -> tuple[Floats, Floats]:
    """Gradient steps (Adam, cosine-shortened) on the relative error, cut off at outliers; the first `fixed` stay."""
    first, second = ends
    weight = 1 / np.maximum(rtt_ms, _FLOOR_MS)
    values = np.column_stack([at, height])
    mean, spread = np.zeros_like(values), np.zeros_like(values)
    for step in range(1, steps + 1):
        apart = values[first, :-1] - values[second, :-1]
        length = np.sqrt((apart * apart).sum(axis=1) + 1e-3)
        wrong = (length + values[first, -1] + values[second, -1] - rtt_ms) * weight
        pull = np.clip(wrong / _OUTLIER, -1, 1) * weight
        slope = np.empty_like(values)
        along = (pull / length)[:, None] * apart
        for axis in range(values.shape[1] - 1):
            forth = np.bincount(first, along[:, axis], minlength=len(values))
            slope[:, axis] = forth - np.bincount(second, along[:, axis], minlength=len(values))
        slope[:, -1] = np.bincount(first, pull, minlength=len(values)) + np.bincount(
            second, pull, minlength=len(values)
        )
        slope[:fixed] = 0
        mean += 0.1 * (slope - mean)
        spread += 0.01 * (slope * slope - spread)
        size = _STEP_MS * (0.5 * (1 + np.cos(np.pi * step / steps)) + 0.01)
        values -= size * (mean / (1 - 0.9**step)) / (np.sqrt(spread / (1 - 0.99**step)) + 1e-12)
        np.maximum(values[:, -1], 0, out=values[:, -1])
    return values[:, :-1], values[:, -1]


def _distance(one: Floats, other: Floats) -> Floats:
    apart = one - other
    return np.sqrt((apart * apart).sum(axis=-1))


def _start(name: str) -> Floats:
    """A place to begin, different for every name."""
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest[: 4 * _DIMENSIONS], np.uint32).astype(np.float64)
    return (words / 2**32 - 0.5) * 2 * _SPREAD_MS


def _hash(one: str, other: str) -> bytes:
    return hashlib.sha256(f"{one}\n{other}".encode()).digest()
