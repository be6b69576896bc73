"""A model over a data set by `fabric.map`: resumable, in order, failing rows kept with their error."""

import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import fabric
from workloads.batch.journal import Journal
from workloads.batch.rows import read_rows

Map = Callable[..., Iterator[Any]]
SETTLING_S = 10.0
"""How long the last receipts of a batch are waited for."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one call of `run` did. `resumed` rows were there already; `rows_per_s` counts the others.

    `cost` is of this call, and None when its mapper's answers have no run.
    """

    rows: int
    resumed: int
    failed: int
    seconds: float
    output: Path
    cost: fabric.Cost | None = None

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def usd_per_1000_rows(self) -> Decimal | None:
        """Of the rows of this call; None when nothing is known, or none were done."""
        done = self.rows - self.resumed
        return None if self.cost is None or not done else self.cost.accrued * 1000 / done

    def __str__(self) -> str:
        spent = "" if self.cost is None else f", {self.cost}"
        return (
            f"{self.rows} rows ({self.resumed} done before, {self.failed} failed) in {self.seconds:.1f} s, "
            f"{self.rows_per_s:.1f} rows/s{spent}: {self.output}"
        )


class Batch:
    """One call of a model per row.

    Args:
        model: a function of one row, or a class that is made once per process and then called with each row.
        inputs: a `.jsonl`, `.csv` or `.parquet` file, or an iterable of rows that gives the same rows again on resume.
        output: a JSON Lines file of `{"row": n, "value": …}` or `{"row": n, "error": "ValueError: …"}`, in order.
        mapper: `fabric.map`, or anything that is called like it and answers in order.
        keywords: where to run: `gpu`, `max_parallel`, `budget`, … as for `fabric.map`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: str | Path | Iterable[Any],
        output: str | Path,
        *,
        mapper: Map | None = None,
        **keywords: Any,
    ) -> None:
        if not callable(model):
            raise fabric.InvalidRequest(f"a batch needs a function or a class, not a {type(model).__name__}")
        refused = {"ordered", "return_exceptions", "kwargs"} & keywords.keys()
        if refused:
            raise fabric.InvalidRequest(f"a batch sets {', '.join(sorted(refused))} itself; leave it out")
        self._model = model
        self._inputs = inputs
        self._output = Path(output)
        self._map = mapper or fabric.map
        self._keywords = keywords if mapper else {"linger": 0, **keywords}

    def run(self) -> Report:
        """Do what is not done yet, then write the output.

        Raises:
            JournalMismatch: what was begun there had other inputs.
            ValueError: a data set that cannot be read; says where.
            FileExistsError: the output is there already.
        """
        if self._output.exists():
            raise FileExistsError(f"{self._output} is there already: the batch is done, or belongs to another one")
        began = time.monotonic()
        with Journal(self._output.with_name(self._output.name + ".journal")) as journal:
            resumed = journal.done
            sent: deque[Any] = deque()
            call = _Call(self._model, as_class=inspect.isclass(self._model))
            answers = self._map(
                call, self._pending(journal, resumed, sent), ordered=True, return_exceptions=True, **self._keywords
            )
            for answer in answers:
                _note(journal, sent.popleft(), answer)
            seconds = time.monotonic() - began
            journal.write_output(self._output)
            return Report(journal.done, resumed, journal.failed, seconds, self._output, _cost(answers))

    def _pending(self, journal: Journal, resumed: int, sent: deque[Any]) -> Iterator[Any]:
        """The rows that are not done; each is noted when it is handed over."""
        number = -1
        for number, row in enumerate(read_rows(self._inputs)):
            if number < resumed:
                journal.check(number, row)
            else:
                sent.append(row)
                yield row
        if number + 1 < resumed:
            raise ValueError(f"the inputs have {number + 1} rows, {resumed} are done already; they were others before")


def _cost(answers: Iterator[Any]) -> fabric.Cost | None:
    """What the map's run cost, once its leases are back and paid, or after a moment as far as it is known."""
    run: fabric.Run | None = getattr(answers, "run", None)
    if run is None:
        return None
    until = time.monotonic() + SETTLING_S
    try:
        while (cost := run.cost).held and time.monotonic() < until:
            time.sleep(0.1)
    except fabric.Error:
        return None  # the rows are there, whatever becomes of the bill's display
    return cost


def _note(journal: Journal, row: Any, answer: Any) -> None:
    if isinstance(answer, BaseException):
        journal.add(row, {"error": f"{type(answer).__name__}: {answer}"})
        return
    try:
        journal.add(row, {"value": answer})
    except (TypeError, ValueError) as error:
        journal.add(row, {"error": f"{type(error).__name__}: {error}"})


class _Call:
    """The model in the worker; a class is made on its first row and then kept."""

    def __init__(self, model: Callable[..., Any], *, as_class: bool) -> None:
        self._model = model
        self._as_class = as_class

    def __call__(self, row: Any) -> Any:
        if self._as_class:
            self._model, self._as_class = self._model(), False
        return self._model(row)


def read_output(path: str | Path) -> list[dict[str, Any]]:
    """An output's rows."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
