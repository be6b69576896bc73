"""Log lines of runs: one file of JSON lines per run, an index row, and a stream that follows."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from anyio import to_thread
from sqlalchemy import select
from sqlmodel import col

from api.database import Database, say
from api.signals import Signals, logs_topic
from api.tables import LogRow, RunRow
from fabric.wire.link import LogLine
from fabric.wire.machines import RUN_EDGES, RunState, is_terminal

MAX_BYTES = 64 << 20
"""What is kept of one run's log; beyond it lines are dropped and the row says so."""

KEPT_MS = 7 * 86_400_000
"""How long a log stays after its run's end."""

_PIECE = 256 << 10
_KEEP_ALIVE_S = 15.0


class Logs:
    """The logs of all runs below one folder."""

    def __init__(self, folder: Path, database: Database, signals: Signals) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._database = database
        self._signals = signals

    def append(self, run: str, lines: Sequence[LogLine]) -> None:
        """Keep lines of a run that exists; more than `MAX_BYTES` of a run are dropped."""
        data = "".join(json.dumps(line.model_dump(), ensure_ascii=False) + "\n" for line in lines).encode()
        with self._database.write() as session:
            row = session.get(LogRow, run) or LogRow(run=run, lines=0, size_bytes=0, truncated=False)
            if row.size_bytes + len(data) > MAX_BYTES:
                row.truncated = True
            else:
                self._write(run, row.size_bytes, data)
                row.lines += len(lines)
                row.size_bytes += len(data)
            session.add(row)
            say(session, logs_topic(run))

    async def follow(self, run: str, *, follow: bool) -> AsyncIterator[str]:
        """Server-sent events: each line, then `end`; with `follow` only when the run is over."""
        position = 0
        while True:
            seen = self._signals.seen(logs_topic(run))
            over = not follow or await to_thread.run_sync(self._is_over, run)
            for piece in await to_thread.run_sync(self._lines, run, position):
                position += len(piece)
                yield f"data: {piece.decode().rstrip()}\n\n"
            if over and not await to_thread.run_sync(self._more, run, position):
                yield "event: end\ndata: {}\n\n"
                return
            if not over and not await self._signals.wait(logs_topic(run), seen, _KEEP_ALIVE_S):
                yield ": still here\n\n"

    def expire(self, now_ms: int) -> int:
        """Remove the logs of runs that have been over for so long; returns how many."""
        with self._database.write() as session:
            ended = col(RunRow.ended_ms) <= now_ms - KEPT_MS
            due = list(
                session.scalars(select(LogRow).join(RunRow, col(RunRow.id) == col(LogRow.run)).where(ended).limit(500))
            )
            for row in due:
                self._path(row.run).unlink(missing_ok=True)
                session.delete(row)
        return len(due)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.jsonl"

    def _write(self, run: str, size: int, data: bytes) -> None:
        with self._path(run).open("ab") as file:
            if file.tell() != size:
                file.truncate(size)
            file.write(data)

    def _kept(self, run: str) -> int:
        with self._database.read() as session:
            row = session.get(LogRow, run)
            return row.size_bytes if row else 0

    def _lines(self, run: str, position: int) -> list[bytes]:
        """Whole lines from `position`, at most a piece of them."""
        kept = self._kept(run)
        if kept <= position:
            return []
        with self._path(run).open("rb") as file:
            file.seek(position)
            data = file.read(min(_PIECE, kept - position))
            if not data.endswith(b"\n"):
                data = data[: data.rfind(b"\n") + 1] or data + file.readline()
        return data.splitlines(keepends=True)

    def _more(self, run: str, position: int) -> bool:
        return self._kept(run) > position

    def _is_over(self, run: str) -> bool:
        with self._database.read() as session:
            row = session.get(RunRow, run)
            return row is None or is_terminal(RUN_EDGES, RunState(row.state))
