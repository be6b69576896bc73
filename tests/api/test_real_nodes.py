"""From the SDK to the bill over a real control plane, agent and nodes: evictions, and a gang on two nodes."""

import os
import shutil
import threading
import time

import pytest

import fabric
from benchmarks.small_fabric import BALANCE_DC as BALANCE
from benchmarks.small_fabric import SmallFabric
from fabric.agent.sandbox.tun import DEVICE
from fabric.client import session as sessions
from tests.workloads.training import loops
from workloads import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
]


@pytest.fixture
def real(tmp_path):
    made = []

    def make(**options):
        made.append(SmallFabric(tmp_path, **options))
        fabric.init(made[-1].url, "key-alice")
        return made[-1]

    yield make
    sessions.end()
    fabric.init()
    for one in made:
        one.tell()
        one.stop()


def cost_up(gpu_ms, price):
    return -(-gpu_ms * price // 3_600_000)


def is_billed_exactly(real, who, *runs):
    """Each lease costs its metered time at its price, and the account has paid that and nothing else."""
    leases = {lease["id"]: lease for run in runs for lease in real.get(f"/v1/runs/{run}", who)["leases"]}
    for lease in leases.values():
        assert int(lease["charged_dc"]) == cost_up(lease["gpu_ms"], int(lease["price_dc_per_gpu_hour"]))
        assert lease["gpu_ms"] >= 1_000, "the least that a lease costs"
    account = real.get("/v1/account", who)
    spent = sum(int(lease["charged_dc"]) for lease in leases.values())
    return (int(account["available_dc"]), account["held_dc"]) == (BALANCE - spent, "0")


def train():
    """Counts up; the first time for ever, and from where it was when it comes back."""
    import time

    import fabric

    count = fabric.checkpoint_dir() / "count"
    begun = int(count.read_text()) if count.exists() else 0
    done = begun
    fabric.on_preempt(lambda left_s: count.write_text(str(done)))
    while not begun or done < begun + 10:
        done += 1
        time.sleep(0.02)
    return begun, done


def nap(seconds):
    import time

    time.sleep(seconds)
    return seconds


def test_a_spot_run_leaves_for_an_on_demand_one_and_goes_on_from_its_checkpoint(real):
    made = real(nodes=1, notice_ms=1_500)
    fabric.init(made.url, "key-bob")
    spot = fabric.submit(train, gpu="L4", tier="spot", budget=1).id
    made.wait(lambda: made.get(f"/v1/runs/{spot}", "bob")["attempts"], "the start of the spot run")
    fabric.init(made.url, "key-alice")
    assert fabric.run(nap, 0.1, gpu="L4", linger=0) == 0.1
    (evictor,) = made.get("/v1/runs")["runs"]

    fabric.init(made.url, "key-bob")
    begun, done = fabric.attach(spot).result(timeout=60)
    assert begun > 0, "what the hook wrote at the notice was there again"
    assert done == begun + 10
    facts = made.ended(spot, "bob")
    assert [(one["attempt"], one["reason"]) for one in facts["attempts"]] == [(1, "preempted"), (2, "done")]
    first, second = facts["leases"]
    assert (first["reason"], second["reason"]) == ("preempted", "done")
    assert first["gpu_ms"] >= 1_500, "the promised notice is billed"
    made.ended(evictor["id"])
    for who, run in (("bob", spot), ("alice", evictor["id"])):
        leases = made.get(f"/v1/runs/{run}", who)["leases"]
        spent = sum(int(lease["charged_dc"]) for lease in leases)
        account = made.get("/v1/account", who)
        assert (int(account["available_dc"]), account["held_dc"]) == (BALANCE - spent, "0")
    assert is_billed_exactly(made, "bob", spot)
    assert made.audit() == []


def test_a_spot_map_gives_an_evicted_lease_back_after_its_task_and_goes_on_elsewhere(real):
    made = real(nodes=2)
    got, waited = [], []

    def evict():
        began = time.monotonic()
        fabric.run(nap, 0.0, gpu="L4", linger=0)
        waited.append(time.monotonic() - began)

    other = threading.Thread(target=evict)
    for seconds in fabric.map(nap, [0.2] * 60, gpu="L4", tier="spot", max_parallel=2, ordered=False, linger=0):
        got.append(seconds)
        if len(got) == 8:
            (running,) = made.get("/v1/runs")["runs"]
            assert len(running["leases"]) == 2
            other.start()
    other.join(60)
    assert len(got) == 60
    assert waited[0] < 25, "not the 30 s that were promised: nothing more was sent there"
    run = made.ended(running["id"])
    assert (run["state"], run["tasks"]["done"], run["tasks"]["failed"]) == ("SUCCEEDED", 60, 0)
    assert "preempted" in {lease["reason"] for lease in run["leases"]}
    assert made.audit() == []


def rank(word):
    """Rank 1 tells rank 0 a word through the gang's network; rank 0 answers with all it knows."""
    import os
    import socket
    import time

    peers = os.environ["FABRIC_PEERS"].split(",")
    number, port = int(os.environ["FABRIC_RANK"]), int(os.environ["FABRIC_RENDEZVOUS_PORT"])
    print(f"rank {number} of {os.environ['FABRIC_WORLD_SIZE']}")  # noqa: T201 - a customer's function
    if number == 0:
        with socket.create_server((peers[0], port)) as server:
            connection, (source, _) = server.accept()
            with connection:
                return connection.recv(100).decode(), source == peers[1]
    until = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((peers[0], port), timeout=5) as connection:
                connection.sendall(word.encode())
                return None
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"needs {DEVICE}")
def test_a_gang_talks_and_trains_over_its_own_network_and_is_billed_for_both_nodes(real):
    pytest.importorskip("torch")
    made = real(nodes=2)
    assert fabric.run(rank, "hello", gpu="L4", nodes=2) == ("hello", True)
    trained = Training(loops.digits, quiet=True, gpu="L4", nodes=2).run(2)
    assert (trained.world_size, trained.attempts) == (2, 1)
    assert trained.metrics[-1]["step"] == 2 * (1437 // 64), "two ranks of 32 each, gradients over gloo"
    assert trained.value[1] > 0.5
    runs = [made.ended(run["id"]) for run in made.get("/v1/runs")["runs"]]
    assert trained.run in {run["id"] for run in runs}
    for run in runs:
        assert run["state"] == "SUCCEEDED"
        assert {lease["node"] for lease in run["leases"]} == {"node-1", "node-2"}
        assert sorted((one["task"], one["reason"]) for one in run["attempts"]) == [(0, "done"), (1, "done")]
    assert is_billed_exactly(made, "alice", *(run["id"] for run in runs))
    assert made.audit() == []
