"""Control plane and one operator as processes; the operator's cluster has two nodes, each with two GPUs."""

import contextlib
import json
from pathlib import Path

from tests.api.serving.town import KEY, Town

HERE = Path(__file__).parent


class TwoNodes(Town):
    key = KEY

    def __init__(self, folder):
        super().__init__(folder)
        self.begin("op-1", "L4:2", HERE / "operator_process.py")
        self.wait(lambda: len(self.nodes()) == 2)

    def nodes(self):
        """The names of the nodes that are offered."""
        log = self.folder / "op-1" / "pids.json"
        return json.loads(log.read_text()) if log.exists() and self.get("/v1/offers")["offers"] else {}

    @contextlib.contextmanager
    def without(self, node):
        """Lose a node, and have it back at the end."""
        gone = self.folder / "op-1" / "gone"
        gone.write_text(node)
        try:
            yield
        finally:
            gone.unlink()
            self.wait(lambda: self.get("/v1/offers?nodes=2")["offers"])
