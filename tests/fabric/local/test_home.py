"""The state folder: locks that say who lives, files that only their owner reads, damage that is named."""

import os
import stat

import pytest

from fabric.local.home import Home, Status, gone_clients, hold_client, is_locked, try_lock, write_private
from fabric.local.start import Embedded
from fabric.wire.errors import ServiceError


def test_a_lock_has_one_holder_and_is_free_when_the_holder_closes_it(home):
    held = try_lock(home.alive_lock)
    assert try_lock(home.alive_lock) is None
    assert is_locked(home.alive_lock)
    os.close(held)
    assert not is_locked(home.alive_lock)


def test_a_client_counts_as_living_until_its_process_lets_go(home):
    one, two = hold_client(home, "ses_1"), hold_client(home, "ses_2")
    assert gone_clients(home) == ([], 2)
    os.close(one)
    assert gone_clients(home) == (["ses_1"], 1)
    os.close(two)
    assert gone_clients(home) == (["ses_2"], 0)
    assert gone_clients(home) == ([], 0)


def test_the_status_is_what_was_written_last(home):
    assert home.read_status() == Status("stopped")
    home.write_status(Status("ready", "start_1", "http://127.0.0.1:1", {"guard": 1}))
    assert home.read_status().pids == {"guard": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "ready", "more": 1}'])
def test_a_damaged_status_counts_as_none(home, text):
    home.status_file.write_text(text)
    assert home.read_status() == Status("stopped")


def test_private_files_are_readable_by_their_owner_alone(home):
    write_private(home.api_key_file, "fk_" + "1" * 64)
    assert stat.S_IMODE(home.api_key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert home.read_api_key() == "fk_" + "1" * 64


@pytest.mark.parametrize("text", ["", "fk_", "something else", "\x00\xff"])
def test_a_damaged_key_is_refused_with_what_to_do(home, text):
    home.api_key_file.write_text(text)
    with pytest.raises(ServiceError, match=r"damaged: .*api\.key.*Move the folder"):
        home.read_api_key()


def test_a_folder_that_cannot_be_made_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="set FABRIC_HOME"):
        Home(tmp_path / "file").make()


@pytest.mark.parametrize(
    ("url", "state", "lives", "over"),
    [
        ("http://a", "ready", True, False),
        ("http://a", "ready", False, True),
        ("http://a", "stopping", True, True),
        ("http://b", "ready", True, True),
        ("", "starting", True, True),
    ],
)
def test_an_embedded_fabric_is_over_once_it_ends_or_another_one_has_its_place(home, url, state, lives, over):
    home.write_status(Status(state, url=url))
    held = try_lock(home.alive_lock) if lives else None
    try:
        assert Embedded("http://a", "fk", home).is_over() is over
    finally:
        if held is not None:
            os.close(held)
