"""Keeps customers' log lines within bounds and sends them to the control plane a few at a time."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fabric.wire.link import LogLine, Logs

RUN_BYTES = 10 << 20
"""Kept of one run; the rest is dropped, with a line that says so."""
DELAY_S = 0.05

_MAX_RUNS = 4096
_MESSAGE_BYTES = 1 << 20


class LogLines:
    """Collects lines by run; `send` gets them."""

    def __init__(self, send: Callable[[Logs], None]) -> None:
        self._send = send
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._waiting: dict[str, list[LogLine]] = {}
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, run: str, lines: list[list[Any]]) -> None:
        """Lines as [task, stream, at_ms, text]."""
        for task, stream, at_ms, text in lines:
            size = self._sizes.get(run, 0)
            if size > RUN_BYTES:
                return
            size += len(text) + 1
            self._sizes[run] = size
            self._sizes.move_to_end(run)
            if size > RUN_BYTES:
                text = f"(further lines of this run are not kept: more than {RUN_BYTES >> 20} MiB)"  # noqa: PLW2901
            self._waiting.setdefault(run, []).append(LogLine(task=task, stream=stream, at_ms=at_ms, text=text))
            self._waiting_bytes += len(text)
        while len(self._sizes) > _MAX_RUNS:
            self._sizes.popitem(last=False)
        if self._waiting_bytes > _MESSAGE_BYTES:
            self.flush()
        elif self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        for run, lines in waiting.items():
            self._send(Logs(run=run, lines=lines))
