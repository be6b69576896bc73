"""Time to first token of our routing beside round robin and least load, for replicas in several places.

A simulation: requests of the trace come from random places; each replica reads prompts one after the other and then
generates in a batch of limited size. Ours knows what a router knows: round trips, what it has sent, what came back.
Simulated time: nothing sleeps.

`python -m benchmarks.routing [--trace TRACE] [--json]`
"""

import argparse
import heapq
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from benchmarks.llm_trace import LlmRequest, LlmTraceError, read_llm_trace
from fabric.placement.routing import Replica, choose

DATA = Path(__file__).parent / "data"
PLACES = ("frankfurt", "virginia", "oregon", "tokyo")
RTT_MS = (
    (4.0, 90.0, 145.0, 230.0),
    (90.0, 4.0, 65.0, 160.0),
    (145.0, 65.0, 4.0, 100.0),
    (230.0, 160.0, 100.0, 4.0),
)
_CALLERS = (0.4, 0.3, 0.2, 0.1)  # how many of the callers are in each place
_REPLICAS_PER_PLACE = 2
_SLOTS = 24
_PROMPT_TOKENS_PER_S = 8_000.0
_TOKEN_MS = 25.0
_FIRST_STAY_MS = 5_000.0


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 2 when the file or an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trace", type=Path, default=DATA / "azure_conversations.csv", help="Azure format, may be .gz")
    parser.add_argument("--speedup", type=_positive, default=3.0, help="the trace's requests come so many times faster")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        requests = read_llm_trace(options.trace)
    except (LlmTraceError, OSError) as error:
        print(f"benchmarks.routing: {error}", file=sys.stderr)
        return 2
    rows = {name: first_tokens(requests, pick(), options.speedup, options.seed) for name, pick in POLICIES.items()}
    figures = {
        "ttft_p50_ms": {name: round(_percentile(row, 50), 2) for name, row in rows.items()},
        "ttft_p99_ms": {name: round(_percentile(row, 99), 2) for name, row in rows.items()},
    }
    config = {"trace": options.trace.name, "requests": len(requests), "speedup": options.speedup, "seed": options.seed}
    report = {"name": "routing", "config": config, "figures": figures}
    print(json.dumps(report) if options.json else "\n".join(f"{key}: {value}" for key, value in figures.items()))
    return 0


@dataclass
class Server:
    """A replica that is simulated, with the counts its router keeps."""

    name: str
    place: int
    prompt_tokens_ahead: int = 0
    in_flight: int = 0
    mean_stay_ms: float = _FIRST_STAY_MS
    reading_until_ms: float = 0.0
    slots_free_at_ms: list[float] = field(default_factory=lambda: [0.0] * _SLOTS)

    def serve(self, request: LlmRequest, arrives_ms: float) -> tuple[float, float, float]:
        """When its slot is taken, its first token is made and its last one; slots are given in order of arrival."""
        slot_ms = max(arrives_ms, heapq.heappop(self.slots_free_at_ms))
        start_ms = max(slot_ms, self.reading_until_ms)
        first_ms = start_ms + 1000 * request.prompt_tokens / _PROMPT_TOKENS_PER_S
        self.reading_until_ms = first_ms
        last_ms = first_ms + _TOKEN_MS * max(request.generated_tokens - 1, 0)
        heapq.heappush(self.slots_free_at_ms, last_ms)
        return slot_ms, first_ms, last_ms


Pick = Callable[[list[Server], int, LlmRequest], Server]


def first_tokens(requests: list[LlmRequest], pick: Pick, speedup: float, seed: int) -> list[float]:
    """Time to first token of each request in ms, as the caller sees it."""
    draw = random.Random(seed)
    servers = [Server(f"{place}-{n}", index) for index, place in enumerate(PLACES) for n in range(_REPLICAS_PER_PLACE)]
    news: list[tuple[float, int, Callable[[], None]]] = []
    order, times = count(), []
    for request in requests:
        now_ms = request.at_ms / speedup
        while news and news[0][0] <= now_ms:
            heapq.heappop(news)[2]()
        caller = draw.choices(range(len(PLACES)), _CALLERS)[0]
        server = pick(servers, caller, request)
        half_ms = RTT_MS[caller][server.place] / 2
        server.prompt_tokens_ahead += request.prompt_tokens
        server.in_flight += 1
        slot_ms, first_ms, last_ms = server.serve(request, now_ms + half_ms)
        times.append(first_ms + half_ms - now_ms)
        heapq.heappush(news, (first_ms + half_ms, next(order), _began(server, request)))
        heapq.heappush(news, (last_ms + half_ms, next(order), _ended(server, last_ms - slot_ms)))
    return times


def round_robin() -> Pick:
    turns = count()
    return lambda servers, _caller, _request: servers[next(turns) % len(servers)]


def least_load() -> Pick:
    return lambda servers, _caller, _request: min(servers, key=lambda one: (one.in_flight, one.name))


def ours() -> Pick:
    """The product's own choice."""

    def pick(servers: list[Server], caller: int, request: LlmRequest) -> Server:
        seen = [
            Replica(
                one.name,
                RTT_MS[caller][one.place],
                one.prompt_tokens_ahead,
                one.in_flight,
                _SLOTS,
                _PROMPT_TOKENS_PER_S,
                one.mean_stay_ms,
            )
            for one in servers
        ]
        best = choose(seen, request.prompt_tokens)
        return next(one for one in servers if best is not None and one.name == best.name)

    return pick


POLICIES: dict[str, Callable[[], Pick]] = {"round_robin": round_robin, "least_load": least_load, "fabric": ours}


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _began(server: Server, request: LlmRequest) -> Callable[[], None]:
    def note() -> None:
        server.prompt_tokens_ahead -= request.prompt_tokens

    return note


def _ended(server: Server, stay_ms: float) -> Callable[[], None]:
    def note() -> None:
        server.in_flight -= 1
        server.mean_stay_ms += (stay_ms - server.mean_stay_ms) / 16

    return note


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


if __name__ == "__main__":
    sys.exit(main())
