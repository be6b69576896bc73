import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire.delegation import Delegation, DelegationError, Revocation, SignedDelegation

KEYS = st.binary(min_size=32, max_size=32)
TEXTS = st.text(min_size=1, max_size=20)
MEMBERS = {"fabric": "f1", "operator": "op_1", "session_key": "11" * 32, "issued_ms": 1, "expires_ms": 2}


@given(TEXTS, TEXTS, KEYS, st.integers(0, 2**40), st.integers(1, 2**40))
def test_a_delegation_survives_json(fabric, operator, key, issued, lasts):
    delegation = Delegation(fabric, operator, key, issued, issued + lasts)
    assert Delegation.from_json(delegation.to_json()) == delegation


@given(st.sampled_from(["fabric", "operator", "session_key", "issued_ms", "expires_ms"]))
def test_every_member_is_in_what_the_wallet_signs(member):
    other = {"fabric": "f2", "operator": "op_2", "session_key": "22" * 32, "issued_ms": 0, "expires_ms": 3}
    changed = Delegation.from_json({**MEMBERS, member: other[member]})
    assert changed.typed_data() != Delegation.from_json(MEMBERS).typed_data()


def test_a_revocation_is_not_a_delegation():
    delegation = Delegation.from_json(MEMBERS)
    revocation = Revocation(delegation.fabric, delegation.operator, delegation.session_key)
    assert revocation.typed_data()["primaryType"] != delegation.typed_data()["primaryType"]


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("session_key", "11" * 31, "31 bytes"),
        ("session_key", "zz", "hex"),
        ("session_key", 5, "string"),
        ("session_key", "0x1", "hex"),
        ("issued_ms", 2, "before"),
        ("issued_ms", -1, "before"),
        ("expires_ms", True, "integer"),
        ("expires_ms", 1 << 63, "before"),
        ("extra", 1, "exactly"),
    ],
)
def test_a_malformed_delegation_is_refused_with_what_is_wrong(member, value, says):
    with pytest.raises(DelegationError, match=says):
        Delegation.from_json({**MEMBERS, member: value})


def test_a_signed_delegation_survives_json_and_a_malformed_one_is_refused():
    signed = SignedDelegation(Delegation.from_json(MEMBERS), bytes(65), bytes(64))
    assert SignedDelegation.from_json(signed.to_json()) == signed
    for member in ("delegation", "signature", "proof"):
        with pytest.raises(DelegationError, match=member):
            SignedDelegation.from_json({**signed.to_json(), member: None})
