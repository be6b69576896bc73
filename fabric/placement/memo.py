"""What was worked out for earlier requests, so that it need not be worked out again. It changes speed, never an answer."""

from collections.abc import Hashable

_MOST_ROWS = 8_000_000


class Memo:
    """A bounded table; the entry that was not asked for longest goes first.

    The bound is on entries times rows of the fleet, that is on memory: some 100 to 200 bytes per entry and row.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, object] = {}

    def recall(self, key: Hashable) -> object | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
        return entry

    def keep(self, key: Hashable, entry: object, rows: int) -> None:
        """Remember the entry of a fleet with so many rows."""
        self._entries[key] = entry
        while len(self._entries) > 1 and len(self._entries) * rows > _MOST_ROWS:
            del self._entries[next(iter(self._entries))]
