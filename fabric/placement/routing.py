"""To which replica of an inference endpoint a request goes: the one whose first token is expected earliest.

The expectation is the round trip, the prompts ahead of it, its own prompt, and the wait for a place in the batch when
all are taken. Everything in it is what a router knows by itself: what it has sent and what has come back. Pure: it
reads values and keeps nothing; whoever routes counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as its router sees it at the moment of a request.

    Attributes:
        name: unique; the last tie-breaker.
        rtt_ms: from the caller through the router to the replica and back.
        prompt_tokens_ahead: of requests sent there whose first token has not come back yet.
        in_flight: requests sent there that are not finished.
        slots: how many it works on at the same time.
        prompt_tokens_per_s: how fast it reads prompts.
        mean_stay_ms: how long a request occupies a slot, lately.
        cached_tokens: of this prompt, how many it is known to hold from earlier turns.
    """

    name: str
    rtt_ms: float
    prompt_tokens_ahead: int
    in_flight: int
    slots: int
    prompt_tokens_per_s: float
    mean_stay_ms: float
    cached_tokens: int = 0


def first_token_ms(replica: Replica, prompt_tokens: int) -> float:
    """When the first token would be back, from now."""
    reading = replica.prompt_tokens_ahead + max(prompt_tokens - replica.cached_tokens, 0)
    queued = max(replica.in_flight + 1 - replica.slots, 0)
    waiting_ms = queued * replica.mean_stay_ms / replica.slots
    return replica.rtt_ms + 1000 * reading / replica.prompt_tokens_per_s + waiting_ms


def choose(replicas: Sequence[Replica], prompt_tokens: int) -> Replica | None:
    """The replica to send to; None when there is none."""
    return next(iter(ranked(replicas, prompt_tokens)), None)


def ranked(replicas: Sequence[Replica], prompt_tokens: int) -> list[Replica]:
    """All replicas in the order in which to try them; of equally good ones the one with least in flight."""
    return sorted(replicas, key=lambda one: (first_token_ms(one, prompt_tokens), one.in_flight, one.name))
