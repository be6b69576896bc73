"""The process that proves one GPU: takes its memory, answers the steps of a challenge, gives all back when it ends.

Frames in on standard input, frames out on standard output, one each: [step, {…}] in, [step, {"root", "openings"}] or
["error", words] out. A process of its own because memory of a GPU is free for sure only when the process is gone, and
a lease does not wait. It ends when its input does.

With a GPU the same calculation runs in CuPy, with TF32 allowed: the numbers are small enough to stay exact.
"""

import importlib
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import Any, BinaryIO

from fabric.wire.challenge import Plan, Prover
from fabric.wire.frames import PREFIX, pack_bytes, unpack_header, unpack_lengths

_UNTIMED_MS = 1 << 40


def plan_of(wish: dict[str, Any]) -> Plan:
    """A plan as the prover needs it: only its size."""
    return Plan(int(wish["edge"]), int(wish["blocks"]), _UNTIMED_MS, _UNTIMED_MS, _UNTIMED_MS)


def answer(prover: Prover, step: str, wish: dict[str, Any]) -> dict[str, Any]:
    """The answer to one step after `prepare`."""
    match step:
        case "fill":
            return {"root": prover.fill(wish["seed"], wish["shared"])}
        case "digest":
            return {"root": prover.digest(wish["key"])}
        case "open":
            shown = [asdict(opening) for opening in prover.open(wish["indices"])]
            return {"openings": shown}
        case _:
            raise ValueError(f"{step!r} is not a step of a challenge")


def serve(source: BinaryIO, sink: BinaryIO, xp: Any) -> None:
    """Answer until the input ends, whatever is being computed then."""
    wishes: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, wishes), daemon=True).start()
    prover: Prover | None = None
    while True:
        step, wish = wishes.get()
        try:
            if step == "prepare":
                prover = Prover(plan_of(wish), xp)
                reply: list[Any] = [step, {}]
            elif prover is None:
                reply = ["error", f"{step} came before prepare"]
            else:
                reply = [step, answer(prover, step, wish)]
        except Exception as error:  # noqa: BLE001 - whatever the GPU's library raises is the answer
            reply = ["error", f"{type(error).__name__}: {error}"[:500]]
        sink.write(pack_bytes(reply))
        sink.flush()


def _read(source: BinaryIO, wishes: "queue.SimpleQueue[tuple[str, dict[str, Any]]]") -> None:
    while True:
        prefix = source.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            os._exit(0)  # whoever asked is gone: the memory is somebody else's now
        header_bytes, _ = unpack_lengths(prefix)
        header = unpack_header(source.read(header_bytes))
        wishes.put((header[0], header[1]))


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, importlib.import_module({"numpy": "numpy", "cupy": "cupy"}[sys.argv[1]]))
