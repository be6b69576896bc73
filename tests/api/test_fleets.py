"""The fleet kept in memory is the one that the rows describe, whatever was committed or rolled back before."""

import random
import threading

import pytest
from scripted import KEY, Agent, gpu, nodes
from sqlmodel import select

from api import fleet as fleets
from api.broker import Broker
from api.fleets import forget_old
from api.placement_tables import FleetChangeRow
from api.schemas import RunRequest
from api.tables import LeaseRow, OperatorRow
from fabric.wire import link
from fabric.wire.errors import NoCapacity
from fabric.wire.ids import new_id


def picture(fleet):
    """What is free where, at what price and whose."""
    found = {}
    for name, node in fleet.nodes.items():
        rows = fleet.rows_of(name)
        seats = {one.uuid: fleet.seat(one.uuid) for one in node.gpus}
        free = {uuid: int(fleet.free[seat[1], seat[0]]) for uuid, seat in seats.items() if seat is not None}
        found[name] = (node, free, [fleet.room[:, row].tolist() for row in rows])
    return found


def agrees(plane):
    """Both kept fleets, and what would be if every agent were there, are what the rows say."""
    for known in (False, True):
        for transaction, writes in ((plane.database.read, False), (plane.database.write, True)):
            with transaction() as session:
                kept = picture(plane.fleets.at(session, plane.now_ms(), writes=writes, known=known))
                assert kept == picture(fleets.load(session, plane.now_ms(), known=known))


class Undone(Exception):
    pass


def fail():
    raise Undone


def submit(plane, random_, undo=False):
    wishes = random_.choice([{}, {"gpu": ["H100"]}, {"gpu": ["L4"], "cpu_milli": 4000}, {"gpu": ["H100:2"]}])
    who = random_.choice(["alice", "bob", "admin"])
    request = RunRequest(id=new_id("run"), session=f"ses-{who}", python="3.11", **wishes)
    try:
        with plane.database.write() as session:
            broker = Broker(plane, session)
            run = broker.submit(who, request)
            if undo:
                broker.more_leases(run, 1, [])
                fail()
    except (Undone, NoCapacity):
        pass


def release(plane, random_):
    with plane.database.write() as session:
        leases = list(session.scalars(select(LeaseRow).where(LeaseRow.state == "GRANTED").order_by(LeaseRow.id)))
        if leases:
            lease = random_.choice(leases)
            Broker(plane, session).release(lease, lease.generation, "done")
            session.flush()


def change_inventory(agent, random_):
    offered = [gpu(n, random_.choice(["H100", "L4"]), healthy=random_.random() < 0.8) for n in range(1, 5)]
    both = nodes(*offered[:2], name="node-1") + nodes(*offered[2:], name="node-2", cpu_milli=8000)
    agent.send(link.Inventory(nodes=both[: random_.choice([1, 2, 2])]))
    agent.beat()
    agent.beat()


@pytest.mark.parametrize("seed", range(4))
def test_a_kept_fleet_is_what_the_rows_say_after_anything(fabric, seed):
    agent = Agent(fabric, nodes=nodes(gpu(1), gpu(2)) + nodes(gpu(3, "L4"), gpu(4), name="node-2", cpu_milli=8000))
    agent.connect()
    random_ = random.Random(seed)
    for _ in range(14):
        act = random_.randrange(7)
        if act < 2:
            submit(fabric.plane, random_)
        elif act == 2:
            submit(fabric.plane, random_, undo=True)
        elif act == 3:
            release(fabric.plane, random_)
        elif act == 4:
            change_inventory(agent, random_)
        elif act == 5:
            agent.beat(random_.choice([1000, 70_000]))
        else:
            agent.close()
            agent = Agent(fabric, nodes=nodes(gpu(1), gpu(2)))
            agent.connect()
        agrees(fabric.plane)


def test_a_lost_node_and_its_return_are_followed(fabric, agent):
    agrees(fabric.plane)
    for lost in (["node-1"], []):
        fabric.tick()
        agent.send(link.Heartbeat(nonce_seq=agent.expect(link.Nonce).seq, lost_nodes=lost))
        heard = (bool(fabric.call("GET", "/v1/offers")["offers"]) != bool(lost) for _ in range(500))
        assert any(heard)
        agrees(fabric.plane)


def test_another_reputation_is_followed(fabric, agent):
    fabric.submit(min_reputation=700, queue_timeout_ms=0, expect=409)
    with fabric.plane.database.write() as session:
        session.get_one(OperatorRow, "op-1").reputation = 700
    agrees(fabric.plane)
    assert fabric.submit(min_reputation=700)["state"] == "STARTING"
    assert fabric.submit(min_reputation=800, expect=409)["next_best"]["change"] == "min_reputation"


def test_changes_are_forgotten_and_a_fleet_unused_for_long_is_built_anew(fabric, agent):
    agrees(fabric.plane)
    for _ in range(25):
        agent.beat(30_000)
    with fabric.plane.database.write() as session:
        forget_old(session, fabric.plane.now_ms())
    with fabric.plane.database.read() as session:
        assert session.scalars(select(FleetChangeRow)).all() == []
    agrees(fabric.plane)


def test_what_changed_is_read_in_portions_and_each_lease_once(fabric, monkeypatch):
    agent = Agent(fabric, nodes=nodes(gpu(1)) + nodes(gpu(2), name="node-2"))
    agent.connect()
    for _ in range(2):
        fabric.submit(gpu=["H100"])
    plane = fabric.plane
    monkeypatch.setattr(fleets, "_PORTION", 1)
    with plane.database.read() as session:
        fleet = fleets.load(session, plane.now_ms())
        before, supply = picture(fleet), fleets.suppliers(session, plane.now_ms())
        fleets.reload(session, fleet, supply, [fleets.split_node(name) for name in fleet.nodes])
        assert picture(fleet) == before
        assert [len(part.gpus) for held in fleet.leases.values() for part in held.assignments] == [1, 1]


def test_who_finds_the_kept_fleet_taken_gets_one_from_the_rows(fabric, agent):
    plane, mine = fabric.plane, []
    with plane.database.read() as session:
        kept = plane.fleets.at(session, plane.now_ms(), writes=False)

        def look():
            with plane.database.read() as other:
                mine.append(plane.fleets.at(other, plane.now_ms(), writes=False))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert mine[0] is not kept
    assert picture(mine[0]) == picture(kept)
    with plane.database.read() as session:
        assert plane.fleets.at(session, plane.now_ms(), writes=False) is kept


def test_a_node_whose_gpus_all_fell_ill_under_a_lease_stops_nobody(fabric, agent):
    fabric.submit(gpu=["H100"])
    agent.send(link.Inventory(nodes=nodes(gpu(1, healthy=False), gpu(2, healthy=False))))
    agent.beat()
    other = Agent(fabric, cluster="other", nodes=nodes(gpu(9)), key=KEY)
    other.connect()
    assert fabric.submit(gpu=["H100"])["explain"]["chosen"]["cluster"] == "op-1/other"
    agrees(fabric.plane)
