import pytest

from fabric.wire.keys import KNOWN_KEYS, UnknownKey, refuse_unknown


def test_known_keys_and_other_programs_keys_pass():
    refuse_unknown({"FABRIC_URL": "x", "PATH": "/bin", "FABRICATED": "1"})


def test_a_mistyped_key_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownKey, match="FABRIC_API_KEY"):
        refuse_unknown({"FABRIC_APIKEY": "x"})


def test_every_key_has_the_prefix():
    assert all(key.startswith("FABRIC_") for key in KNOWN_KEYS)
