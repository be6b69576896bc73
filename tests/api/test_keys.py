"""The control plane's own keys: made once, whole, the same for all that start at the same moment."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.keys import load_or_make


def test_a_key_is_made_once_and_is_its_owners_only(tmp_path):
    path = tmp_path / "token.key"
    assert bytes(load_or_make(path)) == bytes(load_or_make(path))
    assert path.stat().st_mode & 0o777 == 0o600


def test_all_that_make_it_at_the_same_moment_use_the_same_key(tmp_path):
    path = tmp_path / "token.key"
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: bytes(load_or_make(path)), range(64)))) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["token.key"]


def test_one_that_fails_midway_leaves_no_part_of_a_key(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="full"):
            load_or_make(tmp_path / "token.key")
    assert not list(tmp_path.iterdir())
    load_or_make(tmp_path / "token.key")
