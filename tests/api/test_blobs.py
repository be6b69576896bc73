"""Blobs: named by digest, per customer, within a quota, for seven days."""

import asyncio
import hashlib

import pytest
from scripted import Agent

from api.errors import PayloadTooLarge
from fabric.wire import link
from fabric.wire.errors import InvalidRequest
from fabric.wire.receipts import ReceiptKind


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def request_(fabric):
    def call(method, data, *, who="alice", name=None, **options):
        headers = {"Authorization": f"Bearer key-{who}"}
        return fabric.client.request(method, f"/v1/blobs/{name or sha(data)}", headers=headers, **options)

    return call


def test_what_was_put_is_got_by_its_digest(request_):
    data = b"\x80\x04not a pickle to us" * 100_000
    assert request_("PUT", data, content=data).json()["size_bytes"] == len(data)
    assert request_("GET", data).content == data
    assert request_("HEAD", data).headers["content-length"] == str(len(data))


def test_bytes_with_another_digest_are_refused_and_leave_nothing(fabric, request_):
    assert request_("PUT", b"a", content=b"b").status_code == 422
    assert request_("GET", b"a").status_code == 404
    assert list((fabric.plane.settings.state_dir / "blobs" / "incoming").iterdir()) == []
    assert request_("GET", b"", name="../../fabric.db").status_code in (404, 422)
    assert request_("PUT", b"", name="xyz", content=b"").status_code == 422


def test_another_customers_blob_is_not_there_even_by_its_digest(request_):
    request_("PUT", b"secret", content=b"secret")
    assert request_("GET", b"secret", who="bob").status_code == 404
    assert request_("HEAD", b"secret", who="bob").status_code == 404


def test_a_blob_expires_after_seven_days_unless_it_is_put_again(fabric, request_):
    request_("PUT", b"old", content=b"old")
    request_("PUT", b"renewed", content=b"renewed")
    fabric.clock.advance(6 * 86_400_000)
    request_("PUT", b"renewed", content=b"renewed")
    fabric.clock.advance(86_400_000)
    assert fabric.plane.blobs.expire() == 1
    assert request_("GET", b"old").status_code == 404
    assert request_("GET", b"renewed").content == b"renewed"


def test_quota_and_size_are_limits(start):
    fabric = start(blob_quota_bytes=100, max_blob_bytes=80)

    def put(data):
        headers = {"Authorization": "Bearer key-alice"}
        return fabric.client.put(f"/v1/blobs/{sha(data)}", content=data, headers=headers).status_code

    assert put(b"a" * 81) == 413
    assert put(b"a" * 80) == 200
    assert put(b"b" * 21) == 413
    assert put(b"a" * 80) == 200
    assert put(b"b" * 20) == 200


async def slowly(*pieces, before_last=None):
    """A body in pieces; `before_last` is awaited before the last one."""
    for piece in pieces[:-1]:
        yield piece
    if before_last is not None:
        await before_last
    yield pieces[-1]


async def test_what_does_not_fit_is_refused_before_it_is_taken(start):
    blobs = start(blob_quota_bytes=100, max_blob_bytes=1000).plane.blobs

    async def untouched():
        raise AssertionError("a byte was asked for")
        yield b""

    with pytest.raises(PayloadTooLarge, match="101 more would pass the quota of 100"):
        await blobs.put("alice", sha(b""), untouched(), 101)
    with pytest.raises(PayloadTooLarge, match="1000 bytes; this one has more"):
        await blobs.put("alice", sha(b""), untouched(), 1001)


async def test_an_upload_ends_as_soon_as_it_no_longer_fits(start):
    blobs = start(blob_quota_bytes=100, max_blob_bytes=1000).plane.blobs
    taken = []

    async def endless():
        while True:
            taken.append(30)
            yield b"x" * 30

    with pytest.raises(PayloadTooLarge):
        await blobs.put("alice", sha(b""), endless(), 10)
    assert taken == [30] * 4


async def test_uploads_under_way_count_and_those_that_failed_no_longer(start):
    blobs = start(blob_quota_bytes=100, max_blob_bytes=1000).plane.blobs
    first = b"a" * 60, b"b" * 10
    begun, going = asyncio.Event(), asyncio.Event()

    async def wait():
        begun.set()
        await going.wait()

    putting = asyncio.ensure_future(blobs.put("alice", sha(b"".join(first)), slowly(*first, before_last=wait())))
    await asyncio.wait_for(begun.wait(), 10)
    with pytest.raises(PayloadTooLarge):
        await blobs.put("alice", sha(b"c" * 60), slowly(b"c" * 60), 60)
    assert (await blobs.put("bob", sha(b"c" * 60), slowly(b"c" * 60), 60)).size_bytes == 60
    going.set()
    assert (await putting).size_bytes == 70
    with pytest.raises(InvalidRequest):
        await blobs.put("alice", sha(b"other"), slowly(b"d" * 30), 30)
    assert (await blobs.put("alice", sha(b"d" * 30), slowly(b"d" * 30), 30)).size_bytes == 30


async def test_a_blob_that_is_there_already_is_renewed_in_a_full_store(start):
    blobs = start(blob_quota_bytes=100, max_blob_bytes=1000).plane.blobs
    for _ in range(2):
        assert (await blobs.put("alice", sha(b"a" * 100), slowly(b"a" * 100), 100)).size_bytes == 100


def test_who_has_used_for_ten_dollars_may_keep_more(start):
    fabric = start(blob_quota_bytes=100, blob_large_quota_bytes=200, blob_large_after_dc=1_000)

    def put(data, who="alice"):
        headers = {"Authorization": f"Bearer key-{who}"}
        return fabric.client.put(f"/v1/blobs/{sha(data)}", content=data, headers=headers).status_code

    assert put(b"a" * 90) == 200
    assert put(b"b" * 90) == 413
    agent = Agent(fabric)
    agent.connect()
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(60_000)
    agent.receipt(grant, ReceiptKind.TICK, 60_000)
    agent.beat()
    assert put(b"b" * 90) == 200
    assert put(b"c" * 90) == 413
    assert put(b"d" * 110, who="bob") == 413, "it is one's own use that counts"


def test_as_much_as_may_be_stored_may_be_downloaded_in_a_day_and_more_the_next(start):
    fabric = start(blob_quota_bytes=100)

    def call(method, data, who="alice", **options):
        headers = {"Authorization": f"Bearer key-{who}"}
        return fabric.client.request(method, f"/v1/blobs/{sha(data)}", headers=headers, **options)

    for who in ("alice", "bob"):
        assert call("PUT", b"a" * 60, who, content=b"a" * 60).status_code == 200
    assert call("GET", b"a" * 60).status_code == 200
    refused = call("GET", b"a" * 60)
    assert refused.status_code == 413
    assert "60 bytes of blobs were downloaded today" in refused.json()["detail"]
    assert (refused.json()["quota_bytes"], refused.json()["used_bytes"]) == (100, 60)
    assert call("HEAD", b"a" * 60).status_code == 200
    assert call("GET", b"a" * 60, "bob").status_code == 200, "it is one's own use that counts"
    fabric.clock.advance(86_400_000)
    assert call("GET", b"a" * 60).status_code == 200
    assert fabric.audit() == []
