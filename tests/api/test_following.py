"""The ledger live: each event once, in order, from where the asker left off; nobody else's entries."""

import json

import pytest
from scripted import Agent

from api import following
from fabric.wire import link
from fabric.wire.receipts import ReceiptKind


def events(fabric, path: str, *, who: str = "alice", last: int | None = None, **options) -> list[tuple[int, dict]]:
    headers = {"Authorization": f"Bearer key-{who}"} | ({} if last is None else {"Last-Event-ID": str(last)})
    answer = fabric.client.get(f"/v1/ledger/{path}", params=options, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.strip().split("\n\n")]
    assert blocks[-1]["event"] == "end"
    return [(int(one["id"]), json.loads(one["data"])) for one in blocks[:-1]]


@pytest.fixture
def used(start):
    fabric = start(finality_s=2, epoch_s=10)
    agent = Agent(fabric)
    agent.connect()
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(5000)
    agent.receipt(grant, ReceiptKind.CLOSE, 5000)
    for _ in range(6):
        fabric.tick(10_000)
    return fabric


def test_closed_epochs_come_in_order_and_go_on_behind_the_last_one_seen(used):
    closed = sorted(one["n"] for one in used.client.get("/v1/ledger/epochs").json()["epochs"])
    found = events(used, "epochs/stream", after=-1, count=len(closed))
    assert [number for number, _ in found] == closed
    assert [data["n"] for _, data in found] == closed
    again = events(used, "epochs/stream", last=closed[1], after=-1, count=1)
    assert [number for number, _ in again] == [closed[2]]
    assert found[2] == again[0]


def test_entries_are_their_owners_and_each_comes_once(used):
    own = used.call("GET", "/v1/ledger/entries?limit=1000")["entries"]
    found = events(used, "entries/stream", after=0, count=len(own))
    assert [data for _, data in found] == own[::-1]
    (first,) = events(used, "entries/stream", who="bob", after=0, count=1)
    assert first[1]["customer"] == "bob"
    assert used.client.get("/v1/ledger/entries/stream").status_code == 401


async def test_what_happens_later_comes_and_a_stream_that_nobody_reads_is_closed():
    looks = [[], [], [following.Event(7, "entry", "{}")]]
    streams = following.Following()
    stream = streams._events(lambda _: looks.pop(0), 3, 1)
    assert await anext(stream) == "id: 7\nevent: entry\ndata: {}\n\n"
    assert streams.open == 1
    await stream.aclose()
    assert streams.open == 0


def test_too_many_streams_are_refused(used, monkeypatch):
    monkeypatch.setattr(used.app.state.following, "open", following.MAX_OPEN)
    assert used.client.get("/v1/ledger/epochs/stream").status_code == 503
    assert used.client.get("/v1/ledger/epochs/stream?count=0").status_code == 422
