"""What the chain said, at the control plane: whose deposits, who earns, and whether it is still followed."""

import json

import pytest
from scripted import BALANCE, PAYOUT, Fabric, bootstrap_file
from sqlalchemy import select
from sqlmodel import Session

from api.bootstrap import BootstrapError
from fabric.wire import link
from fabric.wire.receipts import ReceiptKind
from ledger.chain import crediting
from ledger.chain.book import AddressBook
from ledger.chain.following import Block
from ledger.chain.holders import known_ms
from ledger.chain.index import Index
from ledger.chain.tables import DepositRow, EventRow, OwnerRow
from ledger.leaves import gpu_id_hex
from ledger.store import Ledger
from ledger.tables import UsageRow

BOOK = AddressBook(1337, 1, *("0x" + digit * 40 for digit in "12345"))
WALLET, HEIDI = "0x" + "Ca" * 20, "0x" + "4e" * 20
ROOT = bytes(32)


def told(fabric: Fabric, number: int, *events: EventRow, time_ms: int = 0) -> None:
    """A block that is final at once, as the indexer would take it in."""
    for i, event in enumerate(events):
        event.block_number, event.log_index, event.tx_hash = number, i, ROOT
    with fabric.plane.database.write() as session:
        index = Index(session)
        index.begin(BOOK)
        name, parent = number.to_bytes(32, "big"), (number - 1).to_bytes(32, "big")
        index.append(Block(number, name, parent, time_ms // 1000), events)
        crediting.book(session, fabric.plane.ledger(session), index.events(number))
        index.finalise(number)


def test_readiness_says_how_far_the_chain_was_read_and_why_no_further(fabric):
    assert fabric.call("GET", "/readyz")["chain"] is None
    told(fabric, 1)
    expected = {"chain_id": 1337, "tip": 1, "final": 1, "halted": ""}
    assert fabric.call("GET", "/readyz")["chain"] == expected
    with fabric.plane.database.write() as session:
        Index(session).halt("a reorg below finality", 0)
    assert fabric.call("GET", "/readyz")["chain"] == expected | {"halted": "a reorg below finality"}
    assert [check["invariant"] for check in fabric.audit()] == [14]


def with_wallet(folder, **wallets: str):
    declared = json.loads(bootstrap_file(folder).read_text())
    for customer in declared["customers"]:
        customer["wallet"] = wallets.get(customer["id"])
    path = folder / "with_wallets.json"
    path.write_text(json.dumps(declared))
    return path


def test_a_wallet_of_the_bootstrap_file_brings_its_customer_what_it_deposited(start, tmp_path):
    fabric = start()
    told(fabric, 1, DepositRow(account=WALLET.lower(), dc=500, total_dc=500))
    assert fabric.call("GET", "/v1/account")["available_dc"] == str(BALANCE)
    for _ in range(2):
        fabric = start(bootstrap=with_wallet(tmp_path, alice=WALLET))
        assert fabric.call("GET", "/v1/account")["available_dc"] == str(BALANCE + 500)
    told(fabric, 2, DepositRow(account=WALLET.lower(), dc=7, total_dc=507))
    assert fabric.call("GET", "/v1/account")["available_dc"] == str(BALANCE + 507)
    assert fabric.audit() == []
    with pytest.raises(BootstrapError, match="for good"):
        start(bootstrap=with_wallet(tmp_path, bob=WALLET))


def earned(fabric: Fabric) -> list[tuple[str, int]]:
    """(holder, GPU-ms) of the usage that stands."""
    with fabric.plane.database.read() as session:
        undone = "SELECT reverses_id FROM ledger_entry WHERE reverses_id IS NOT NULL"
        rows = session.connection().exec_driver_sql(
            f"SELECT holder, gpu_ms FROM ledger_usage WHERE entry_id NOT IN ({undone}) AND gpu_ms > 0 ORDER BY entry_id"
        )
        return [(holder, ms) for holder, ms in rows]


def test_a_gpu_earns_for_whoever_held_its_nft_when_it_was_used(fabric, agent, clock):
    run = fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(10_000)
    agent.receipt(grant, ReceiptKind.TICK, 10_000)
    assert earned(fabric) == [(PAYOUT, 10_000)]
    minted_ms = fabric.plane.now_ms() - 2_999
    gpu_id = gpu_id_hex(grant.gpus[0].uuid)
    told(fabric, 1, OwnerRow(gpu_id=gpu_id, holder=HEIDI, from_ms=minted_ms))
    assert earned(fabric) == [(PAYOUT, 7_000), (HEIDI, 3_000)], "what is not final is booked again"
    agent.beat(4_000)
    agent.receipt(grant, ReceiptKind.TICK, 14_000)
    told(fabric, 2, OwnerRow(gpu_id=gpu_id, holder=PAYOUT, from_ms=fabric.plane.now_ms() + 1_001))
    agent.beat(4_000)
    agent.receipt(grant, ReceiptKind.TICK, 18_000)
    assert earned(fabric)[2:] == [(HEIDI, 4_000), (HEIDI, 1_000), (PAYOUT, 3_000)]
    assert int(fabric.run(run["id"])["cost"]["accrued_dc"]) == 1800
    assert fabric.audit() == []


def test_usage_is_final_only_as_far_as_the_holders_are_known(fabric, agent, clock):
    fabric.submit(gpu=["H100"])
    grant = agent.expect(link.Grant)
    agent.open(grant)
    agent.beat(10_000)
    agent.receipt(grant, ReceiptKind.TICK, 10_000)
    used_ms = fabric.plane.now_ms()
    clock.advance(3_600_000)

    def final_dc(session: Session) -> int:
        return Ledger(session, fabric.plane.clock, fabric.plane.ledger_settings, known_ms).finalise_usage()

    for number, time_ms, expected in ((1, used_ms - 5_000, 0), (2, used_ms + 2_000, 1000)):
        told(fabric, number, time_ms=time_ms)
        with fabric.plane.database.write() as session:
            assert final_dc(session) == expected
            assert session.scalars(select(UsageRow.entry_id)).first() is not None
