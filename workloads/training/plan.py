"""What a training asks of its ranks, and which ranks a lease holds. Pure; imports no torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fabric

DC_PER_USD = 100_000
MARGIN = 0.9
"""Of what a budget pays for, so much is used: the rest is for opening and closing."""
RESERVE_S = {"spot": 36.0}
OTHER_RESERVE_S = 11.0
"""A lease ends when no more of the budget is left than its notice and its end cost (`ledger.pricing`)."""

_COUNT = re.compile(r":(\d+)$")
_OPEN_ENDED = re.compile(r":\d+\.\.(\d*)$")


@dataclass(frozen=True, slots=True)
class Plan:
    """The same for every rank and attempt.

    Attributes:
        ranks_per_node: processes per lease, one per GPU.
        limit_s: the loop stops by itself after so long, all attempts together; 0: never.
        checkpoint_every_s: between two checkpoints.
        startup_s: how long ranks wait for each other.
        collective_s: how long a rank waits in a collective for the others.
        stopped_by: what to call it when `limit_s` is over.
        seed: of the weights and of the order of samples.
        training: names this training in its checkpoints.
    """

    ranks_per_node: int = 1
    limit_s: float = 0.0
    checkpoint_every_s: float = 60.0
    startup_s: float = 120.0
    collective_s: float = 600.0
    stopped_by: str = "budget"
    seed: int = 0
    training: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place.

    Attributes:
        host, port: where rank 0 listens.
        own: this lease's address as its peers see it.
        neighbours: ranks at that address, this one included.
    """

    rank: int
    world_size: int
    local_rank: int
    attempt: int
    host: str
    port: int
    own: str
    neighbours: int = 1


def places(environ: Mapping[str, str], ranks_per_node: int, free_port: int) -> list[Place]:
    """Of all ranks of the lease whose environment this is; the ranks of a node follow each other.

    Args:
        environ: with what a gang's rank finds there (docs/gangs.md), or without it on one node.
        ranks_per_node: how many there are.
        free_port: where rank 0 may listen when there is one node alone.
    """
    node, nodes = int(environ.get("FABRIC_RANK", "0")), int(environ.get("FABRIC_WORLD_SIZE", "1"))
    peers = environ.get("FABRIC_PEERS", "").split(",") if nodes > 1 else ["127.0.0.1"]
    port = int(environ["FABRIC_RENDEZVOUS_PORT"]) if nodes > 1 else free_port
    attempt = int(environ.get("FABRIC_ATTEMPT", "1"))
    return [
        Place(
            node * ranks_per_node + local,
            nodes * ranks_per_node,
            local,
            attempt,
            _bare(peers[0]),
            port,
            _bare(peers[node]),
            sum(_same_machine(peer, peers[node]) for peer in peers) * ranks_per_node,
        )
        for local in range(ranks_per_node)
    ]


def count_ranks(gpu: Any, wanted: int | None) -> int:
    """One rank per GPU of a lease, as the GPU's spec counts them.

    Raises:
        fabric.InvalidRequest: the specs leave the number open.
    """
    if wanted is not None:
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= 64:
            raise fabric.InvalidRequest(f"ranks_per_node={wanted!r} is not a number of processes from 1 to 64")
        return wanted
    specs: Iterable[Any] = [gpu] if isinstance(gpu, str) else (gpu or [":1"])
    counts = {int(found[1]) if (found := _COUNT.search(str(spec))) else 1 for spec in specs}
    if len(counts) > 1 or any(_OPEN_ENDED.search(str(spec)) for spec in specs):
        raise fabric.InvalidRequest(
            f"gpu={gpu!r} leaves open how many GPUs a node has; say ranks_per_node=…, or one count for all"
        )
    return counts.pop()


def most_gpus(gpu: Any, nodes: int | tuple[int, int]) -> int:
    """As many as a training can have at once, on all its nodes together.

    Raises:
        fabric.InvalidRequest: the specs set no bound.
    """
    specs = [str(spec) for spec in ([gpu] if isinstance(gpu, str) else (gpu or [":1"]))]
    per_node = 1
    for spec in specs:
        if found := _OPEN_ENDED.search(spec) or _COUNT.search(spec):
            if not found[1]:
                raise fabric.InvalidRequest(f"gpu={gpu!r} leaves open how many GPUs there are, and what they cost")
            per_node = max(per_node, int(found[1]))
    return per_node * (nodes[-1] if isinstance(nodes, tuple) else nodes)


def bought(chosen: Mapping[str, Any]) -> tuple[float, float]:
    """(GPUs of all nodes, USD per GPU-hour) of what an explanation says is chosen."""
    gpus = len(chosen["nodes"]) * chosen["gpus"] * chosen["share_milli"] / 1000
    return gpus, int(chosen["price_dc_per_gpu_hour"]) / DC_PER_USD


def seconds_for(budget: Any, price_per_gpu_hour: float, gpus: float, tier: str = "on_demand") -> float:
    """How long a training may take on so many GPUs until its budget, less the margin, is used.

    Raises:
        fabric.InvalidRequest: it would not last for a second.
    """
    paid = float(budget) * 3600 / (price_per_gpu_hour * gpus)
    reserve = RESERVE_S.get(tier, OTHER_RESERVE_S)
    if paid < reserve + 1:
        raise fabric.InvalidRequest(
            f"budget={budget} pays {gpus:g} GPUs at USD {price_per_gpu_hour:g} per GPU-hour for {paid:.1f} s, of which "
            f"{reserve:g} s are set aside for their end; give more"
        )
    return MARGIN * (paid - reserve)


def _same_machine(one: str, other: str) -> bool:
    return one == other or (one.startswith("127.") and other.startswith("127."))


def _bare(address: str) -> str:
    """Without a port, should one stand there."""
    host, _, port = address.rpartition(":")
    return host if host and port.isdigit() and ":" not in host else address
