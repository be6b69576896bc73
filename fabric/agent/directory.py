"""Which leases this operator has, on which node, and whether a customer may be connected to them."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from fabric.agent.gateway import Refusal
from fabric.wire.reasons import Reason
from fabric.wire.tokens import LeaseToken

UNKNOWN_S = 15.0
"""A route may reach the customer before the grant reaches the agent; this long it is waited for."""
REMEMBERED = 10_000
"""So many leases that are over are remembered, to tell customers why."""


class Stage(StrEnum):
    OPENING = "opening"
    OPEN = "open"
    OVER = "over"


@dataclass(slots=True)
class Entry:
    """One lease generation."""

    generation: int
    node: str
    stage: Stage = Stage.OPENING
    reason: str = ""
    message: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Directory:
    """Lease id to `Entry`; only the newest generation of each."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._appeared = asyncio.Event()

    def add(self, lease: str, generation: int, node: str) -> bool:
        """A lease was granted; False when it is known already, or a newer generation is."""
        known = self._entries.get(lease)
        if known is not None and known.generation >= generation:
            return False
        if known is not None:
            self.over(lease, known.generation, Reason.OPERATOR_LOST, "the lease was granted anew")
        self._entries[lease] = Entry(generation, node)
        self._announce()
        return True

    def opened(self, lease: str, generation: int, node: str) -> None:
        self.add(lease, generation, node)
        entry = self._entries[lease]
        if entry.generation == generation and entry.stage is Stage.OPENING:
            entry.stage = Stage.OPEN
            entry.changed.set()

    def over(self, lease: str, generation: int, reason: str, message: str = "") -> None:
        entry = self._entries.get(lease)
        if entry is not None and entry.generation == generation and entry.stage is not Stage.OVER:
            entry.stage, entry.reason, entry.message = Stage.OVER, reason, message
            entry.changed.set()
            self._forget_oldest()

    def find(self, lease: str, generation: int) -> Entry | None:
        entry = self._entries.get(lease)
        return entry if entry is not None and entry.generation == generation else None

    def on_node(self, node: str) -> list[tuple[str, Entry]]:
        """The leases there that are not over."""
        return [(name, e) for name, e in self._entries.items() if e.node == node and e.stage is not Stage.OVER]

    def active(self) -> list[tuple[str, Entry]]:
        return [(name, entry) for name, entry in self._entries.items() if entry.stage is not Stage.OVER]

    def superseded(self, token: LeaseToken) -> bool:
        entry = self._entries.get(token.lease)
        return entry is not None and token.generation < entry.generation

    async def wait_open(self, lease: str, generation: int) -> Entry:
        """The entry, once it is open.

        Raises:
            Refusal: it is over, or was never heard of.
        """
        entry = await self._wait_known(lease, generation)
        while entry.stage is Stage.OPENING:
            await entry.changed.wait()
        if entry.stage is Stage.OVER:
            raise Refusal(entry.reason, entry.message or f"the lease is over: {entry.reason}")
        return entry

    async def _wait_known(self, lease: str, generation: int) -> Entry:
        try:
            async with asyncio.timeout(UNKNOWN_S):
                while (entry := self.find(lease, generation)) is None:
                    await self._appeared.wait()
        except TimeoutError:
            raise Refusal(Reason.OPERATOR_LOST, "this operator does not know the lease") from None
        return entry

    def _announce(self) -> None:
        self._appeared.set()
        self._appeared = asyncio.Event()

    def _forget_oldest(self) -> None:
        if len(self._entries) > 2 * REMEMBERED:
            over = [name for name, entry in self._entries.items() if entry.stage is Stage.OVER]
            for name in over[:REMEMBERED]:
                del self._entries[name]
