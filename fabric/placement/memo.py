"""What was worked out for earlier requests, to be used again. It changes speed, never an answer."""

from collections.abc import Hashable

_MOST_ROWS = 4_000_000


class Memo:
    """A bounded table; the oldest entry goes first.

    The bound is on entries times rows of the fleet, that is on memory: some 100 to 200 bytes per entry and row.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, object] = {}

    def recall(self, key: Hashable) -> object | None:
        return self._entries.get(key)

    def keep(self, key: Hashable, entry: object, rows: int) -> None:
        """Remember the entry of a fleet with so many rows."""
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > 1 and len(self._entries) * rows > _MOST_ROWS:
            del self._entries[next(iter(self._entries))]
