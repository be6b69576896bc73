"""Settles closed epochs in order: post, the dispute window, finalise. One step at a time, each safe to repeat.

What is due is read from the contract, never remembered; what was sent is in the outbox. So it may be killed at any
instant, run twice or beside another settler with the same key or another: the contract takes every epoch once, in
order. A closing is compared with the ledger before it is sent and when the chain has it; on a difference the settler
stops with an error, and sends nothing. It closes no epoch and claims nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ledger.chain import calls
from ledger.chain.calls import Closing
from ledger.chain.client import ChainClient
from ledger.chain.errors import Disagreement, Reverted, WentBack
from ledger.chain.outbox import Outbox, Sent, SentState

_OVERTAKEN = frozenset({"OutOfOrder", "NotPosted"})
"""Another settler was faster; the next step sees what it did."""

_WAITING = {
    "UnderDispute": "epoch {epoch} is under dispute; the owner of Settlement resolves it",
    "WindowOpen": "the dispute window of epoch {epoch} is open",
    "NotOver": "epoch {epoch} is not over by the chain's time",
}


class Closings(Protocol):
    """Where the closings of closed epochs come from."""

    def closing(self, epoch: int) -> Closing | None:
        """None while the epoch is not closed."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did or what it waits for, in words; ``busy`` when a further step may do more at once."""

    text: str
    posted: int
    finalised: int
    busy: bool = False


class Settler:
    """Settles on one chain what ``closings`` has.

    Args:
        client: the chain.
        outbox: of the poster's key.
        closings: of this deployment's epochs.
    """

    def __init__(self, client: ChainClient, outbox: Outbox, closings: Closings) -> None:
        self._client = client
        self._outbox = outbox
        self._closings = closings
        self._agreed: set[tuple[int, int]] = set()

    def run(self, steps: int) -> Step:
        """Steps until there is something to wait for, at most so many; returns the last one."""
        step = self.step()
        for _ in range(steps - 1):
            if not step.busy:
                break
            step = self.step()
        return step

    def step(self) -> Step:
        """Send what is due, or say what is waited for.

        Raises:
            Disagreement: the chain has another closing than the ledger.
            WentBack: it lost what was final.
            ChainError: it does not answer, or refuses what is due; nothing was sent, the next step tries again.
        """
        under_way = self._outbox.watch()
        posted, finalised = self._client.posted(), self._client.finalised()
        if under_way:
            return Step(f"{under_way[0].purpose} is sent and not mined yet", posted, finalised)
        for epoch in range(finalised, posted):
            self._expect_ours(epoch)
        closing = self._closings.closing(posted)
        if closing is not None:
            assert closing.epoch == posted
            return self._post(closing, finalised)
        if finalised < posted:
            return self._finalise(finalised, posted)
        return Step(f"epoch {posted} is not closed", posted, finalised)

    def _post(self, closing: Closing, finalised: int) -> Step:
        epoch = closing.epoch
        send = lambda: self._send(f"post/{epoch}/{self._client.last_post_id() + 1}", calls.post(closing))  # noqa: E731
        return self._try(send, f"posted epoch {epoch}", epoch, epoch, finalised)

    def _finalise(self, epoch: int, posted: int) -> Step:
        ready_s, now_s = self._client.ready_at_s(epoch), self._client.head().time_s
        if now_s < ready_s:
            return Step(f"the dispute window of epoch {epoch} is open for {ready_s - now_s} s", posted, epoch)
        closing = self._closing(epoch)
        purpose = f"finalise/{epoch}/{self._client.queued(epoch)[1]}"
        return self._try(
            lambda: self._send(purpose, calls.finalise(closing)), f"finalised epoch {epoch}", epoch, posted, epoch
        )

    def _try(self, send: Callable[[], Sent], done: str, epoch: int, posted: int, finalised: int) -> Step:
        try:
            sent = send()
        except Reverted as refused:
            if refused.name in _OVERTAKEN:
                return Step(f"epoch {epoch} was settled further by somebody else", posted, finalised, busy=True)
            if refused.name in _WAITING:
                return Step(_WAITING[refused.name].format(epoch=epoch), posted, finalised)
            raise
        if sent.state is SentState.MINED:
            return Step(f"{sent.purpose} was mined in block {sent.block_number} and changed nothing", posted, finalised)
        return Step(f"{done} in transaction 0x{sent.hash.hex()}", posted, finalised, busy=True)

    def _send(self, purpose: str, call: calls.Call) -> Sent:
        sent = self._outbox.send(purpose, call)
        if sent.state is SentState.DONE:
            raise WentBack(
                f"{purpose} was final in block {sent.block_number} and the chain no longer has it; look at it"
            )
        return sent

    def _expect_ours(self, epoch: int) -> None:
        """The queue holds what the ledger closed, not something else that the poster's key sent."""
        found, post_id = self._client.queued(epoch)
        if (epoch, post_id) in self._agreed:
            return
        closing = self._closing(epoch)
        if closing.hash != found:
            raise Disagreement(
                f"epoch {epoch} stands on the chain with closing 0x{found.hex()}, the ledger's is "
                f"0x{closing.hash.hex()}; dispute it before {self._client.ready_at_s(epoch)} and find out who posted it"
            )
        self._agreed.add((epoch, post_id))

    def _closing(self, epoch: int) -> Closing:
        closing = self._closings.closing(epoch)
        if closing is None:
            raise Disagreement(f"epoch {epoch} is posted on the chain, and the ledger has not closed it")
        return closing
