"""Blobs: named by digest, per customer, within a quota, for seven days."""

import hashlib

import pytest


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
