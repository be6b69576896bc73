"""What runs in each lease of a training: one process per GPU, of which the lease's own is the first.

The others are forked before anything of torch has begun. They end with the first, and their end ends it.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import fabric
from workloads.training.outcome import Failed, RankLost
from workloads.training.plan import Place, Plan, places

GRACE_S = 5.0
"""The lease's first rank is given so long to say by itself that another one is gone."""

_PR_SET_PDEATHSIG = 1


def run_lease(
    loop: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], members: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Run the loop in every rank of this lease; what rank 0 has to say, None on another lease.

    Args:
        loop: called with a `Session` and then its arguments.
        args: its positional arguments.
        kwargs: its keyword arguments.
        members: of the `Plan`.
    """
    began = time.monotonic()
    from workloads.training.group import free_port

    plan = Plan(**members)
    folder = fabric.checkpoint_dir()
    first, *others = places(os.environ, plan.ranks_per_node, free_port())
    children = [_fork(place, plan, folder, began, loop, args, kwargs) for place in others]
    if children:
        threading.Thread(target=_watch, args=(children,), name="training-ranks", daemon=True).start()
    try:
        return _run_rank(first, plan, folder, began, loop, args, kwargs)
    finally:
        _end(children)


def _run_rank(
    place: Place,
    plan: Plan,
    folder: Path,
    began: float,
    loop: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any] | None:
    from workloads.training.group import Group
    from workloads.training.session import Session, limit_threads

    limit_threads(place.neighbours)
    group = Group(place, plan)
    session = Session(group, plan, folder, began)
    failed: Failed | None = None
    value: Any = None
    try:
        try:
            value = loop(session, *args, **kwargs)
            session.finish()
        except Exception as error:  # noqa: BLE001 - whatever the loop raises is its result
            failed = group.judge(error)
    except KeyboardInterrupt:
        if group.verdict:
            raise RankLost(group.verdict) from None
        raise
    finally:
        group.close()
    if place.rank:
        return None
    answer = {"world_size": place.world_size, "attempt": session.attempt, "records": session.records}
    if failed is not None:
        return answer | {"failed": failed.as_json()}
    return answer | {"value": value, "stopped": session.stopped}


def _fork(place: Place, plan: Plan, folder: Path, *call: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the threads that are here hold nothing that a rank needs
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(os.getpid(), place, plan, folder, *call), name=f"rank-{place.rank}"
        )
        child.start()
    return child


def _child(parent: int, place: Place, plan: Plan, folder: Path, *call: Any) -> None:
    """A forked rank; only rank 0 reports and stores."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _run_rank(place, plan, folder, *call)


def _watch(children: Sequence[Any]) -> None:
    """When a rank ends as it should not, so does the lease's process, unless that says so by itself."""
    left = {child.sentinel: child for child in children}
    while left:
        for sentinel in wait(list(left)):
            child = left.pop(sentinel)  # type: ignore[call-overload]
            child.join()
            if child.exitcode:
                how = f"signal {-child.exitcode}" if child.exitcode < 0 else f"exit code {child.exitcode}"
                sys.stderr.write(f"{child.name} ended by {how}\n")
                time.sleep(GRACE_S)
                os.kill(os.getpid(), signal.SIGKILL)


def _end(children: Sequence[Any]) -> None:
    for child in children:
        child.join(GRACE_S)
        if child.is_alive():
            child.kill()
            child.join()
