"""Three operators who do not know each other, on one machine: a Ray cluster of two nodes each, on loopback addresses.

Their GPUs are an NVML stub's, of another model for each. Everything from the join token on is what docs/operators.md
tells an operator who has a Ray cluster already.
"""

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
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from eth_account import Account

from fabric.operator.facts import host_addresses
from fabric.operator.folder import OperatorFolder

ALICE = "fk_" + "a" * 43
ADMIN = "fk_" + "b" * 43
BALANCE_DC = 10**9
RAY_PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


@dataclass
class Operator:
    """One of them: its own wallet, folder, Ray token, ports and addresses."""

    name: str
    number: int
    model: str
    card: str
    price: str
    region: str
    base: Path
    ray: tempfile.TemporaryDirectory = field(init=False)
    processes: list[subprocess.Popen] = field(default_factory=list)
    id: str = ""

    def __post_init__(self) -> None:
        self.base.mkdir()
        self.ray = tempfile.TemporaryDirectory(prefix="r3", dir="/tmp")
        self.folder = OperatorFolder(self.base / "folder")
        self.wallet_key = "0x" + f"{self.number:02x}" * 32
        self.port, self.client_port = free_ports(2)

    def address(self, node: int) -> str:
        return f"127.0.{self.number}.{node + 1}"

    @property
    def wallet(self) -> str:
        return Account.from_key(self.wallet_key).address

    def environ(self, stub: Path, node: int = 0) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "LD_LIBRARY_PATH": str(stub),
            "STUB_GPUS": f"{self.card}",
            "STUB_SEED": str(10 * self.number + node),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder.ray_token_file),
            "RAY_ADDRESS": f"{self.address(0)}:{self.port}",
            "RAY_TMPDIR": self.ray.name,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        }

    def init(self, url: str, token: str, stub: Path) -> subprocess.Popen:
        """`fabric operator init` with the token."""
        self.id = token.split(".")[1]
        words = [
            *("init", "--token", token, "--url", url, "--cluster", self.name, "--region", self.region),
            *("--head", self.address(0), "--worker", self.address(1)),
            *("--price", f"{self.model}:on_demand={self.price}", "-C", str(self.folder.path)),
        ]
        return self._start("init", cli(*words), self.environ(stub) | {"OPERATOR_WALLET_KEY": self.wallet_key})

    def allow(self, addresses) -> None:
        """Ray's ports answer at this machine's addresses too; say that a firewall stands before them."""
        file = self.folder.cluster_file
        text = file.read_text()
        changed = text.replace("allow: []", f"allow: {json.dumps([str(address) for address in addresses])}")
        assert changed != text
        file.write_text(changed)

    def start_head(self, stub: Path) -> None:
        own = ["--head", f"--port={self.port}", "--no-monitor", "--include-dashboard=false"]
        self._start_ray(0, [*own, f"--ray-client-server-port={self.client_port}"], stub)

    def start_worker(self, stub: Path) -> None:
        self._start_ray(1, [f"--address={self.address(0)}:{self.port}"], stub)

    def join(self, stub: Path) -> None:
        """`fabric operator join`: the agent, on a cluster that is there."""
        words = ("join", "-C", str(self.folder.path), "--state", str(self.base / "agent"))
        address = ("--address", f"{self.address(0)}:{self.port}")
        self._start("agent", cli(*words, *address), self.environ(stub))

    def heads_answer(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address(0), self.port), timeout=1):
            return (Path(self.ray.name) / "session_latest" / "sockets" / "raylet").exists()
        return False

    def kill(self) -> None:
        """Everything of this cluster, on all of its machines, as a power cut would end it."""
        while found := list(self._alive()):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def end(self) -> None:
        self.kill()
        self.ray.cleanup()

    def log(self, name: str) -> str:
        return (self.base / f"{name}.log").read_text(errors="replace")

    def _alive(self):
        mark = f"RAY_TMPDIR={self.ray.name}\0".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() and (entry / "cmdline").read_bytes():
                    yield int(entry.name)

    def _start_ray(self, node: int, own: list[str], stub: Path) -> None:
        ports = zip(RAY_PORTS, free_ports(len(RAY_PORTS)), strict=True)
        command = [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", *own),
            *(f"--node-ip-address={self.address(node)}", "--num-cpus=1", "--num-gpus=1"),
            *(f"--{name}={port}" for name, port in ports),
            *("--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false", "--disable-usage-stats"),
            f"--object-store-memory={80 << 20}",
            *([f"--temp-dir={self.ray.name}"] if not node else []),
        ]
        self._start(f"ray{node}", command, self.environ(stub, node))

    def _start(self, name: str, command: list[str], environ: dict[str, str]) -> subprocess.Popen:
        with (self.base / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process


class ThreeOperators:
    """The control plane and its three operators."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.stub = base / "stub"
        self.stub.mkdir()
        source = Path(__file__).with_name("nvml_stub.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.stub / "libnvidia-ml.so.1", source], check=True)
        cards = {
            "amber": ("H100", "NVIDIA H100 80GB HBM3*1@81559", "3.00", "eu"),
            "birch": ("A100", "NVIDIA A100-SXM4-80GB*1@81920", "2.00", "us"),
            "cedar": ("L4", "NVIDIA L4*1@23034", "0.70", "asia"),
        }
        first = 30 + os.getpid() % 70
        self.operators = {
            name: Operator(name, first + at, *facts, base / name) for at, (name, facts) in enumerate(cards.items())
        }
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.control: subprocess.Popen | None = None

    def start(self) -> None:
        """Control plane, tokens, `init`, Ray, agents; returns when all six GPUs are offered."""
        self._start_control_plane()
        operators = list(self.operators.values())
        inits = [(one, one.init(self.url, self._invite(one), self.stub)) for one in operators]
        for one, process in inits:
            assert process.wait(60) == 0, one.log("init")
            one.allow(host_addresses())
            one.start_head(self.stub)
        for one in operators:
            wait_for(one.heads_answer, f"the head of {one.name}", 60)
            one.start_worker(self.stub)
            one.join(self.stub)
        wait_for(lambda: len(self.offered()) == 2 * len(operators), "six GPUs on offer", 90)

    def offered(self) -> list[tuple[str, str]]:
        """(operator, model) of each GPU on offer."""
        return sorted((gpu["operator"], gpu["model"]) for gpu in self.get("/v1/gpus")["gpus"] if gpu["offered"])

    def get(self, path: str, key: str = ALICE) -> dict:
        answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False)
        return answer.raise_for_status().json()

    def end(self) -> None:
        for one in self.operators.values():
            one.end()
        self.stop_control_plane()

    def stop_control_plane(self) -> None:
        if self.control is not None:
            self.control.terminate()
            self.control.wait(20)

    def tell(self) -> None:
        """What pytest shows when the test failed."""
        for path in [*sorted(self.base.glob("*/*.log")), self.base / "control.log"]:
            if path.exists():
                sys.stdout.write(f"--- {path.parent.name}/{path.name}\n{path.read_text(errors='replace')[-2500:]}\n")

    def _start_control_plane(self) -> None:
        customers = [
            {
                "id": name, "name": name, "api_key_sha256": hashlib.sha256(key.encode()).hexdigest(),
                "test_balance_dc": BALANCE_DC, "admin": name == "admin",
            }
            for name, key in (("alice", ALICE), ("admin", ADMIN))
        ]  # fmt: skip
        bootstrap = self.base / "bootstrap.json"
        bootstrap.write_text(json.dumps({"customers": customers, "operators": []}))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        environ |= {
            "FABRIC_PORT": str(self.port), "FABRIC_STATE_DIR": str(self.base / "control"),
            "FABRIC_BOOTSTRAP": str(bootstrap), "FABRIC_CHALLENGES": "0",
        }  # fmt: skip
        with (self.base / "control.log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "api"]
            self.control = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        wait_for(self._answers, "the control plane", 60)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return bool(self.get("/readyz"))
        return False

    def _invite(self, operator: Operator) -> str:
        answer = httpx.post(
            f"{self.url}/v1/operators/join-tokens",
            headers={"Authorization": f"Bearer {ADMIN}"},
            json={"name": operator.name, "wallet": operator.wallet},
            trust_env=False,
        )
        return answer.raise_for_status().json()["token"]


def cli(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "fabric.cli", "operator", *words]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def wait_for(true, what: str, seconds: float):
    until = time.monotonic() + seconds
    while not (seen := true()):
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(0.1)
    return seen
