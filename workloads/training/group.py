"""A training's ranks find each other and say who is missing: a store on rank 0, and `torch.distributed`.

When a rank fails it says so in the store; a watcher in every other rank then cuts the connections between ranks, so
that nobody waits in a collective for one that will not come. When ranks have waited too long for another one, its own
watcher interrupts it.
"""

import fcntl
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import fabric
from workloads.training.outcome import Failed, RankLost
from workloads.training.plan import Place, Plan

LOOK_S = 0.05
WATCH_S = 0.5
PARTING_S = 10.0
"""How long ranks wait for each other's word once one has failed."""

_OF_THE_WIRE = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|TCPStore", re.IGNORECASE)
_SIOCGIFADDR = 0x8915
_stores: Any = dist
"""Its stores are documented there, but not among the names that it says it exports."""


class Group:
    """One rank's membership."""

    def __init__(self, place: Place, plan: Plan) -> None:
        """Find all ranks.

        Raises:
            RankLost: some did not come in time; names them.
        """
        self.place = place
        self.verdict = ""
        """Why this rank was interrupted."""
        self.whereabouts: Callable[[], str] = lambda: "before its loop"
        """How far this rank is, in words."""
        self._plan = plan
        _choose_interface(place.own)
        self._store = _store(place, plan.startup_s)
        self._all_here()
        before = _connections()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=_stores.PrefixStore("group", self._store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=plan.collective_s),
        )
        self.control: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=plan.collective_s))
        self._wires = _connections() - before
        self._over = threading.Event()
        if place.world_size > 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process was started with
            threading.Thread(target=self._watch, name="training-watch", daemon=True).start()

    def close(self) -> None:
        """Leave, once everybody has said what was to be said."""
        self._over.set()
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group()

    def gather(self, row: Sequence[float]) -> list[list[float]]:
        """Every rank's row, by rank; all are of the same length, and every rank calls it."""
        if self.place.world_size == 1:
            return [list(row)]
        own = torch.tensor(row, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.place.world_size)]
        dist.all_gather(every, own, group=self.control)
        return [one.tolist() for one in every]

    def expect_same(self, facts: Mapping[str, Any]) -> None:
        """Every rank calls it at the same point.

        Raises:
            fabric.InvalidRequest: a rank brings something else than rank 0; names both, and the first difference.
        """
        size = self.place.world_size
        every: list[Any] = [facts] * size
        if size > 1:
            dist.all_gather_object(every, facts, group=self.control)
        for rank, other in enumerate(every):
            for name in every[0] | other:
                if every[0].get(name) != other.get(name):
                    raise fabric.InvalidRequest(
                        f"the ranks disagree about {name}: {other.get(name)} on {ranks_of([rank], size)}, "
                        f"{every[0].get(name)} on rank 0"
                    )

    def judge(self, error: BaseException) -> Failed | None:
        """What becomes of an error of the loop: the loop's own failure, here or on another rank, ends the training.

        Returns:
            What rank 0 answers with; None on other ranks, whose answer nobody reads.

        Raises:
            RankLost: a rank is gone, or did not take part; names it.
        """
        rank = self.place.rank
        self._over.set()
        if not _is_of_the_wire(error):
            told = Failed(rank, type(error).__name__, str(error), _trace(error))
            self._say("failed", json.dumps(told.as_json()))
            if rank == 0:
                self._until(lambda: all(self._has(f"over/{one}") for one in range(1, self.place.world_size)))
                return told
            self._say(f"over/{rank}", "1")
            return None
        self._say(f"at/{rank}", self.whereabouts())
        self._say(f"lost/{rank}", "1")
        self._until(lambda: self._has("failed") or len(self._silent()) <= 1)
        if self._has("failed"):
            self._say(f"over/{rank}", "1")
            return Failed.from_json(json.loads(self._store.get("failed"))) if rank == 0 else None
        lost = RankLost(self._missing(error))
        self._say("verdict", str(lost))
        sys.stderr.write(f"{lost}\n")  # the next attempt goes on without it; that it was lost is to be read
        raise lost from error

    def _missing(self, error: BaseException) -> str:
        size = self.place.world_size
        try:
            silent = self._silent()
        except RuntimeError:
            return f"rank 0 of {size} is gone"
        late = "timed out" in str(error).lower()
        if not silent:
            what = f"did not meet within {self._plan.collective_s:g} s" if late else "lost each other"
            return f"the ranks {what}{self._apart()}: {error}"
        what = f"did not take part within {self._plan.collective_s:g} s" if late else "is gone"
        return f"{ranks_of(silent, size)} {what}{self._apart()}: {str(error).strip().splitlines()[0]}"

    def _apart(self) -> str:
        """How far each rank is, where that is not the same."""
        size = self.place.world_size
        known = {rank: self._store.get(f"at/{rank}").decode() for rank in range(size) if self._has(f"at/{rank}")}
        if len(set(known.values())) <= 1:
            return ""
        return f" ({'; '.join(f'rank {rank} was {where}' for rank, where in known.items())})"

    def _silent(self) -> list[int]:
        """Ranks that do not miss anybody: they are gone, or at something else."""
        return [rank for rank in range(self.place.world_size) if not self._store.check([f"lost/{rank}"])]

    def _all_here(self) -> None:
        place = self.place
        self._store.set(f"came/{place.rank}", "1")
        until = time.monotonic() + self._plan.startup_s
        missing = list(range(place.world_size))
        while missing := [rank for rank in missing if not self._store.check([f"came/{rank}"])]:
            if time.monotonic() > until:
                raise RankLost(_late(missing, place, self._plan.startup_s))
            time.sleep(LOOK_S)
        self._store.set(f"ready/{place.rank}", "1")
        if place.rank == 0:  # the store lives here: others may still be counting
            self._until(lambda: all(self._has(f"ready/{rank}") for rank in range(place.world_size)))

    def _watch(self) -> None:
        told = ""
        while not self._over.wait(WATCH_S):
            try:
                if (where := self.whereabouts()) != told:
                    self._store.set(f"at/{self.place.rank}", where)
                    told = where
                failed, late = self._store.check(["failed"]), self._store.check(["verdict"])
            except RuntimeError:
                failed, late = True, False  # rank 0 is gone, and its store with it
            if failed and not self._over.wait(WATCH_S):
                self._cut()
            elif late and not self._over.wait(WATCH_S):
                self._interrupt()
            if failed or late:
                return

    def _interrupt(self) -> None:
        """The others have given up this rank, which is not in a collective: end what it is at."""
        with suppress(RuntimeError):
            self.verdict = self._store.get("verdict").decode()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self._over.wait(PARTING_S):
            os.kill(os.getpid(), signal.SIGKILL)

    def _cut(self) -> None:
        """End every collective that this rank waits in."""
        if torch.cuda.is_available():
            abort = getattr(dist.group.WORLD, "abort", None)
            if abort is not None:
                abort()
        port = self.place.port
        for fd in self._wires:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as wire:
                if port not in (wire.getsockname()[1], wire.getpeername()[1]):
                    wire.shutdown(socket.SHUT_RDWR)

    def _say(self, key: str, value: str) -> None:
        with suppress(RuntimeError):
            self._store.set(key, value)

    def _has(self, key: str) -> bool:
        try:
            return self._store.check([key])
        except RuntimeError:
            return False  # rank 0 is gone, and its store with it

    @staticmethod
    def _until(condition: Callable[[], bool]) -> bool:
        """Whether it came true in time."""
        until = time.monotonic() + PARTING_S
        with suppress(RuntimeError):
            while time.monotonic() < until:
                if condition():
                    return True
                time.sleep(LOOK_S)
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _store(place: Place, startup_s: float) -> Any:
    patience = timedelta(seconds=startup_s)
    try:
        return _stores.TCPStore(
            place.host, place.port, is_master=place.rank == 0, timeout=patience, wait_for_workers=False
        )
    except (RuntimeError, OSError) as error:
        if place.rank == 0:
            raise RankLost(f"rank 0 cannot listen on {place.host}:{place.port}: {error}") from None
        raise RankLost(_late([0], place, startup_s)) from None


def _choose_interface(own: str) -> None:
    """Tell gloo and NCCL which interface leads to the peers: host names need not resolve in a sandbox."""
    name = next((name for _, name in socket.if_nameindex() if _address_of(name) == own), None)
    if name is None and own.startswith("127."):
        name = "lo"
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name
        if name != "lo":
            os.environ["NCCL_SOCKET_IFNAME"] = name


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _connections() -> set[int]:
    """Descriptors of this process's sockets."""
    found: set[int] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                found.add(int(entry.name))
    return found


def _is_of_the_wire(error: BaseException) -> bool:
    """Whether it says that a rank was not reached, rather than that the loop went wrong."""
    told = isinstance(error, RuntimeError) and bool(_OF_THE_WIRE.search(str(error)))
    return told or isinstance(error, dist.DistError)


def ranks_of(numbers: Iterable[int], size: int) -> str:
    some = [str(number) for number in numbers]
    return f"rank{'s' if len(some) > 1 else ''} {', '.join(some)} of {size}"


def _late(missing: Iterable[int], place: Place, startup_s: float) -> str:
    return f"{ranks_of(missing, place.world_size)} did not come within {startup_s:g} s (`rendezvous_timeout`)"


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
