import asyncio

from fabric.agent.nodes import NodeClient


async def test_who_waits_for_a_node_that_is_given_up_waits_no_longer(tmp_path):
    client = NodeClient("node-1", f"unix:{tmp_path}/nobody.sock", "token", listener=None)
    waiting = asyncio.ensure_future(client.wait_connected())
    await asyncio.sleep(0)
    assert not waiting.done()
    await client.stop()
    await asyncio.wait_for(waiting, 5)
    assert not client.connected
