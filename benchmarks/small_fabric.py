"""A control plane and an operator's nodes as real processes on this machine, without Ray.

For measurements, and tests, that need the whole way from the SDK to the bill and two nodes: sandboxed, over the same
protocols, with simulated GPUs. Run as a program it is one of its processes: `control`, `operator` or `node`.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey

NODE_TOKEN = "t" * 32
BALANCE_DC = 100_000_000
CUSTOMERS = ("alice", "bob", "admin")
WAYS: dict[str, dict[str, Any]] = {
    "direct": {"gateway_tls": False},
    "tls": {},
    "relay": {"gateway_direct": False},
}
"""How customers reach the gateway: the agent's settings for it."""
PLACES = ("inside", "local", "other")
"""Where nodes run: in the agent's process; in a process each, as Ray has them, which the agent reaches over a Unix
socket, being on the same machine, or over TCP as on another one."""


class SmallFabric:
    """An operator `op-1` with `nodes` nodes of one simulated L4 each; customers' keys are `key-NAME`.

    Args:
        folder: an empty one, for everything.
        nodes: how many.
        notice_ms: what spot leases are promised, if not what the product promises.
        place: where the nodes run, one of `PLACES`.
        agent: further settings of the agent.
    """

    def __init__(
        self, folder: Path, *, nodes: int = 2, notice_ms: int = 0, place: str = "inside", **agent: Any
    ) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._key = SigningKey.generate()
        environ = {
            "FABRIC_PORT": str(port), "FABRIC_STATE_DIR": str(folder / "control"), "FABRIC_ALLOW_SIMULATED": "1",
            "FABRIC_BOOTSTRAP": str(self._bootstrap()), "FABRIC_CHALLENGES": "0",
        }  # fmt: skip
        try:
            self._start("control", [str(notice_ms)], environ)
            self.wait(lambda: self.get("/readyz"), "the control plane")
            self._start("operator", [str(nodes), json.dumps(self._config() | agent), place], {})
            self.wait(lambda: len(self.get("/v1/gpus")["gpus"]) == nodes, "the GPUs")
        except BaseException:
            self.tell()
            self.stop()
            raise

    @property
    def control_pid(self) -> int:
        return self.processes[0].pid

    def get(self, path: str, who: str = "alice") -> Any:
        """What the control plane answers that customer."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer key-{who}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - it is our own, on loopback
            return json.loads(answer.read())

    def wait(self, condition: Callable[[], Any], what: str, within_s: float = 60) -> Any:
        """The first true value of `condition()`; what cannot be reached yet is not there yet."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if value := condition():
                    return value
            time.sleep(0.01)
        raise TimeoutError(f"{what} did not come within {within_s} s")

    def ended(self, run: str, who: str = "alice") -> dict[str, Any]:
        """The run once it and all of its leases are over, and nothing is set aside for it."""

        def over() -> dict[str, Any] | None:
            facts = self.get(f"/v1/runs/{run}", who)
            closed = all(lease["state"] == "CLOSED" for lease in facts["leases"])
            return facts if closed and facts["ended_at_ms"] and facts["cost"]["held_dc"] == "0" else None

        return self.wait(over, "the end of the run")

    def audit(self) -> list[dict[str, Any]]:
        """The checks that found something."""
        return [check for check in self.get("/v1/audit", "admin")["checks"] if not check["ok"]]

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def tell(self) -> None:
        """Print what there is to find out why something failed."""
        with contextlib.suppress(OSError):
            print(json.dumps(self.get("/v1/runs")))
        for path in sorted(self.folder.glob("*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")

    def _bootstrap(self) -> Path:
        customers = [
            {
                "id": name, "name": name.title(), "test_balance_dc": BALANCE_DC, "admin": name == "admin",
                "api_key_sha256": hashlib.sha256(f"key-{name}".encode()).hexdigest(),
            }
            for name in CUSTOMERS
        ]  # fmt: skip
        operator = {
            "id": "op-1", "name": "Op-1", "session_key": bytes(self._key.verify_key).hex(), "payout": "0x" + "ab" * 20,
            "account": "alice",
        }  # fmt: skip
        path = self.folder / "bootstrap.json"
        path.write_text(json.dumps({"customers": customers, "operators": [operator]}))
        return path

    def _config(self) -> dict[str, Any]:
        key = self.folder / "session.key"
        key.write_bytes(self._key.encode(HexEncoder))
        key.chmod(0o600)
        return {
            "url": self.url, "operator": "op-1", "cluster": "main", "session_key_file": str(key),
            "state_dir": str(self.folder / "agent"), "ray_address": "127.0.0.1:1", "simulated_gpus": "L4:1",
            "isolation": "bubblewrap", "prices": {"L4": {"on_demand": 72_000, "spot": 36_000}},
        }  # fmt: skip

    def _start(self, name: str, arguments: list[str], environ: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-P", __file__, name, *arguments]
            process = subprocess.Popen(command, env=kept | environ, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)


@contextlib.contextmanager
def small_fabric(**options: Any):  # noqa: ANN201 - what the decorator makes of it
    """One in a folder of its own that this process's SDK talks to as alice, stopped and removed at the end."""
    import fabric

    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder:
        made = SmallFabric(Path(folder), **options)
        os.environ["FABRIC_QUIET"] = "1"
        fabric.init(made.url, "key-alice")
        try:
            yield made
        finally:
            fabric.init()
            made.stop()


def control(notice_ms: str) -> None:
    from api import granting
    from api.__main__ import main

    if int(notice_ms):
        granting.NOTICE_MS["spot"] = int(notice_ms)
    main()


async def operator(count: str, config: str, place: str) -> None:
    """An agent, and so many nodes of its own, in this process or in one each."""
    from fabric.agent.agent import Agent
    from fabric.agent.cluster import Site
    from fabric.agent.outbox import Outbox
    from fabric.agent.settings import AgentSettings
    from fabric.wire.clock import SystemClock

    settings = AgentSettings(**json.loads(config))
    settings.state_dir.mkdir()

    class Here:
        """A cluster that this process and those it started are."""

        def connect(self) -> None:
            pass

        def sites(self) -> list[Site]:
            return sites

        def stop(self) -> None:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()

    with ExitStack() as stack:
        sites, nodes, processes = [], [], []
        for number in range(1, int(count) + 1):
            listen = f"unix:{stack.enter_context(tempfile.TemporaryDirectory(prefix='fab'))}/n"
            listen = "tcp:127.0.0.1" if place == "other" else listen
            if place == "inside":
                nodes.append(make_node(settings, number, listen))
                address = await nodes[-1].start()
            else:
                command = [sys.executable, "-P", __file__, "node", config, str(number), listen]
                processes.append(subprocess.Popen(command))  # noqa: ASYNC220 - nothing else runs yet
                address = await asyncio.to_thread(told_in, settings.state_dir / f"node-{number}.address")
            sites.append(Site(f"node-{number}", address))
        agent = Agent(
            settings, key=settings.session_key(), cluster=Here(), outbox=Outbox(settings.state_dir / "receipts.db"),
            node_token=NODE_TOKEN, clock=SystemClock(),
        )  # fmt: skip
        await agent.run()


async def node(config: str, number: str, listen: str) -> None:
    """One node; says where it listens, and ends with who started it."""
    from fabric.agent.settings import AgentSettings

    settings = AgentSettings(**json.loads(config))
    address = await make_node(settings, int(number), listen).start()
    part = settings.state_dir / f"node-{number}.part"
    part.write_text(address)
    part.rename(settings.state_dir / f"node-{number}.address")
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(1)


def told_in(path: Path) -> str:
    """What another process writes there, once it has."""
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()


def make_node(settings: Any, number: int, listen: str) -> Any:
    from fabric.agent.node import Node, NodeConfig
    from fabric.wire.clock import SystemClock

    return Node(
        NodeConfig(
            node=f"node-{number}", address="127.0.0.1", region="lab",
            state_dir=settings.state_dir / f"node-{number}", token=NODE_TOKEN, isolation=settings.isolation,
            simulated_gpus=settings.simulated_gpus, networks=settings.networks, listen=listen,
        ),
        SystemClock(),
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "control":
        control(*sys.argv[2:])
    else:
        asyncio.run({"operator": operator, "node": node}[sys.argv[1]](*sys.argv[2:]))
