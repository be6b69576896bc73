"""From journals to receipts: exactly once, in a chain that verifies, whatever was read how often and stored when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from fabric.agent import events
from fabric.agent.events import Closed, Finished, Opened, Passed, Ticked
from fabric.agent.journal import framed_bytes
from fabric.agent.meter import LeaseMeter
from fabric.agent.outbox import CorruptState, Outbox
from fabric.agent.sealer import SEAL_MS, Account, Sealer
from fabric.wire.receipts import MAX_TASKS, ReceiptKind, SignedReceipt

KEY = SigningKey(bytes(range(32)))
MS = 1_000_000


def journal_of(leases: int, tasks: int) -> list[bytes]:
    """Leases that run side by side, one frame of one task at a time."""
    told: list[events.Event] = [events.Began("boot")]
    now = 0
    told += [Opened(f"lease_{n}", 1, now, f"run_{n}", "session_1", ((f"GPU-{n}", 1000),), True) for n in range(leases)]
    for task in range(tasks):
        for n in range(leases):
            now += 3 * MS
            told.append(Passed(f"lease_{n}", 1, now, f"run_{n}", ((task, 1),)))
        for n in range(leases):
            now += 5 * MS
            told.append(Finished(f"lease_{n}", 1, now, f"run_{n}", ((task, 1, "done", b"", 1),)))
            told.append(Ticked(f"lease_{n}", 1, now, (0,), (0,)))
    for n in range(leases):
        now += MS
        told.append(Closed(f"lease_{n}", 1, now, "done"))
    return [events.encode(event) for event in told]


class Agent:
    """Sealer and outbox as the agent uses them; `sent` is all that ever left it, in order, resends included."""

    def __init__(self, path) -> None:
        self.path = path
        self.sent: dict[str, dict[int, bytes]] = {}
        self.start()

    def start(self) -> None:
        self.outbox = Outbox(self.path)
        self.sealer = Sealer("op_1", KEY)
        self.now_ms = 0
        for stored in self.outbox.leases():
            account = Account(
                stored.node, LeaseMeter.from_state(stored.state), stored.covered, stored.seq, stored.previous
            )
            account.finished = stored.closed is not None
            self.sealer.restore(account)
            self._send(stored.key[0], self.outbox.unacknowledged(stored.key))
        self.offset = self.outbox.nodes().get("n1", ("j", 0))[1]

    def kill(self) -> None:
        self.outbox.close()
        self.start()

    def read(self, records: list[bytes], count: int) -> None:
        """The next `count` records of the journal from where it was read to."""
        at = position = 0
        while position < self.offset:
            position += framed_bytes(records[at])
            at += 1
        self.offset = self.sealer.apply("n1", self.offset, records[at : at + count])

    def seal(self, at_most: int = 100) -> None:
        self.now_ms += 1000
        due = self.sealer.due(self.now_ms)[:at_most]
        sealed = [self.sealer.seal(account, "fabric", (1, b"n" * 32), self.now_ms) for account in due]
        self.outbox.store(sealed, [("n1", "j", self.sealer.low_water("n1", self.offset))])
        for each in sealed:
            self._send(each.key[0], each.receipts)

    def _send(self, lease: str, receipts) -> None:
        for seq, data in receipts:
            known = self.sent.setdefault(lease, {}).setdefault(seq, data)
            assert known == data, "a number was used for two different receipts"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 6),
    st.lists(st.sampled_from(["read", "read", "seal", "seal one", "kill"]), max_size=25),
    st.integers(1, 7),
)
def test_each_task_is_told_exactly_once_whatever_is_killed_when(tmp_path_factory, leases, tasks, steps, piece):
    agent = Agent(tmp_path_factory.mktemp("agent") / "receipts.db")
    records = journal_of(leases, tasks)
    for step in steps:
        match step:
            case "read":
                agent.read(records, piece)
            case "kill":
                agent.kill()
            case _:
                agent.seal(1 if step == "seal one" else 100)
    agent.read(records, len(records))
    agent.seal()
    agent.outbox.close()
    for n in range(leases):
        chain = [SignedReceipt.from_bytes(data) for _, data in sorted(agent.sent[f"lease_{n}"].items())]
        receipts = [signed.verify(bytes(KEY.verify_key)) for signed in chain]
        assert [receipt.seq for receipt in receipts] == list(range(len(receipts)))
        assert [r.previous for r in receipts] == [bytes(32), *(r.hash for r in receipts[:-1])]
        assert receipts[0].kind == ReceiptKind.OPEN
        assert [r.seq for r in receipts if r.kind == ReceiptKind.CLOSE] == [receipts[-1].seq]
        assert [line.task for signed in chain for line in signed.tasks] == list(range(tasks))
        totals = [sum(gpu.gpu_ms for gpu in receipt.gpus) for receipt in receipts]
        assert totals == sorted(totals)


def test_more_tasks_than_a_receipt_holds_make_several(tmp_path):
    agent = Agent(tmp_path / "receipts.db")
    count = MAX_TASKS + 10
    tasks = tuple((task, 1) for task in range(count))
    told = [
        Opened("lease_0", 1, 0, "run_0", "session_1", (("GPU-0", 1000),), True),
        Passed("lease_0", 1, 0, "run_0", tasks),
        Finished("lease_0", 1, MS, "run_0", tuple((task, 1, "done", b"", 1) for task, _ in tasks)),
    ]
    records = [events.encode(event) for event in told]
    agent.read(records, 3)
    agent.seal()
    sizes = [len(SignedReceipt.from_bytes(data).tasks) for _, data in sorted(agent.sent["lease_0"].items())]
    assert sizes == [0, MAX_TASKS, 10]
    agent.outbox.close()


def test_finished_tasks_wait_a_moment_for_others_and_no_longer():
    sealer = Sealer("op_1", KEY)
    records = journal_of(1, 1)
    sealer.apply("n1", 0, records[:2])
    (account,) = sealer.due(0)
    sealer.seal(account, "fabric", (1, b""), 0)
    sealer.apply("n1", sum(map(framed_bytes, records[:2])), records[2:4])
    assert sealer.due(SEAL_MS - 1) == []
    assert sealer.due(SEAL_MS) == [account]


def test_a_lease_of_a_lost_node_is_closed_at_the_last_moment_known():
    sealer = Sealer("op_1", KEY)
    sealer.apply("n1", 0, journal_of(1, 1)[:3])
    sealer.abandon("n1", "operator_lost")
    (account,) = sealer.due(0)
    sealed = sealer.seal(account, "fabric", (1, b""), 0)
    last = SignedReceipt.from_bytes(sealed.receipts[-1][1])
    assert (last.receipt.kind, last.receipt.reason) == (ReceiptKind.CLOSE, "operator_lost")
    assert [(line.task, line.reason) for line in last.tasks] == [(0, "operator_lost")]


def test_an_acknowledged_receipt_leaves_the_disk_and_the_others_stay(tmp_path):
    agent = Agent(tmp_path / "receipts.db")
    records = journal_of(1, 3)
    for count in (2, 3, 3):
        agent.read(records, count)
        agent.seal()
    assert [seq for seq, _ in agent.outbox.unacknowledged(("lease_0", 1))] == [0, 1, 2]
    agent.outbox.ack(("lease_0", 1), 1)
    assert [seq for seq, _ in agent.outbox.unacknowledged(("lease_0", 1))] == [2]
    agent.outbox.close()


def test_a_file_that_is_no_outbox_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "receipts.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptState, match="move the file away"):
        Outbox(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_second_agent_on_the_same_state_is_refused(tmp_path, monkeypatch):
    first = Outbox(tmp_path / "receipts.db")
    with pytest.raises(CorruptState, match="no other agent"):
        Outbox(tmp_path / "receipts.db")
    first.close()
