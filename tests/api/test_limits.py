"""How long a request may be."""

import pytest

from api.limits import MAX_BODY_BYTES

ALICE = {"Authorization": "Bearer key-alice"}


def pieces(size, piece=1 << 20):
    for at in range(0, size, piece):
        yield b" " * min(piece, size - at)


@pytest.mark.parametrize(("headers", "otherwise"), [(ALICE, 422), ({}, 401)], ids=["customer", "nobody"])
def test_a_request_that_goes_on_and_on_is_refused_before_it_fills_the_memory(fabric, headers, otherwise):
    answer = fabric.client.post("/v1/runs", content=pieces(MAX_BODY_BYTES + 1), headers=headers)
    assert (answer.status_code, answer.json()["max_bytes"]) == (413, MAX_BODY_BYTES)
    longest = fabric.client.post("/v1/runs", content=pieces(MAX_BODY_BYTES), headers=headers)
    assert longest.status_code == otherwise


def test_a_blob_may_be_longer(fabric):
    answer = fabric.client.put("/v1/blobs/" + "0" * 64, content=pieces(MAX_BODY_BYTES + 1), headers=ALICE)
    assert (answer.status_code, "SHA-256" in answer.json()["detail"]) == (422, True)
