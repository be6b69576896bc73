"""Control plane and one operator as processes; the operator's cluster has two nodes, each with two GPUs."""

import contextlib
import json
import os
import signal
from pathlib import Path

from tests.api.serving.conftest import KEY, Town

HERE = Path(__file__).parent


class TwoNodes(Town):
    key = KEY

    def __init__(self, folder):
        super().__init__(folder)
        self._begin("op-1")
        self.wait(lambda: len(self.nodes()) == 2)

    def nodes(self):
        """The names of the nodes that are offered."""
        log = self.folder / "op-1" / "pids.json"
        return json.loads(log.read_text()) if log.exists() and self.get("/v1/offers")["offers"] else {}

    def _begin(self, name):
        from nacl.encoding import HexEncoder

        state = self.folder / name
        state.mkdir(exist_ok=True)
        key = state / "session.key"
        key.write_bytes(self.keys[name].encode(HexEncoder) + b"\n")
        key.chmod(0o600)
        config = {
            "url": self.url, "operator": name, "cluster": f"{name}-c", "session_key_file": str(key),
            "state_dir": str(state), "ray_address": "127.0.0.1:1", "gateway_tls": False, "simulated_gpus": "L4:2",
            "prices": {"L4": {"on_demand": 36_000}},
        }  # fmt: skip
        self.start(name, [str(HERE / "operator_process.py"), json.dumps(config)], {})

    def kill_rank(self, folder):
        """As kill -9 does it: the process that wrote its number there."""
        pid = int(Path(folder).read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid
