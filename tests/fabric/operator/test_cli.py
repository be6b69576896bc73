"""`fabric operator` as a person meets it, against a real control plane on loopback."""

import json
import threading

import pytest
import uvicorn
from eth_account import Account
from fastapi import FastAPI
from typer.testing import CliRunner

from api import enrolment, errors, plane
from api.routes import enrol, health
from api.settings import Settings
from fabric.operator.cli import app
from fabric.operator.folder import OperatorFolder
from fabric.wire.clock import ManualClock

WALLET_KEY = "0x" + "01" * 32
WALLET = Account.from_key(WALLET_KEY)


class World:
    """A control plane that answers on loopback, and the command."""

    def __init__(self, tmp_path):
        self.clock = ManualClock()
        self.plane = plane.build(Settings(state_dir=tmp_path / "control"), self.clock)
        self.folder = OperatorFolder(tmp_path / "op")
        served = FastAPI()
        served.state.plane = self.plane
        served.include_router(enrol.router)
        served.include_router(health.router)
        errors.install(served)
        config = uvicorn.Config(served, host="127.0.0.1", port=0, log_level="warning", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def serve(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def invite(self, operator="op_alice"):
        with self.plane.database.write() as session:
            return enrolment.issue_token(
                session,
                operator=operator,
                name="Alice",
                wallet=WALLET.address,
                payout="",
                now_ms=self.plane.now_ms(),
                lifetime_ms=60_000,
            )

    def init(self, token, *more, key=WALLET_KEY):
        arguments = ["--token", token, "--url", self.url, "--head", "10.0.0.11", "--worker", "10.0.0.12"]
        prices = () if "--price" in more else ("--price", "H100:on_demand=2.49")
        return self("init", *arguments, *prices, "-C", str(self.folder.path), *more, key=key)

    def __call__(self, *arguments, key=WALLET_KEY):
        return CliRunner().invoke(app, arguments, env={"OPERATOR_WALLET_KEY": key, "FABRIC_URL": None})


@pytest.fixture
def fabric(tmp_path, monkeypatch):
    made = World(tmp_path)
    monkeypatch.setattr("fabric.operator.cli.SystemClock", lambda: made.clock)
    made.serve()
    yield made
    made.server.should_exit = True
    made.thread.join()
    made.plane.database.close()


def speaks(fabric):
    with fabric.plane.database.read() as session:
        key = bytes(fabric.folder.session_key().verify_key)
        row = session.get(enrolment.SessionKeyRow, key.hex())
        return (
            bool(row) and row.revoked_ms is None and not enrolment.problem_of_key(session, key, fabric.clock.now_ms())
        )


def test_init_enrols_and_writes_a_folder_that_the_launcher_can_use(fabric):
    done = fabric.init(fabric.invite())
    assert done.exit_code == 0, done.output
    assert speaks(fabric)
    cluster = fabric.folder.cluster()
    assert (cluster.operator, cluster.addresses) == ("op_alice", ("10.0.0.11", "10.0.0.12"))
    assert {path.stat().st_mode & 0o777 for path in fabric.folder.secrets()} == {0o600}
    assert fabric.folder.delegation().fabric == fabric.plane.fabric_id
    assert WALLET_KEY[2:] not in "".join(path.read_text() for path in fabric.folder.path.iterdir() if path.is_file())


def test_init_again_with_the_same_folder_is_harmless(fabric):
    token = fabric.invite()
    assert fabric.init(token).exit_code == 0
    assert fabric.init(token).exit_code == 0


def test_a_keystore_opens_with_its_password_and_not_with_another(fabric, tmp_path, monkeypatch):
    keystore = tmp_path / "wallet.json"
    keystore.write_text(json.dumps(Account.encrypt(WALLET_KEY, "secret", kdf="pbkdf2", iterations=10)))
    token = fabric.invite()
    monkeypatch.setenv("OPERATOR_WALLET_PASSWORD", "wrong")
    wrong = fabric.init(token, "--wallet", str(keystore))
    assert wrong.exit_code == 1
    assert "does not open" in wrong.output
    monkeypatch.setenv("OPERATOR_WALLET_PASSWORD", "secret")
    assert fabric.init(token, "--wallet", str(keystore)).exit_code == 0


@pytest.mark.parametrize(
    ("more", "key", "says", "status"),
    [
        (("--price", "H100:on_demand=0"), WALLET_KEY, "at least", 1),
        (("--price", "H100=2"), WALLET_KEY, "MODEL:TIER=USD", 2),
        (("--node", "10.0.0.12=4"), WALLET_KEY, "num_gpus", 2),
        (("--node", "10.0.0.99={}"), WALLET_KEY, "neither head_ip", 1),
        ((), "", "no wallet", 1),
        ((), "abc", "not a private key", 1),
        ((), "0x" + "02" * 32, "signs with", 3),
    ],
)
def test_what_init_refuses_spends_no_token(fabric, more, key, says, status):
    token = fabric.invite()
    refused = fabric.init(token, *more, key=key)
    assert says in refused.output
    assert refused.exit_code == status
    assert fabric.init(token).exit_code == 0


@pytest.mark.parametrize("token", ["join.op_alice.guess", "nonsense", "join..x"])
def test_a_token_that_is_none_is_refused(fabric, token):
    refused = fabric.init(token)
    assert refused.exit_code in {2, 3}
    assert "join token" in refused.output


def test_an_expired_token_is_refused(fabric):
    token = fabric.invite()
    fabric.clock.advance(60_000)
    refused = fabric.init(token)
    assert refused.exit_code == 3
    assert "expired" in refused.output


def test_the_wallet_renews_and_revokes(fabric):
    fabric.init(fabric.invite())
    fabric.clock.advance(91 * 86_400_000)
    assert not speaks(fabric)
    assert fabric("renew", "-C", str(fabric.folder.path)).exit_code == 0
    assert speaks(fabric)
    assert fabric("revoke", "-C", str(fabric.folder.path)).exit_code == 0
    assert not speaks(fabric)
    assert "revoked" in fabric("renew", "-C", str(fabric.folder.path)).output


def test_the_doctor_of_one_host_says_what_is_bad_and_how_to_mend_it(fabric):
    fabric.init(fabric.invite())
    examined = fabric("doctor", "--here", "--json", "-C", str(fabric.folder.path))
    findings = {finding["check"]: finding for finding in json.loads(examined.stdout)}
    assert {
        "gpus",
        "ray-version",
        "ray-token",
        "ray-ports",
        "disk",
        "clock",
        "sandbox",
        "packages",
        "control-plane",
    } == set(findings)
    assert findings["ray-version"]["verdict"] == "ok"
    assert findings["control-plane"]["verdict"] == "ok"
    assert findings["ray-token"]["verdict"] == "bad"
    assert "RAY_AUTH_MODE=token" in findings["ray-token"]["mend"]
    assert examined.exit_code == 1


def test_the_doctor_says_which_hosts_cannot_be_logged_in_to(fabric):
    fabric.init(fabric.invite(), "--ssh-key", "/nonexistent/key")
    examined = fabric("doctor", "--json", "-C", str(fabric.folder.path))
    bad = {f["where"]: f["detail"] for f in json.loads(examined.stdout) if f["check"] == "ssh"}
    assert set(bad) == {"10.0.0.11", "10.0.0.12"}
    assert "does not exist" in bad["10.0.0.11"]


def test_a_key_that_others_can_read_is_bad(fabric):
    fabric.init(fabric.invite(), "--ssh-key", "/nonexistent/key")
    fabric.folder.session_key_file.chmod(0o644)
    examined = fabric("doctor", "--json", "-C", str(fabric.folder.path))
    secrets = next(f for f in json.loads(examined.stdout) if f["check"] == "secrets")
    assert secrets["verdict"] == "bad"
    assert "session.key" in secrets["mend"]


def test_the_launcher_is_not_started_where_a_login_fails(fabric):
    fabric.init(fabric.invite(), "--ssh-key", "/nonexistent/key")
    refused = fabric("up", "-C", str(fabric.folder.path))
    assert refused.exit_code == 1
    assert "10.0.0.11" in refused.output


def test_join_refuses_a_ray_without_token_authentication(fabric, tmp_path):
    fabric.init(fabric.invite())
    refused = fabric("join", "-C", str(fabric.folder.path), "--state", str(tmp_path / "agent"))
    assert refused.exit_code == 1
    assert "RAY_AUTH_MODE" in refused.output


def test_without_a_folder_every_command_names_init(fabric, tmp_path):
    for command in ("doctor", "up", "down", "status", "join", "renew", "revoke"):
        refused = fabric(command, "-C", str(tmp_path / "nowhere"))
        assert refused.exit_code == 1
        assert "operator init" in refused.output
