import json
from dataclasses import asdict, replace

import pytest
from joserfc import jws
from joserfc.jwk import OctKey
from nacl.signing import SigningKey

from fabric.wire.clock import ManualClock
from fabric.wire.tokens import LeaseToken, TokenError, sign_token, verify_token

KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
CLOCK = ManualClock(now_ms=1_000_000)
TOKEN = LeaseToken(audience="op_a", lease="lease_a", generation=2, session="ses_a", expires_ms=1_060_000)


def check(compact, audience="op_a", clock=CLOCK):
    return verify_token(compact, PUBLIC, audience=audience, clock=clock)


def test_a_token_states_what_was_signed():
    assert check(sign_token(TOKEN, KEY)) == TOKEN


def test_a_token_of_another_key_opens_nothing():
    with pytest.raises(TokenError, match="not signed"):
        check(sign_token(TOKEN, SigningKey.generate()))


def test_a_token_for_another_operator_opens_nothing():
    with pytest.raises(TokenError, match="op_a"):
        check(sign_token(TOKEN, KEY), audience="op_b")


def test_a_token_ends_at_its_expiry():
    late = ManualClock(now_ms=TOKEN.expires_ms)
    with pytest.raises(TokenError, match="expired"):
        check(sign_token(TOKEN, KEY), clock=late)
    early = ManualClock(now_ms=TOKEN.expires_ms - 1)
    assert check(sign_token(TOKEN, KEY), clock=early) == TOKEN


def test_the_algorithm_is_pinned():
    forged = jws.serialize_compact(
        {"alg": "HS256"}, json.dumps(asdict(TOKEN)), OctKey.import_key(PUBLIC), algorithms=["HS256"]
    )
    with pytest.raises(TokenError, match="not signed"):
        check(forged)


@pytest.mark.parametrize("noise", ["", "a.b.c", "e30.e30.", "…"])
def test_noise_opens_nothing(noise):
    with pytest.raises(TokenError):
        check(noise)


def test_two_generations_have_two_tokens():
    assert sign_token(TOKEN, KEY) != sign_token(replace(TOKEN, generation=3), KEY)
