import asyncio
import itertools
import secrets

import httpx
import pytest
from eth_account import Account
from fastapi import FastAPI
from nacl.signing import SigningKey
from structlog.testing import capture_logs

from api import enrolment, errors, keys, plane
from api.routes import enrol
from api.settings import Settings
from api.tables import ApiKeyRow, CustomerRow, SessionKeyRow
from fabric.wire.clock import ManualClock
from fabric.wire.delegation import Delegation, Revocation, SignedDelegation

WALLET = Account.from_key(b"\x01" * 32)
STRANGER = Account.from_key(b"\x02" * 32)
DAY_MS = 86_400_000


class World:
    """A control plane with an admin, and what a well-behaved operator would send."""

    def __init__(self, tmp_path):
        self.clock = ManualClock()
        self.plane = plane.build(Settings(state_dir=tmp_path), self.clock)
        with self.plane.database.write() as session:
            session.add(CustomerRow(id="cust_admin", name="admin", test=False, created_ms=0))
            session.flush()
            for key, admin in (("admin-key", True), ("plain-key", False)):
                row = ApiKeyRow(sha256=keys.sha256_hex(key), customer="cust_admin", admin=admin, created_ms=0)
                session.add(row)
        app = FastAPI()
        app.state.plane = self.plane
        app.include_router(enrol.router)
        errors.install(app)
        self.app = app

    def post(self, path, body, headers=None):
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://fabric") as client:
                return await client.post(f"/v1/operators/{path}", json=body, headers=headers)

        return asyncio.run(send())

    def invite(self, operator=None, wallet=WALLET.address, key="admin-key"):
        body = {"name": "Alice", "wallet": wallet, **({"operator": operator} if operator else {})}
        return self.post("join-tokens", body, headers={"Authorization": f"Bearer {key}"})

    def delegation(self, operator, key, **changed):
        now = self.plane.now_ms()
        sound = {"fabric": self.plane.fabric_id, "operator": operator, "session_key": bytes(key.verify_key)}
        return Delegation(**{**sound, "issued_ms": now, "expires_ms": now + 90 * DAY_MS, **changed})

    def signed(self, delegation, key, wallet=WALLET):
        signature = bytes(wallet.sign_typed_data(full_message=delegation.typed_data()).signature)
        return SignedDelegation(delegation, signature, key.sign(delegation.proof_payload()).signature)

    def enrol(self, token, signed):
        return self.post("enrol", {"token": token, **signed.to_json()})

    def speaks(self, operator, key):
        with self.plane.database.read() as session:
            row = session.get(SessionKeyRow, bytes(key.verify_key).hex())
            known = row is not None and row.operator == operator and row.revoked_ms is None
            return known and not enrolment.problem_of_key(session, bytes(key.verify_key), self.plane.now_ms())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.plane.database.close()


@pytest.fixture
def key():
    return SigningKey.generate()


def refused(answer, says, status=401):
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    return True


def test_a_join_token_enrols_one_key_for_its_operator(world, key):
    invited = world.invite().json()
    signed = world.signed(world.delegation(invited["operator"], key), key)
    assert not world.speaks(invited["operator"], key)
    assert world.enrol(invited["token"], signed).status_code == 201
    assert world.speaks(invited["operator"], key)


def test_only_an_admin_invites(world):
    assert world.invite().status_code == 201
    assert refused(world.invite(key="plain-key"), "admin", 403)
    assert refused(world.invite(key="wrong"), "not known")


def test_a_token_needs_an_address_for_the_wallet(world):
    assert refused(world.invite(wallet="0x12"), "not an Ethereum address", 422)


def test_a_second_token_for_an_operator_keeps_its_wallet(world):
    operator = world.invite().json()["operator"]
    assert world.invite(operator).status_code == 201
    assert refused(world.invite(operator, STRANGER.address), "known with the wallet", 409)


def test_a_lost_answer_can_be_asked_for_again(world, key):
    invited = world.invite().json()
    signed = world.signed(world.delegation(invited["operator"], key), key)
    first = world.enrol(invited["token"], signed)
    world.clock.advance(8 * DAY_MS)
    assert world.enrol(invited["token"], signed).json() == first.json()


def test_a_used_token_is_refused_for_another_key(world, key):
    invited = world.invite().json()
    world.enrol(invited["token"], world.signed(world.delegation(invited["operator"], key), key))
    other = SigningKey.generate()
    answer = world.enrol(invited["token"], world.signed(world.delegation(invited["operator"], other), other))
    assert refused(answer, "used already")
    assert not world.speaks(invited["operator"], other)


def test_an_expired_token_is_refused(world, key):
    invited = world.invite().json()
    world.clock.advance(7 * DAY_MS)
    with capture_logs() as logs:
        assert refused(
            world.enrol(invited["token"], world.signed(world.delegation(invited["operator"], key), key)), "expired"
        )
    assert any("expired" in line.get("reason", "") for line in logs)
    assert invited["token"] not in str(logs)


def test_a_foreign_token_is_refused(world, key):
    operator = world.invite().json()["operator"]
    token = f"join.{operator}.{secrets.token_urlsafe(24)}"
    assert refused(world.enrol(token, world.signed(world.delegation(operator, key), key)), "not a join token")


def _for_another_operator(world, operator, key):
    other = world.invite().json()["operator"]
    return world.signed(world.delegation(other, key), key)


def _brought_by_another_key(world, operator, key):
    return world.signed(world.delegation(operator, key), SigningKey.generate())


def _by_a_stranger(world, operator, key):
    return world.signed(world.delegation(operator, key), key, STRANGER)


def _changed_after_signing(world, operator, key):
    signed = world.signed(world.delegation(operator, key), key)
    later = world.delegation(operator, key, expires_ms=signed.delegation.expires_ms + 1)
    return SignedDelegation(later, signed.signature, key.sign(later.proof_payload()).signature)


def _no_signature(world, operator, key):
    return SignedDelegation(world.delegation(operator, key), bytes(65), bytes(64))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_for_another_operator, "the token for"),
        (_brought_by_another_key, "another key"),
        (_by_a_stranger, "signs with"),
        (_changed_after_signing, "signs with"),
        (_no_signature, "not a signature"),
    ],
)
def test_a_delegation_for_somebody_else_is_refused_and_spends_nothing(world, key, make, says):
    invited = world.invite().json()
    assert refused(world.enrol(invited["token"], make(world, invited["operator"], key)), says)
    assert not world.speaks(invited["operator"], key)
    sound = world.signed(world.delegation(invited["operator"], key), key)
    assert world.enrol(invited["token"], sound).status_code == 201


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"fabric": "another"}, "for fabric another"),
        ({"issued_ms": 0, "expires_ms": 1}, "expired"),
        ({"issued_ms": 1_700_000_000_000 + 3_600_000}, "future"),
        ({"expires_ms": 1_700_000_000_000 + 400 * DAY_MS}, "366 days"),
    ],
)
def test_a_delegation_for_another_chain_or_time_is_refused(world, key, changed, says):
    invited = world.invite().json()
    signed = world.signed(world.delegation(invited["operator"], key, **changed), key)
    assert refused(world.enrol(invited["token"], signed), says)
    assert not world.speaks(invited["operator"], key)


def test_a_key_of_one_operator_cannot_become_anothers(world, key):
    first, second = (world.invite().json() for _ in range(2))
    world.enrol(first["token"], world.signed(world.delegation(first["operator"], key), key))
    answer = world.enrol(second["token"], world.signed(world.delegation(second["operator"], key), key))
    assert refused(answer, "another operator")


@pytest.mark.parametrize("member", ["delegation", "signature", "proof"])
def test_a_malformed_request_is_refused_with_the_member(world, key, member):
    invited = world.invite().json()
    sound = world.signed(world.delegation(invited["operator"], key), key).to_json()
    broken = {"token": invited["token"], **sound, member: {"x": 1} if member == "delegation" else "zz"}
    answer = world.post("enrol", broken)
    assert refused(answer, member, 422)


def test_a_delegation_ends_and_the_wallet_renews_it(world, key):
    invited = world.invite().json()
    world.enrol(invited["token"], world.signed(world.delegation(invited["operator"], key), key))
    world.clock.advance(90 * DAY_MS)
    assert not world.speaks(invited["operator"], key)
    signed = world.signed(world.delegation(invited["operator"], key), key)
    assert world.post("delegations", signed.to_json()).status_code == 201
    assert world.speaks(invited["operator"], key)


def test_an_older_delegation_cannot_replace_a_newer_one(world, key):
    invited = world.invite().json()
    older = world.signed(world.delegation(invited["operator"], key), key)
    world.clock.advance(1_000)
    world.enrol(invited["token"], world.signed(world.delegation(invited["operator"], key), key))
    assert refused(world.post("delegations", older.to_json()), "newer")


def test_an_operator_that_never_joined_cannot_delegate(world, key):
    signed = world.signed(world.delegation("op_unknown", key), key)
    assert refused(world.post("delegations", signed.to_json()), "join token first")


def test_a_revoked_key_never_comes_back(world, key):
    invited = world.invite().json()
    operator = invited["operator"]
    world.enrol(invited["token"], world.signed(world.delegation(operator, key), key))
    revocation = Revocation(world.plane.fabric_id, operator, bytes(key.verify_key))

    def revoke(wallet):
        signature = bytes(wallet.sign_typed_data(full_message=revocation.typed_data()).signature)
        body = {"operator": operator, "session_key": revocation.session_key.hex(), "signature": signature.hex()}
        return world.post("delegations/revoke", body)

    assert refused(revoke(STRANGER), "signs with")
    assert world.speaks(operator, key)
    assert revoke(WALLET).status_code == 200
    assert revoke(WALLET).status_code == 200
    assert not world.speaks(operator, key)
    again = world.signed(world.delegation(operator, key), key)
    assert refused(world.post("delegations", again.to_json()), "revoked")


def test_a_key_that_this_operator_never_had_cannot_be_revoked(world, key):
    operator = world.invite().json()["operator"]
    revocation = Revocation(world.plane.fabric_id, operator, bytes(key.verify_key))
    signature = bytes(WALLET.sign_typed_data(full_message=revocation.typed_data()).signature)
    body = {"operator": operator, "session_key": revocation.session_key.hex(), "signature": signature.hex()}
    assert refused(world.post("delegations/revoke", body), "no session key", 404)


def test_no_two_tokens_are_alike(world):
    operator = world.invite().json()["operator"]
    tokens = [world.invite(operator).json()["token"] for _ in range(3)]
    assert all(a != b for a, b in itertools.combinations(tokens, 2))


def test_keys_that_were_revoked_or_have_expired_are_told_from_those_that_speak(world):
    living, expiring, gone = (SigningKey.generate() for _ in range(3))
    operator = world.invite().json()["operator"]
    now = world.plane.now_ms()
    for key, days in ((living, 90), (expiring, 1), (gone, 90)):
        token = world.invite(operator).json()["token"]
        world.enrol(token, world.signed(world.delegation(operator, key, expires_ms=now + days * DAY_MS), key))
    revocation = Revocation(world.plane.fabric_id, operator, bytes(gone.verify_key))
    signature = bytes(WALLET.sign_typed_data(full_message=revocation.typed_data()).signature)
    body = {"operator": operator, "session_key": revocation.session_key.hex(), "signature": signature.hex()}
    world.post("delegations/revoke", body)
    every = {bytes(key.verify_key) for key in (living, expiring, gone)}
    with world.plane.database.read() as session:
        assert enrolment.ended_keys(session, every, now) == {bytes(gone.verify_key)}
        assert enrolment.ended_keys(session, every, now + DAY_MS) == every - {bytes(living.verify_key)}
        assert enrolment.ended_keys(session, set(), now) == set()
