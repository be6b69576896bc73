"""How GPUs are: their operator and their owner see it, nobody else does."""

import pytest
from scripted import OTHER_KEY, Agent, gpu, nodes

from api.terms import own_account
from fabric.wire import link
from ledger.chain.tables import CursorRow, OwnerRow, WalletRow
from ledger.leaves import gpu_id_hex

WARM = link.GpuCondition(uuid="GPU-1", temperature_c=61, processes=[link.GpuProcess(pid=7, memory_bytes=None)])


@pytest.fixture
def told(fabric, agent):
    """The agent of op-1, whose account is alice's, has said how its first GPU is."""
    with fabric.plane.database.write() as session:
        own_account(session, "op-1", "alice")
    say(agent, link.NodeCondition(node="node-1", gpus=[WARM]))
    return fabric


def say(agent, *conditions):
    agent.send(link.Heartbeat(nonce_seq=agent.nonce.seq, conditions=list(conditions)))
    agent.beat()


def seen(fabric, who, number=1):
    headers = {"Authorization": f"Bearer key-{who}"} if who else {}
    one = fabric.client.get(f"/v1/gpus/{gpu_id_hex(f'GPU-{number}')}", headers=headers).json()
    listed = fabric.client.get("/v1/gpus", headers=headers).json()["gpus"]
    assert one in listed
    return one["condition"]


def test_the_operators_account_sees_how_its_gpus_are(told):
    condition = seen(told, "alice")
    assert (condition["temperature_c"], condition["power_mw"]) == (61, None)
    assert condition["processes"] == [{"pid": 7, "memory_bytes": None}]
    assert seen(told, "alice", 2) is None, "nothing was said of it"


def test_nobody_else_sees_it(told):
    assert seen(told, "bob") is None
    assert seen(told, "admin") is None
    assert seen(told, "") is None
    refused = told.client.get("/v1/gpus", headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401


def test_who_owns_a_gpu_sees_how_that_one_is_and_no_other(told, agent):
    """Bob's wallet holds the NFT of the first GPU until it goes to a wallet of nobody here."""
    say(agent, link.NodeCondition(node="node-1", gpus=[WARM, WARM.model_copy(update={"uuid": "GPU-2"})]))
    with told.plane.database.write() as session:
        session.add(WalletRow(address="0x" + "b0" * 20, customer="bob", linked_ms=0))
    assert seen(told, "bob") is None
    own(told, 1, "0x" + "b0" * 20)
    assert seen(told, "bob")["processes"] == [{"pid": 7, "memory_bytes": None}]
    assert seen(told, "bob", 2) is None
    assert seen(told, "alice")["temperature_c"] == 61, "its operator sees it all the same"
    assert seen(told, "") is None
    own(told, 2, "0x" + "cc" * 20)
    assert seen(told, "bob") is None, "it was sold"


def own(fabric, block: int, holder: str) -> None:
    """The NFT of GPU-1 goes to `holder` in that block, which is final."""
    with fabric.plane.database.write() as session:
        session.merge(CursorRow(chain_id=1, settlement="0x", start_block=0, final_number=block, final_hash=b""))
        where = {"block_number": block, "log_index": 0, "tx_hash": b""}
        session.add(OwnerRow(**where, gpu_id=gpu_id_hex("GPU-1"), holder=holder, from_ms=block))


def test_an_agent_says_nothing_about_anothers_node(told, agent):
    other = Agent(told, "op-2", OTHER_KEY, nodes=nodes(gpu(7), name="node-7"))
    other.connect()
    say(other, link.NodeCondition(node="node-1", gpus=[WARM.model_copy(update={"temperature_c": 99})]))
    assert seen(told, "alice")["temperature_c"] == 61
