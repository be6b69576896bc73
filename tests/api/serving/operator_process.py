"""One operator in one process, without Ray: its agent and a node of its own. The argument is the agent's JSON."""

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


class OneNode:
    """A cluster of one node, which this process is."""

    def __init__(self, name, address):
        self._site = Site(name, address)

    def connect(self):
        pass

    def sites(self):
        return [self._site]

    def stop(self):
        pass


async def main(text):
    settings = AgentSettings(**json.loads(text))
    state = Path(settings.state_dir)
    with tempfile.TemporaryDirectory(prefix="fab") as sockets:
        config = NodeConfig(
            node=settings.cluster, address="127.0.0.1", region="lab", state_dir=state / "node", token=TOKEN,
            simulated_gpus=settings.simulated_gpus, warm_children=1, listen=f"unix:{sockets}/n",
        )  # fmt: skip
        node = Node(config, SystemClock())
        agent = Agent(
            settings, key=settings.session_key(), cluster=OneNode(settings.cluster, await node.start()),
            outbox=Outbox(state / "receipts.db"), node_token=TOKEN, clock=SystemClock(),
        )  # fmt: skip
        await agent.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
