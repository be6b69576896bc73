"""The agent's Ray: what it refuses, and, with a real cluster, that a node's process dies and comes back whole."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.agent.cluster import ClusterError
from fabric.agent.executor import check_ray

ADDRESS = "127.0.0.23"
PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)

DRIVER = """
import asyncio, json, os, signal, sys
from pathlib import Path
from fabric.agent import dialect
from fabric.agent.executor import RayCluster
from fabric.agent.settings import AgentSettings
from fabric.agent.stream import connect

address, state = sys.argv[1:]
settings = AgentSettings(url="http://127.0.0.1:1", operator="op_1", cluster="c1", session_key_file=Path(state) / "key",
    state_dir=Path(state), ray_address=address, prices={}, simulated_gpus="H100:1,L4:1")
cluster = RayCluster(settings, "t" * 32)
cluster.connect()
first, again = cluster.sites(), cluster.sites()

async def hello():
    frames = asyncio.Queue()
    stream = await connect(first[0].address, lambda header, body: frames.put_nowait(header), lambda error: None)
    stream.send([dialect.CONTROL, "t" * 32])
    header = await asyncio.wait_for(frames.get(), 20)
    stream.abort()
    return header[1]

def children(pid):
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]

async def until(condition):
    async with asyncio.timeout(60):
        while True:
            try:
                if (value := await condition()):
                    return value
            except OSError:
                pass
            await asyncio.sleep(0.05)

def is_ours(pid):
    return address in Path(f"/proc/{pid}/environ").read_text()

def node_process():
    names = ((path.parent.name, path.read_bytes()) for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    return [int(pid) for pid, name in names if name.startswith(b"ray::NodeActor") and is_ours(pid)]

async def main():
    before = await hello()
    (pid,) = node_process()
    async def warm():
        return children(pid)
    kids = await until(warm)
    fds = [os.pidfd_open(kid) for kid in kids]
    os.kill(pid, signal.SIGKILL)
    async def back():
        return node_process() not in ([], [pid]) and await hello()
    after = await until(back)
    import select
    gone = all(select.select([fd], [], [], 20)[0] for fd in fds)
    return {
        "before": before["info"]["gpus"], "after": after["info"]["gpus"], "children": len(kids), "children_gone": gone,
        "journals": [before["journal"], after["journal"]], "sites": [len(first), first == again],
    }

result = asyncio.run(main())
cluster.stop()
print("RESULT " + json.dumps(result))
"""


def test_a_ray_without_token_authentication_is_refused_with_what_to_do():
    check_ray("2.60.0", "token")
    check_ray("3.0.0rc1", "token")
    with pytest.raises(ClusterError, match=r"install Ray 2\.52"):
        check_ray("2.51.1", "token")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=token"):
        check_ray("2.60.0", "")


@pytest.fixture
def ray_head(tmp_path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head of its own address, ports, token and folder; its address, and the environment to join it."""
    port, *others = _free_ports(1 + len(PORTS))
    token = tmp_path / "ray.token"
    token.write_text("ab" * 32)
    token.chmod(0o600)
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as folder:
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"{ADDRESS}:{port}",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
        }
        command = [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--node-ip-address={ADDRESS}", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2", "--num-gpus=2"),
            *("--include-dashboard=false", "--include-log-monitor=false"),
            *(f"--{name}={number}" for name, number in zip(PORTS, others, strict=True)),
            *("--disable-usage-stats", f"--object-store-memory={80 << 20}"),
        ]
        with (tmp_path / "ray.log").open("wb") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(Path(folder) / "session_latest" / "sockets" / "raylet", head, tmp_path / "ray.log")
            yield f"{ADDRESS}:{port}", environment
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(20)
            finally:
                _kill_session(head.pid)
                head.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server((ADDRESS, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _wait_for(path: Path, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "Ray's head did not start"
        time.sleep(0.1)


def _kill_session(session: int) -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.ray
def test_a_killed_node_process_takes_its_children_along_and_comes_back_with_its_journal(ray_head, tmp_path):
    address, environment = ray_head
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, address, str(tmp_path / "agent")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert answers, done.stderr[-4000:]
    seen = json.loads(answers[0].removeprefix("RESULT "))
    assert seen["sites"] == [1, True], "one process per node, found again rather than started twice"
    assert [gpu["model"] for gpu in seen["before"]] == ["H100", "L4"]
    assert seen["before"] == seen["after"]
    assert seen["journals"][0] == seen["journals"][1]
    assert seen["children"] >= 1
    assert seen["children_gone"]
