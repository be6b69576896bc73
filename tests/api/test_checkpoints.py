"""Checkpoints at the control plane: whole or not at all, the customer's, and only for who runs the run."""

import hashlib

import pytest
from scripted import OTHER_KEY, Agent, gpu, nodes

from fabric.wire import link
from fabric.wire.receipts import ReceiptKind

DAY_MS = 86_400_000


@pytest.fixture
def running(fabric):
    """An agent, the headers of its blob requests, and a run it works on."""
    agent = Agent(fabric)
    welcome = agent.connect()
    run = fabric.submit(gpu=["H100"])["id"]
    agent.open(agent.expect(link.Grant))
    return run, {"Authorization": f"Bearer {welcome.blob_token}"}


def ask(fabric, method, path, headers, expect=200, **options):
    answer = fabric.client.request(method, f"/v1/agent/checkpoints/{path}", headers=headers, **options)
    assert answer.status_code == expect, answer.text
    return answer


def put_piece(fabric, run, headers, data, expect=200):
    digest = hashlib.sha256(data).hexdigest()
    ask(fabric, "PUT", f"{run}/0/pieces/{digest}", headers, expect, content=data)
    return digest


def test_a_checkpoint_comes_back_as_it_was_stored(fabric, running):
    run, headers = running
    assert ask(fabric, "GET", f"{run}/0", headers).json() == {"manifest": ""}
    piece, manifest = put_piece(fabric, run, headers, b"weights"), put_piece(fabric, run, headers, b"manifest")
    ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": manifest, "pieces": [piece]})
    assert ask(fabric, "GET", f"{run}/0", headers).json() == {"manifest": manifest}
    assert ask(fabric, "GET", f"{run}/0/pieces/{piece}", headers).content == b"weights"


def test_a_later_run_of_the_account_begins_with_the_newest_checkpoint_of_an_earlier_one(fabric, running, clock):
    run, headers = running
    fabric.submit(gpu=["H100"], checkpoint=run, expect=422)
    piece, manifest = put_piece(fabric, run, headers, b"weights"), put_piece(fabric, run, headers, b"manifest")
    ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": manifest, "pieces": [piece]})
    later = fabric.submit(gpu=["H100"], checkpoint=run)["id"]
    assert ask(fabric, "GET", f"{later}/0", headers).json() == {"manifest": manifest}
    assert ask(fabric, "GET", f"{later}/0/pieces/{piece}", headers).content == b"weights"
    fabric.submit(gpu=["H100"], checkpoint=run, who="bob", expect=404)
    fabric.submit(gpu=["H100"], checkpoint=run, kind="map", expect=422)
    clock.advance(6 * DAY_MS)
    fabric.submit(gpu=["L4"], checkpoint=later, session="ses-new")
    clock.advance(6 * DAY_MS)
    for sha256 in (piece, manifest):
        fabric.client.get(f"/v1/blobs/{sha256}", headers={"Authorization": "Bearer key-alice"}).raise_for_status()
    clock.advance(2 * DAY_MS)
    assert "2 of 2 blobs" in fabric.submit(gpu=["L4"], checkpoint=later, session="ses-late", expect=404)["detail"]


def test_a_manifest_of_pieces_that_are_not_there_leaves_the_one_before(fabric, running):
    run, headers = running
    first, second = put_piece(fabric, run, headers, b"one"), put_piece(fabric, run, headers, b"two")
    ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": first, "pieces": []})
    ask(fabric, "PUT", f"{run}/0", headers, 404, json={"manifest": second, "pieces": ["0" * 64]})
    assert ask(fabric, "GET", f"{run}/0", headers).json() == {"manifest": first}


def test_an_operator_without_a_lease_of_the_run_reads_and_writes_nothing(fabric, running):
    run, headers = running
    piece = put_piece(fabric, run, headers, b"mine")
    ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": piece, "pieces": []})
    other = Agent(fabric, "op-2", OTHER_KEY, nodes=nodes(gpu(7), name="node-7"))
    foreign = {"Authorization": f"Bearer {other.connect().blob_token}"}
    ask(fabric, "GET", f"{run}/0", foreign, 404)
    ask(fabric, "GET", f"{run}/0/pieces/{piece}", foreign, 404)
    put_piece(fabric, run, foreign, b"theirs", expect=404)


def test_a_blob_of_the_customer_that_is_no_piece_is_not_given_out(fabric, running):
    run, headers = running
    secret = hashlib.sha256(b"secret").hexdigest()
    fabric.call("PUT", f"/v1/blobs/{secret}", content=b"secret")
    manifest = put_piece(fabric, run, headers, b"m")
    ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": manifest, "pieces": []})
    ask(fabric, "GET", f"{run}/0/pieces/{secret}", headers, 404)


def test_a_lost_operator_is_paid_up_to_the_newest_checkpoint(fabric):
    billed = {}
    for stored_at_ms in (None, 40_000):
        agent = Agent(fabric, cluster=f"c{stored_at_ms}", nodes=nodes(gpu(10 + len(billed)), name="n"))
        headers = {"Authorization": f"Bearer {agent.connect().blob_token}"}
        run = fabric.submit(gpu=["H100"], network="none")["id"]
        grant = agent.expect(link.Grant)
        agent.open(grant)
        agent.beat(40_000)
        agent.receipt(grant, ReceiptKind.TICK, 40_000)
        if stored_at_ms:
            piece = put_piece(fabric, run, headers, b"step 40")
            ask(fabric, "PUT", f"{run}/0", headers, json={"manifest": piece, "pieces": []})
        agent.beat(20_000)
        agent.receipt(grant, ReceiptKind.TICK, 60_000)
        agent.beat(0)
        agent.send(link.Heartbeat(nonce_seq=agent.nonce.seq, lost_nodes=["n"]))
        agent.expect(link.Release)
        agent.receipt(grant, ReceiptKind.CLOSE, 60_000, reason="operator_lost")
        agent.beat(0)
        billed[stored_at_ms] = fabric.run(run)["leases"][0]["gpu_ms"]
        agent.close()
    assert billed == {None: 0, 40_000: 40_000}
