"""A model over a data set by `fabric.map`: resumable, in order, failing rows kept with their error."""

import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
from workloads.batch.journal import Journal
from workloads.batch.rows import read_rows

Map = Callable[..., Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Report:
    """What one call of `run` did. `resumed` rows were there already; `rows_per_s` counts the others."""

    rows: int
    resumed: int
    failed: int
    seconds: float
    output: Path

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.resumed) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.rows} rows ({self.resumed} done before, {self.failed} failed) in {self.seconds:.1f} s, "
            f"{self.rows_per_s:.1f} rows/s: {self.output}"
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
        self._keywords = keywords

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
            journal.write_output(self._output)
            return Report(journal.done, resumed, journal.failed, time.monotonic() - began, self._output)

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
