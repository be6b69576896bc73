"""A small fabric of real processes, without Ray: control plane, serving router, operators that can be killed."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey

KEY = "fk_" + "1" * 43
ADMIN = "fk_" + "2" * 43
HERE = Path(__file__).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Town:
    """`url` is the control plane's, `router` the serving router's."""

    def __init__(self, folder, *, idle_s=60.0):
        self.folder = folder
        self.parts = {}
        port, serving = free_port(), free_port()
        self.url, self.router = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{serving}"
        self.keys = {name: SigningKey.generate() for name in ("op-1", "op-2")}
        self._bootstrap()
        state = str(folder / "control")
        self.start("control", ["-m", "api"], {
            "FABRIC_PORT": str(port), "FABRIC_STATE_DIR": state, "FABRIC_BOOTSTRAP": str(folder / "bootstrap.json"),
            "FABRIC_ALLOW_SIMULATED": "1", "FABRIC_SERVING_URL": self.router,
        })  # fmt: skip
        self.wait(lambda: self.get("/readyz"))
        self.serving_environ = {
            "FABRIC_URL": self.url, "FABRIC_PORT": str(serving), "FABRIC_STATE_DIR": state,
            "FABRIC_SERVING_IDLE_S": str(idle_s),
        }  # fmt: skip
        self.start("serving", ["-m", "api.serving"], self.serving_environ)
        self.wait(lambda: socket.create_connection(("127.0.0.1", serving), 1).close() is None)

    def start(self, name, arguments, environ):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-P", *arguments], env=kept | environ, stdout=log, stderr=log, start_new_session=True
            )

    def operator(self, name):
        """Start an operator with one GPU, and wait until it is offered."""
        before = len(self.get("/v1/offers")["offers"])
        self.begin(name, "L4:1", HERE / "operator_process.py")
        self.wait(lambda: len(self.get("/v1/offers")["offers"]) > before)

    def begin(self, name, gpus, process):
        state = self.folder / name
        state.mkdir(exist_ok=True)
        key = state / "session.key"
        key.write_bytes(self.keys[name].encode(HexEncoder) + b"\n")
        key.chmod(0o600)
        config = {
            "url": self.url, "operator": name, "cluster": f"{name}-c", "session_key_file": str(key),
            "state_dir": str(state), "ray_address": "127.0.0.1:1", "gateway_tls": False, "simulated_gpus": gpus,
            "prices": {"L4": {"on_demand": 36_000}},
        }  # fmt: skip
        self.start(name, [str(process), json.dumps(config)], {})

    def kill(self, name):
        """As kill -9 does it."""
        process = self.parts.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def get(self, path, key=KEY):
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def wait(self, condition, within_s=60):
        """The first true value of `condition()`; what cannot be reached yet is not there yet."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if value := condition():
                    return value
            time.sleep(0.05)
        raise AssertionError("it did not happen; see " + str(self.folder))

    def close(self):
        for name in ("serving", "op-1", "op-2", "control"):
            process = self.parts.get(name)
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(8)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _bootstrap(self):
        customers = [
            {
                "id": name, "name": name, "api_key_sha256": hashlib.sha256(key.encode()).hexdigest(),
                "test_balance_dc": 100_000_000, "admin": name == "admin",
            }
            for name, key in (("alice", KEY), ("admin", ADMIN))
        ]  # fmt: skip
        operators = [
            {
                "id": name,
                "name": name,
                "session_key": bytes(key.verify_key).hex(),
                "payout": "0x" + "ab" * 20,
                "account": "alice",
            }
            for name, key in self.keys.items()
        ]
        text = json.dumps({"customers": customers, "operators": operators})
        (self.folder / "bootstrap.json").write_text(text)
