"""Large things pass the control plane in pieces: its process never holds one whole."""

import hashlib
import os

import httpx
import numpy as np
import pytest

import fabric
from benchmarks.small_fabric import small_fabric
from benchmarks.transfer import length, made, peak_kib

MIB = 96
HELD_KIB = 32 << 10
"""A third of what passes; what a process grows by anyhow has room in it."""


@pytest.fixture(scope="module")
def relayed():
    with small_fabric(nodes=1, gateway_direct=False) as here:
        assert fabric.run(length, np.zeros(1 << 20, np.uint8), gpu="L4") == 1 << 20
        yield here


def grown_kib(here, call) -> int:
    before = peak_kib(here.control_pid)
    call()
    return peak_kib(here.control_pid) - before


def test_an_argument_and_a_result_pass_the_relay_in_pieces(relayed):
    content = np.frombuffer(os.urandom(1 << 20) * MIB, dtype=np.uint8)

    def there_and_back() -> None:
        assert fabric.run(length, content, gpu="L4") == MIB << 20
        assert fabric.run(made, MIB, gpu="L4").nbytes == MIB << 20

    assert grown_kib(relayed, there_and_back) < HELD_KIB


def test_a_blob_is_stored_and_read_in_pieces(relayed):
    piece = os.urandom(1 << 20)
    url = f"{relayed.url}/v1/blobs/{hashlib.sha256(piece * MIB).hexdigest()}"
    headers = {"Authorization": "Bearer key-alice"}

    def there_and_back() -> None:
        with httpx.Client(headers=headers, timeout=60, trust_env=False) as http:
            stored = http.put(url, content=(piece for _ in range(MIB))).raise_for_status()
            assert stored.json()["size_bytes"] == MIB << 20
            with http.stream("GET", url) as answer:
                assert sum(len(part) for part in answer.iter_bytes()) == MIB << 20

    assert grown_kib(relayed, there_and_back) < HELD_KIB
