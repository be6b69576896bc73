"""The embedded fabric's Ray: one lean head on a loopback address of its own, with a token and a short path for files.

Unix socket paths are at most 107 bytes, so its temporary folder is under /tmp and not in the state folder.
"""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the machine's outer address; it leaves the rest of the loopback network alone."""

GIVES_UP_SAYING = "timed out during startup"
"""`ray start` says so when its raylet has not registered within 30 s, which no setting changes."""


def address_of(number: int) -> str:
    """Of a node of the embedded fabric, from 0, which is the head's."""
    return f"127.0.0.{2 + number}"


OBJECT_STORE_BYTES = 128 << 20
"""Only the agent's few messages pass through it."""


@dataclass(frozen=True, slots=True)
class RayHead:
    """Where it listens and keeps its files."""

    port: int
    ports: tuple[int, ...]
    folder: Path
    token_file: Path
    gpus: int

    @property
    def address(self) -> str:
        return f"{ADDRESS}:{self.port}"

    def command(self) -> list[str]:
        """Starts it in the foreground; it ends with the raylet or on SIGTERM."""
        node_manager, object_manager, dashboard, agent_http, agent_grpc, runtime_env, metrics, client = self.ports
        return [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={ADDRESS}",
            f"--port={self.port}",
            f"--temp-dir={self.folder}",
            f"--node-manager-port={node_manager}",
            f"--object-manager-port={object_manager}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent_http}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}",
            f"--metrics-export-port={metrics}",
            f"--ray-client-server-port={client}",
            "--no-monitor",
            "--include-dashboard=false",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--num-cpus={os.cpu_count() or 1}",
            *([f"--num-gpus={self.gpus}"] if self.gpus else []),
        ]

    def join_command(self, number: int) -> list[str]:
        """Starts a further node of this machine in the foreground, with GPUs like the head's."""
        return [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block"),
            f"--address={self.address}",
            f"--node-ip-address={address_of(number)}",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--num-cpus={os.cpu_count() or 1}",
            f"--num-gpus={self.gpus}",
        ]

    def environ(self) -> dict[str, str]:
        """For Ray and for whoever joins it."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            "RAY_ADDRESS": self.address,
            "RAY_TMPDIR": str(self.folder),
        }

    def is_up(self) -> bool:
        """Whether its GCS answers and its raylet has opened its socket."""
        if not (self.folder / "session_latest" / "sockets" / "raylet").exists():
            return False
        try:
            socket.create_connection((ADDRESS, self.port), timeout=0.5).close()
        except OSError:
            return False
        return True
