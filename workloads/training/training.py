"""`workloads.Training`: a loop on a gang of GPUs, followed from here: output, records, cost, outcome."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fabric
from workloads.training import metrics
from workloads.training.outcome import Failed, Trained
from workloads.training.plan import Plan, bought, count_ranks, most_gpus, seconds_for
from workloads.training.ranks import run_lease

COST_EVERY_S = 1.0


class Training:
    """A loop that is run by one process per GPU.

    Args:
        loop: `loop(session, *args)`; its value on rank 0 is the training's.
        nodes: how many nodes, all or nothing, or the least and the most as (2, 4).
        ranks_per_node: processes per node; one per GPU of `gpu` unless given.
        budget: USD. Before it is used up the loop is stopped in good order, and its value comes as usual.
        time_limit: seconds, all attempts together; likewise.
        restarts: how often a lost rank or node begins all ranks anew from the last checkpoint.
        checkpoint_every: seconds between checkpoints.
        rendezvous_timeout: seconds that ranks wait for each other to come.
        collective_timeout: seconds that a rank waits in a collective for the others.
        seed: of weights and order.
        folder: where `metrics.jsonl` and `report.html` are kept; None: nowhere.
        quiet: print no records.
        keywords: `gpu`, `tier`, `max_price`, `env`, `region`, … as for `fabric.submit`.
    """

    def __init__(
        self,
        loop: Callable[..., Any],
        *,
        nodes: int | tuple[int, int] = 1,
        ranks_per_node: int | None = None,
        budget: Any = None,
        time_limit: float = 0.0,
        restarts: int = 3,
        checkpoint_every: float = 60.0,
        rendezvous_timeout: float = 120.0,
        collective_timeout: float = 600.0,
        seed: int = 0,
        folder: str | Path | None = None,
        quiet: bool = False,
        **keywords: Any,
    ) -> None:
        if not callable(loop):
            raise fabric.InvalidRequest(f"a training needs a loop to call, not a {type(loop).__name__}")
        refused = {"kwargs", "command", "retry", "dry_run", "returns"} & keywords.keys()
        if refused:
            raise fabric.InvalidRequest(f"a training sets {', '.join(sorted(refused))} itself; leave it out")
        times = {
            "checkpoint_every": checkpoint_every,
            "rendezvous_timeout": rendezvous_timeout,
            "collective_timeout": collective_timeout,
        }
        for name, seconds in times.items():
            if not isinstance(seconds, int | float) or not seconds > 0:
                raise fabric.InvalidRequest(f"{name}={seconds!r} is not a time in seconds of more than 0")
        self._loop = loop
        self._plan = Plan(
            ranks_per_node=count_ranks(keywords.get("gpu"), ranks_per_node),
            limit_s=time_limit,
            checkpoint_every_s=checkpoint_every,
            startup_s=rendezvous_timeout,
            collective_s=collective_timeout,
            stopped_by="time_limit",
            seed=seed,
        )
        self._folder = None if folder is None else Path(folder)
        self._quiet = quiet
        self._budget = budget
        retry = fabric.Retry(on=("interruption", "error"), max=restarts)
        self._keywords: dict[str, Any] = (
            keywords | {"retry": retry} | ({"budget": budget} if budget is not None else {})
        )
        if nodes != 1:
            self._keywords["nodes"] = nodes

    def run(self, *args: Any, kwargs: Mapping[str, Any] | None = None) -> Trained:
        """Train; blocks until it is over. An interrupt of this process cancels it.

        Args:
            args: the loop's, after its session.
            kwargs: its keyword arguments.

        Raises:
            Exception: the loop's own, from whichever rank; a note says which.
            fabric.Error: no value came; names the rank that failed.
        """
        run = self.submit(*args, kwargs=kwargs)
        try:
            return self.follow(run)
        except KeyboardInterrupt:
            run.cancel()
            raise

    def submit(self, *args: Any, kwargs: Mapping[str, Any] | None = None) -> fabric.Run:
        """Begin it detached; `follow(fabric.attach(run_id))` takes it up from any process."""
        members = asdict(self._within_budget())
        return fabric.submit(run_lease, self._loop, args, dict(kwargs or {}), members, **self._keywords)

    def follow(self, run: fabric.Run) -> Trained:
        """Print what a training says until it is over; see `run`."""
        seen: list[dict[str, Any]] = []
        cost, asked = run.cost, 0.0
        for line in _lines(run):
            record = metrics.of_line(line)
            if record is None:
                _say(line)
                continue
            if time.monotonic() - asked >= COST_EVERY_S:
                cost, asked = run.cost, time.monotonic()
            seen.append(record | _of_cost(cost))
            self._keep(seen)
            if not self._quiet:
                _say(metrics.as_text(seen[-1]))
        return self._outcome(run, run.result(), seen)

    def _outcome(self, run: fabric.Run, answer: Mapping[str, Any], seen: list[dict[str, Any]]) -> Trained:
        if "failed" in answer:
            raise Failed.from_json(answer["failed"]).error(answer["world_size"])
        records, cost = metrics.merge(answer["records"], seen), run.cost
        if records:  # its line may have come too late to be seen
            records[-1] |= _of_cost(cost)
        trained = Trained(
            answer["value"],
            tuple(records),
            answer["stopped"],
            answer["world_size"],
            answer["attempt"],
            run.id,
            cost,
        )
        self._keep(records)
        if self._folder is not None:
            trained.plot(self._folder / "report.html")
        return trained

    def _keep(self, records: list[dict[str, Any]]) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            metrics.write(self._folder / "metrics.jsonl", records)

    def _within_budget(self) -> Plan:
        """The plan, with the time that the budget pays for at the price at which it would be placed now.

        What has to wait is reckoned at `max_price`: what it will cost is not known yet.

        Raises:
            fabric.NoCapacity: it would have to wait, and there is no `max_price`.
        """
        if self._budget is None:
            return self._plan
        try:
            gpus, price = bought(self._explain().chosen)
        except fabric.NoCapacity as error:
            cap = self._keywords.get("max_price")
            if cap is None:
                error.add_note(
                    "a budget becomes a time at a known price: give max_price=… to wait for GPUs with a budget"
                )
                raise
            gpus, price = most_gpus(self._keywords.get("gpu"), self._keywords.get("nodes", 1)), float(cap)
        limit_s = seconds_for(self._budget, price, gpus, self._keywords.get("tier", "on_demand"))
        if 0 < self._plan.limit_s <= limit_s:
            return self._plan
        return replace(self._plan, limit_s=limit_s, stopped_by="budget")

    def _explain(self) -> Any:
        keywords: dict[str, Any] = self._keywords | {"dry_run": True}
        return fabric.run(run_lease, **keywords)


def _lines(run: fabric.Run) -> Iterator[str]:
    """What the run prints; without a control plane to ask, its outcome is waited for all the same."""
    try:
        yield from run.logs(follow=True)
    except fabric.ServiceError as error:
        _say(str(error))


def _of_cost(cost: fabric.Cost) -> dict[str, Any]:
    return {
        "cost_usd": float(cost.accrued),
        "utilisation": cost.utilised_gpu_ms / cost.gpu_ms if cost.gpu_ms else 0.0,
    }


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what a training says is shown to whoever waits for it
