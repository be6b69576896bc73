"""Pools over HTTP: what wallets sign moves GPUs and terms, from a later epoch on; closes pay by what held then."""

from typing import Any

import pytest
from eth_account import Account
from scripted import Agent, Fabric
from sqlmodel import select

from api.tables import GpuRow
from api.verification_tables import ChallengeRow
from api.verified import PASSED
from fabric.wire import link, receipts
from fabric.wire.pool_moves import MoveStatement, TermsStatement
from ledger.leaves import gpu_id_hex
from ledger.pools import as_of

WALLETS = {name: Account.from_key(bytes([number]) * 32) for number, name in enumerate(("op-a", "op-b", "thief"), 1)}
EPOCH_MS, FINAL_MS = 3_600_000, 600_000
GPU_1, GPU_2, L4 = (gpu_id_hex(f"GPU-{n}") for n in (1, 2, 3))


@pytest.fixture
def fabric(start) -> Fabric:
    fabric = start(epoch_s=EPOCH_MS // 1000, pool_exit_delay_epochs=1)
    _give_wallets(fabric)
    return fabric


def _give_wallets(fabric: Fabric) -> None:
    from api.enrolment_tables import OperatorWalletRow

    with fabric.plane.database.write() as session:
        for operator, name in (("op-1", "op-a"), ("op-2", "op-b")):
            session.add(OperatorWalletRow(operator=operator, wallet=WALLETS[name].address))


def sign(who: str, statement: Any) -> dict[str, Any]:
    signed = WALLETS[who].sign_typed_data(full_message=statement.typed_data())
    return {"statement": statement.to_json(), "signature": "0x" + bytes(signed.signature).hex()}


def terms(here: Fabric, *, action: str = "create", pool: str = "green", **options: Any) -> TermsStatement:
    values: dict[str, Any] = {
        "fabric": here.plane.fabric_id,
        "action": action,
        "pool": pool,
        "entrance": "invited",
        "operator_bps": 0,
        "shared_bps": 5000,
        "used_bps": 5000,
        "operator_payout": "",
        "price_ceiling_dc": 400_000,
        "model_weights": {"H100": 10, "L4": 1},
        "issued_ms": here.clock.now_ms(),
    }
    return TermsStatement(**values | options)


def move(here: Fabric, action: str, gpu: str = GPU_1, *, pool: str = "green", **options: Any) -> MoveStatement:
    now = here.clock.now_ms()
    ends = now + 86_400_000 if action == "invite" else 0
    values = {"fabric": here.plane.fabric_id, "action": action, "pool": pool, "gpu": gpu, "issued_ms": now}
    return MoveStatement(**values | {"expires_ms": ends} | options)


def post(fabric: Fabric, who: str, statement: Any, *, expect: int = 201) -> Any:
    path = "/v1/pools" if statement.action == "create" else f"/v1/pools/{statement.pool}/moves"
    return fabric.call("POST", path, sign(who, statement), expect=expect)


def next_epoch(fabric: Fabric, ms: int = 0) -> None:
    """To a moment within the epoch after the running one."""
    clock = fabric.plane.ledger_settings
    left = EPOCH_MS - (fabric.clock.now_ms() - clock.genesis_ms) % EPOCH_MS
    fabric.tick(left + ms)


@pytest.fixture
def green(fabric) -> Fabric:
    """Pool `green` of op-1, in force, by invitation, half of it shared."""
    post(fabric, "op-a", terms(fabric))
    next_epoch(fabric)
    return fabric


def test_a_pool_is_founded_by_an_operators_wallet_and_holds_from_the_next_epoch(fabric):
    epoch = fabric.call("GET", "/v1/pools")["epoch"]
    accepted = post(fabric, "op-a", terms(fabric))
    assert accepted == {"pool": "green", "action": "create", "from_epoch": epoch + 1}
    shown = fabric.call("GET", "/v1/pools/green")
    assert (shown["operator"], shown["terms"], shown["next_terms"]["used_bps"]) == ("op-1", None, 5000)
    next_epoch(fabric)
    assert fabric.call("GET", "/v1/pools/green")["terms"]["price_ceiling_dc"] == "400000"
    assert fabric.audit() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shared_bps": 4000}, "sum to 10000"),
        ({"used_bps": 1249, "shared_bps": 8751}, "at least 1250"),
        (
            {"operator_bps": 5001, "shared_bps": 0, "used_bps": 4999, "operator_payout": "0x" + "11" * 20},
            "at most 5000",
        ),
        ({"operator_bps": 1000, "shared_bps": 4000}, "payout address"),
        ({"operator_payout": "0x12", "operator_bps": 1000, "shared_bps": 4000}, "not an Ethereum address"),
        ({"entrance": "open"}, "used bps 10000"),
        ({"price_ceiling_dc": 0}, "price ceiling"),
        ({"model_weights": {}}, "weights"),
        ({"pool": "no/slash"}, "no name of a pool"),
        ({"fabric": "another"}, "for fabric another"),
        ({"issued_ms": 7}, "sign it anew"),
    ],
)
def test_bad_terms_are_refused_with_what_is_allowed(fabric, changed, said):
    answer = post(fabric, "op-a", terms(fabric, **changed), expect=422)
    assert said in answer["detail"]
    assert fabric.call("GET", "/v1/pools")["pools"] == []


def test_only_an_operator_founds_and_only_the_founder_changes(green):
    assert "no operator's wallet" in post(green, "thief", terms(green, pool="mine"), expect=403)["detail"]
    assert "already" in post(green, "op-a", terms(green), expect=422)["detail"]
    assert "op-2 is another" in post(green, "op-a", terms(green, pool="op-2"), expect=409)["detail"]
    later = terms(green, action="terms", shared_bps=0, used_bps=10_000)
    assert "who founded it" in post(green, "op-b", later, expect=403)["detail"]
    accepted = post(green, "op-a", later)
    assert accepted["from_epoch"] == green.call("GET", "/v1/pools")["epoch"] + 3
    assert green.audit() == []


def test_a_statement_is_taken_once(green, agent_of):
    agent_of("op-1")
    invitation = sign("op-a", move(green, "invite"))
    green.call("POST", "/v1/pools/green/moves", invitation, expect=201)
    assert "taken already" in green.call("POST", "/v1/pools/green/moves", invitation, expect=409)["detail"]
    body = sign("op-a", move(green, "join"))
    body["statement"]["gpu"] = GPU_2
    assert "spoken for" in green.call("POST", "/v1/pools/green/moves", body, expect=403)["detail"]
    assert (
        "not a signature"
        in green.call("POST", "/v1/pools/green/moves", {**body, "signature": "0x12"}, expect=401)["detail"]
    )


@pytest.fixture
def agent_of(fabric):
    from scripted import KEY, OTHER_KEY, gpu, nodes

    def connect(operator: str) -> Agent:
        mine = operator == "op-1"
        own = nodes() if mine else nodes(gpu(11), name="node-9")
        agent = Agent(fabric, operator, KEY if mine else OTHER_KEY, nodes=own)
        assert isinstance(agent.connect(), link.Welcome)
        return agent

    return connect


def test_who_is_invited_may_join_once_and_leaves_after_the_exit_delay(green, agent_of):
    agent_of("op-2")
    other = gpu_id_hex("GPU-11")
    assert "ask its operator" in post(green, "op-b", move(green, "join", other), expect=422)["detail"]
    post(green, "op-a", move(green, "invite", other))
    assert "spoken for" in post(green, "op-a", move(green, "join", other), expect=403)["detail"]
    epoch = green.call("GET", "/v1/pools")["epoch"]
    assert post(green, "op-b", move(green, "join", other))["from_epoch"] == epoch + 1
    assert green.call("GET", "/v1/pools/green")["members"] == 0
    next_epoch(green)
    assert green.call("GET", "/v1/pools/green")["members"] == 1
    assert post(green, "op-b", move(green, "leave", other))["from_epoch"] == epoch + 3
    next_epoch(green)
    next_epoch(green)
    assert green.call("GET", "/v1/pools/green")["gpus"] == []
    assert "ask its operator" in post(green, "op-b", move(green, "join", other), expect=422)["detail"]
    assert green.audit() == []


def test_an_operators_own_gpus_need_no_invitation(green, agent_of):
    agent_of("op-1")
    post(green, "op-a", move(green, "join"))
    assert (
        "leave it first"
        in post(green, "op-a", move(green, "join", issued_ms=green.clock.now_ms() + 1), expect=422)["detail"]
    )


def test_a_member_is_kicked_for_poor_reputation_only_and_by_the_founder_only(green, agent_of):
    agent_of("op-1")
    post(green, "op-a", move(green, "join"))
    next_epoch(green)
    _set_reputation(green, 900)
    assert "kicked below 5000" in post(green, "op-a", move(green, "kick"), expect=422)["detail"]
    _set_reputation(green, 400)
    assert "who founded it" in post(green, "op-b", move(green, "kick"), expect=403)["detail"]
    post(green, "op-a", move(green, "kick", issued_ms=green.clock.now_ms() + 1))
    assert green.call("GET", "/v1/pools/green")["gpus"][0]["until_epoch"] is not None
    assert "not in pool" in post(green, "op-a", move(green, "kick", GPU_2), expect=409)["detail"]
    assert green.audit() == []


def _set_reputation(fabric: Fabric, value: int) -> None:
    from api.tables import OperatorRow

    with fabric.plane.database.write() as session:
        row = session.get_one(OperatorRow, "op-1")
        row.reputation = value
        session.add(row)


def use(fabric: Fabric, agent: Agent, seconds: int) -> None:
    """A run of so many seconds on an H100, and the heartbeats of them."""
    agent.beat(1000)
    agent.beat(1000)
    pass_challenges(fabric)
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    for _ in range(seconds // 10):
        agent.beat(10_000)
    agent.beat(1000)
    agent.receipt(grant, receipts.ReceiptKind.CLOSE, seconds * 1000, reason="done")


def test_a_closed_epoch_pays_members_by_terms_and_availability_and_the_audit_agrees(green, agent_of):
    agent = agent_of("op-1")
    for gpu in (GPU_1, GPU_2, L4):
        post(green, "op-a", move(green, "join", gpu))
    next_epoch(green, 1000)
    agent.beat(1000)
    used_in = green.call("GET", "/v1/pools")["epoch"]
    use(green, agent, 60)
    _close(green, agent)
    name = as_of("green", used_in)
    file = green.call("GET", f"/v1/ledger/epochs/{used_in}/file")
    assert set(file["pools"]) == {name}
    rows = {row[0]: int(row[6]) for row in file["rewards"] if row[2] == name}
    assert set(rows) == {GPU_1, GPU_2, L4}
    total = sum(rows.values())
    available = {row[0]: row[5] for row in file["available"]}
    assert available[GPU_1] == available[L4] >= 50_000
    weights = {gpu: ms * (1 if gpu == L4 else 10) for gpu, ms in available.items()}
    shared = total // 2
    assert abs(rows[L4] - shared * weights[L4] // sum(weights.values())) <= 1
    assert max(rows.values()) > total // 2
    party = green.call("GET", "/v1/ledger/pools/green")
    assert (int(party["wei"]), party["gpus"]) == (total, 3)
    assert green.audit() == []


def pass_challenges(fabric: Fabric) -> None:
    """Every GPU of op-1 passed a challenge now, all in one round."""
    with fabric.plane.database.write() as session:
        now = fabric.clock.now_ms()
        for row in session.scalars(select(GpuRow).where(GpuRow.operator == "op-1")):
            values = {"round": f"round-{now}", "operator": row.operator, "cluster": row.cluster, "node": row.node}
            values |= {"id": f"{row.uuid}-{now}", "gpu": row.uuid, "gpu_id": row.id, "stage": PASSED}
            session.add(ChallengeRow(**values, plan={}, seed=b"s", prepared_ms=now, begun_ms=now, ended_ms=now))


def _close(fabric: Fabric, agent: Agent) -> None:
    next_epoch(fabric, FINAL_MS + 1000)
    fabric.tick()


def test_usage_of_a_pools_last_epoch_is_paid_by_what_held_then(green, agent_of):
    """Used at the end of one epoch, final in the next one: who joins for the next gets nothing of it."""
    agent = agent_of("op-1")
    post(green, "op-a", move(green, "join", GPU_1))
    next_epoch(green, EPOCH_MS - 120_000)
    agent.beat(1000)
    used_in = green.call("GET", "/v1/pools")["epoch"]
    for gpu in (GPU_2, L4):
        post(green, "op-a", move(green, "join", gpu))
    use(green, agent, 60)
    _close(green, agent)
    _close(green, agent)
    file = green.call("GET", f"/v1/ledger/epochs/{used_in + 1}/file")
    assert {row[2] for row in file["rewards"]} <= {as_of("green", used_in), "op-1"}
    assert L4 not in {row[0] for row in file["rewards"]}
    assert green.audit() == []


def test_the_audit_names_usage_and_availability_that_were_not_so(green, agent_of):
    agent = agent_of("op-1")
    post(green, "op-a", move(green, "join", GPU_1))
    next_epoch(green, 1000)
    agent.beat(1000)
    use(green, agent, 60)
    _close(green, agent)
    with green.plane.database.write() as session:
        connection = session.connection()
        for trigger in ("ledger_gpu_uptime_no_update", "ledger_pool_statement_no_update", "ledger_pool_move_no_update"):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
        connection.exec_driver_sql("UPDATE ledger_gpu_uptime SET price_dc = 500000")
        connection.exec_driver_sql("UPDATE ledger_pool_statement SET signer = '0x' WHERE action = 'join'")
    found = {check["name"] for check in green.audit()}
    assert {"closes paid pools as they stood", "wallets signed what pools did"} <= found
    with green.plane.database.write() as session:
        session.connection().exec_driver_sql("UPDATE ledger_pool_move SET from_epoch = from_epoch + 9")
    assert "usage stands under the pool of its time" in {check["name"] for check in green.audit()}


@pytest.mark.parametrize(
    "lie",
    [
        "entrance = 'open'",
        "terms = replace(terms, '5000', '4000')",
        "terms = '{}'",
        "terms = replace(terms, '10', '99')",
    ],
)
def test_terms_that_are_not_what_their_wallet_signed_are_named(green, lie):
    with green.plane.database.write() as session:
        session.connection().exec_driver_sql("DROP TRIGGER ledger_pool_terms_no_update")
        session.connection().exec_driver_sql(f"UPDATE ledger_pool_terms SET {lie}")
    assert "wallets signed what pools did" in {check["name"] for check in green.audit()}
