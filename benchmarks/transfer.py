"""How fast large arguments and results travel beside a plain socket, and what the control plane holds of them.

An array of `--mib` MiB goes as an argument of `fabric.run` on a warm lease, and one comes back as its value: through
the sandbox, metered, its digest in a receipt. Three ways: to the gateway without TLS (the embedded fabric's), with TLS,
and through the control plane's relay (with TLS to the gateway inside). The plain socket moves the same bytes between
two processes, and no more. Ratios of one run are comparable; absolute figures on a shared machine are not.
"""

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.small_fabric import WAYS, SmallFabric, small_fabric

NAME = "transfer"
CHUNK = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--mib", type=int, default=100, help="size of argument and result (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="times each way (default 3)")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="default: all three")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    plain = statistics.median(plain_s(arguments.mib << 20) for _ in range(arguments.rounds))
    figures = {"plain_mib_s": arguments.mib / plain}
    for way in arguments.ways:
        with small_fabric(nodes=1, **WAYS[way]) as here:
            figures |= measure(here, way, arguments.mib, arguments.rounds, plain)
    report = {"name": NAME, "config": vars(arguments) | {"cores": os.cpu_count()}, "figures": figures}
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:12.3f}")


def measure(here: SmallFabric, way: str, mib: int, rounds: int, plain: float) -> dict[str, float]:
    """The first way's ratios bear no name; `control_growth_mib` is what the control plane's peak memory grew by."""
    import fabric

    size = mib << 20
    content = np.frombuffer(os.urandom(CHUNK) * mib, dtype=np.uint8)
    assert fabric.run(length, content[:CHUNK], gpu="L4") == CHUNK
    assert fabric.run(made, 1, gpu="L4").nbytes == CHUNK
    before = peak_kib(here.control_pid)
    up, down = [], []
    for _ in range(rounds):
        up.append(timed(lambda: fabric.run(length, content, gpu="L4"), size))
        down.append(timed(lambda: fabric.run(made, mib, gpu="L4").nbytes, size))
    name = "" if way == "direct" else f"{way}_"
    return {
        f"{name}up_ratio": plain / statistics.median(up),
        f"{name}down_ratio": plain / statistics.median(down),
        f"{name}up_mib_s": mib / statistics.median(up),
        f"{name}down_mib_s": mib / statistics.median(down),
        f"{name}control_growth_mib": (peak_kib(here.control_pid) - before) / 1024,
    }


def timed(call: Callable[[], Any], expected: int) -> float:
    began = time.perf_counter()
    assert call() == expected
    return time.perf_counter() - began


def length(content: Any) -> int:
    return content.nbytes


def made(mib: int) -> Any:
    import numpy as np

    return np.ones(mib << 20, dtype=np.uint8)


def plain_s(size: int) -> float:
    """Seconds for so many bytes from one process to another, and a byte back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = get_context("spawn").Process(target=drain, args=(server.getsockname()[1], size))
        reader.start()
        connection, _ = server.accept()
        with connection:
            content = memoryview(os.urandom(CHUNK))
            began = time.perf_counter()
            for _ in range(size // CHUNK):
                connection.sendall(content)
            assert connection.recv(1) == b"."
            took = time.perf_counter() - began
        reader.join()
    return took


def drain(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        room = memoryview(bytearray(CHUNK))
        while size:
            size -= connection.recv_into(room)
        connection.sendall(b".")


def peak_kib(pid: int) -> int:
    """The most that a process ever held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no VmHWM")


if __name__ == "__main__":
    main()
