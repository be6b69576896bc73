"""One operator in one process, without Ray: its agent and two nodes. The argument is the agent's JSON."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from fabric.agent.agent import Agent
from fabric.agent.cluster import Site
from fabric.agent.node import Node, NodeConfig
from fabric.agent.outbox import Outbox
from fabric.agent.settings import AgentSettings
from fabric.wire.clock import SystemClock

TOKEN = "t" * 32


class Nodes:
    """A cluster whose nodes are all in this process; whichever the file `gone` names is not there."""

    def __init__(self, sites, gone):
        self._sites, self._gone = sites, gone

    def connect(self):
        pass

    def sites(self):
        gone = self._gone.read_text() if self._gone.exists() else ""
        return [site for site in self._sites if site.node != gone]

    def stop(self):
        pass


async def main(text):
    settings = AgentSettings(**json.loads(text))
    state = Path(settings.state_dir)
    with tempfile.TemporaryDirectory(prefix="fab") as sockets:
        sites = []
        for name in ("node-1", "node-2"):
            config = NodeConfig(
                node=name, address="127.0.0.1", region="lab", state_dir=state / name, token=TOKEN,
                simulated_gpus=settings.simulated_gpus, warm_children=1, listen=f"unix:{sockets}/{name}",
                isolation=settings.isolation, warm_modules=("torch",),
            )  # fmt: skip
            node = Node(config, SystemClock())
            sites.append((name, node, await node.start()))
        (state / "pids.json").write_text(json.dumps([name for name, _, _ in sites]))
        cluster = Nodes([Site(name, at) for name, _, at in sites], state / "gone")
        agent = Agent(
            settings, key=settings.session_key(), cluster=cluster,
            outbox=Outbox(state / "receipts.db"), node_token=TOKEN, clock=SystemClock(),
        )  # fmt: skip
        await agent.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
