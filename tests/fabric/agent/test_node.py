"""A node with real children: what a customer sees of it."""
# ruff: noqa: T201 - customers' functions print

import asyncio
import functools
import hashlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fabric.agent import dialect, events
from fabric.client.baggage import Baggage, Carrying
from fabric.client.command import run_command
from fabric.client.workdir import pack_workdir
from fabric.wire import channel, job
from fabric.wire.reasons import Reason


def crash(number: int) -> None:
    os.kill(os.getpid(), number)


async def test_a_function_runs_and_its_value_comes_back(site):
    customer = await site.leased()
    customer.call(customer.function(lambda x: x + 1), 41)
    assert await customer.outcomes(1) == {0: 42}


async def adds_later(a, b):
    await asyncio.sleep(0)
    if b is None:
        raise KeyError("gone")
    return a + b


@pytest.mark.parametrize("function", [adds_later, functools.partial(adds_later)])
async def test_a_coroutine_is_run_to_its_end(site, function):
    customer = await site.leased()
    digest = customer.function(function)
    customer.calls(digest, [(0, (1, 2)), (1, (1, None))])
    outcomes = await customer.outcomes(2)
    assert outcomes[0] == 3
    assert isinstance(outcomes[1], KeyError)
    assert "in adds_later" in outcomes[1].__notes__[0]
    assert "fabric/agent/child.py" not in outcomes[1].__notes__[0]
    assert "fabric/wire" not in outcomes[1].__notes__[0]


async def test_an_exception_comes_back_with_its_remote_traceback_and_without_our_frames(site):
    def fails():
        raise KeyError("gone")

    customer = await site.leased()
    customer.call(customer.function(fails))
    error = (await customer.outcomes(1))[0]
    assert isinstance(error, KeyError)
    note = error.__notes__[0]
    assert "in fails" in note
    assert "fabric/agent/child.py" not in note


async def test_a_function_that_cannot_be_unpickled_fails_each_of_its_tasks(site):
    customer = await site.leased()
    broken = b"\x80\x05cno_such_module\nf\n."
    digest = hashlib.sha256(broken).digest()
    customer.send([channel.FN, digest], broken)
    customer.calls(digest, [(0, ()), (1, ())])
    outcomes = await customer.outcomes(2)
    assert all("no_such_module" in str(error) for error in outcomes.values())


async def test_what_cannot_travel_says_where_it_stands_in_the_result(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: {"model": [threading.Lock()]}))
    assert 'result["model"][0]' in (await customer.outcomes(1))[0]


async def test_a_large_array_goes_up_and_comes_back_whole(site):
    customer = await site.leased()
    array = np.arange(3_000_000, dtype=np.float64)
    customer.call(customer.function(lambda a: a * 2), array)
    result = (await customer.outcomes(1))[0]
    assert np.array_equal(result, array * 2)


async def test_a_killed_child_fails_the_running_task_and_the_ones_behind_it_go_on(site):
    customer = await site.leased()
    die, ok = customer.function(crash), customer.function(lambda x: x)
    customer.call(die, signal.SIGSEGV, task=0)
    customer.calls(ok, [(1, (1,)), (2, (2,))])
    customer.call(ok, 3, task=3)
    outcomes = await customer.outcomes(4)
    assert outcomes[0][2] == Reason.CRASHED
    assert "SIGSEGV" in outcomes[0][3]
    assert [outcomes[task] for task in (1, 2, 3)] == [1, 2, 3]


async def test_within_one_frame_only_the_task_that_ran_fails_by_the_crash(site):
    def work(x):
        if x == 1:
            time.sleep(0.05)
            os._exit(7)
        return x

    customer = await site.leased()
    customer.calls(customer.function(work), [(0, (0,)), (1, (1,)), (2, (2,))])
    outcomes = await customer.outcomes(3)
    assert outcomes[0] == 0
    assert outcomes[1][2:] == [Reason.CRASHED, "the process that ran the function ended with exit code 7", 7]
    assert outcomes[2] == 2


async def test_children_that_die_before_every_task_do_not_go_on_for_ever(site):
    class Deadly:
        def __reduce__(self):
            return os._exit, (3,)

    customer = await site.leased()
    deadly = pickle.dumps(Deadly())
    digest = hashlib.sha256(deadly).digest()
    customer.send([channel.FN, digest], deadly)
    customer.call(digest)
    assert (await customer.outcomes(1))[0][2] == Reason.CRASHED


async def test_a_task_beyond_its_timeout_is_killed_and_the_next_one_runs(site):
    customer = await site.leased()
    function = customer.function(lambda s: time.sleep(s) or s)
    customer.call(function, 30, task=0, timeout_ms=150)
    customer.call(function, 0, task=1, timeout_ms=5000)
    outcomes = await customer.outcomes(2)
    assert outcomes[0][2] == Reason.TIMEOUT
    assert outcomes[1] == 0


async def test_a_task_that_runs_out_of_memory_is_oom_and_the_child_lives_on(site):
    def greedy():
        raise MemoryError("no more")

    customer = await site.leased()
    customer.call(customer.function(os.getpid), task=0)
    customer.call(customer.function(greedy), task=1)
    customer.call(customer.function(os.getpid), task=2)
    outcomes = await customer.outcomes(3)
    assert outcomes[1][2] == Reason.OOM
    assert "in greedy" in outcomes[1][3]
    assert outcomes[0] == outcomes[2]


async def test_a_child_that_takes_more_memory_than_its_lease_has_is_killed_as_oom(site):
    def greedy():
        held = bytearray(400 << 20)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(60)

    customer = await site.leased(memory_bytes=200 << 20)
    customer.call(customer.function(greedy))
    failure = (await customer.outcomes(1))[0]
    assert failure[2] == Reason.OOM
    assert "the lease has 209715200" in failure[3]


async def test_cancel_kills_the_running_task_and_drops_the_waiting_ones(site):
    customer = await site.leased()
    function = customer.function(lambda s: (print("on", flush=True), time.sleep(s), s)[2])
    for task in range(4):
        customer.call(function, 30 if task < 3 else 0, task=task)
    await customer.next(channel.LOG)
    customer.send([channel.CANCEL, "run_1", [0, 1, 2]])
    outcomes = await customer.outcomes(4)
    assert [outcomes[task][2] for task in range(3)] == [Reason.CANCELLED_BY_USER] * 3
    assert outcomes[3] == 0


async def test_cancel_of_another_run_touches_nothing(site):
    customer = await site.leased()
    function = customer.function(lambda x: x)
    customer.send([channel.CANCEL, "run_2", []])
    customer.call(function, 5)
    assert await customer.outcomes(1) == {0: 5}


async def test_every_line_of_a_task_comes_before_its_result_and_names_the_task(site):
    def talk(n):
        print("out", n)
        print("err", n, file=sys.stderr)
        os.write(1, b"raw %d\n" % n)
        subprocess.run(["/bin/echo", f"child {n}"], check=True)
        print("no newline", n, end="")
        return n

    customer = await site.leased()
    count = 40
    customer.calls(customer.function(talk), [(task, (task,)) for task in range(count)])
    await customer.outcomes(count)
    seen, done = {}, set()
    for header, _ in customer.frames:
        if header[0] == channel.LOG:
            assert header[2] not in done, "a line came after its task's result"
            seen.setdefault(header[2], []).extend(text for _, _, text in header[3])
        elif header[0] == channel.RESULT:
            done |= {entry[0] for entry in header[2]}
    for task in range(count):
        expected = {f"out {task}", f"err {task}", f"raw {task}", f"child {task}", f"no newline {task}"}
        assert set(seen[task]) == expected


async def test_a_line_streams_while_its_task_still_runs(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: (print("begun"), time.sleep(30))))
    header, _ = await customer.next(channel.LOG, within_s=10)
    assert header[3][0][2] == "begun"


async def test_progress_streams_to_the_customer(site):
    def works():
        job.report_progress(1, 4)
        return 1

    customer = await site.leased()
    customer.call(customer.function(works))
    header, _ = await customer.next(channel.PROGRESS)
    assert header == [channel.PROGRESS, "run_1", 0, 1, 4]


async def test_a_result_is_kept_until_it_is_acknowledged_and_resume_runs_nothing_twice(site, tmp_path):
    log = tmp_path / "ran"
    log.touch()

    def once(path, n):
        with Path(path).open("a") as file:
            file.write(f"{n}\n")
        time.sleep(0.2)
        return n

    customer = await site.leased()
    function = customer.function(once)
    for task in range(3):
        customer.call(function, str(log), task, task=task)
    assert await customer.outcomes(1) == {0: 0}
    customer.stream.abort()
    again = await site.customer()
    again.send([channel.RESUME, "run_1", [[0, 1], [1, 1], [2, 1], [9, 1]]])
    header, _ = await again.next(channel.UNKNOWN)
    assert header == [channel.UNKNOWN, "run_1", [9]]
    again.call(again.function(once), str(log), 1, task=1)
    unread = [frame for frame in again.frames if frame[0][0] == channel.RESULT]
    assert unread, "the result that was not acknowledged came again"
    while {entry[0] for header, _ in again.frames if header[0] == channel.RESULT for entry in header[2]} != {0, 1, 2}:
        await again.next(channel.RESULT)
    assert sorted(log.read_text().split()) == ["0", "1", "2"]


async def test_an_acknowledged_result_is_forgotten(site):
    customer = await site.leased()
    customer.call(customer.function(lambda: 1))
    await customer.outcomes(1)
    customer.send([channel.ACK, "run_1", [0]])
    customer.send([channel.RESUME, "run_1", [[0, 1]]])
    header, _ = await customer.next(channel.UNKNOWN)
    assert header[2] == [0]


async def test_a_newer_attempt_of_a_task_runs_again(site):
    customer = await site.leased()
    function = customer.function(lambda x: x)
    customer.call(function, 1, attempt=1)
    assert await customer.outcomes(1) == {0: 1}
    customer.call(function, 2, attempt=2)
    assert await customer.outcomes(1) == {0: 2}


async def test_release_ends_the_child_bills_a_second_and_tells_the_customer(site):
    customer = await site.leased()
    function = customer.function(lambda: time.sleep(60))
    customer.call(function)
    site.agent.send([dialect.CLOSE, "lease_1", 1, "cancelled_by_user"])
    header, _ = await customer.next(channel.CLOSED)
    assert header[1] == "cancelled_by_user"
    await customer.end()
    closed = [event for event in site.events() if isinstance(event, events.Closed)]
    finished = [event for event in site.events() if isinstance(event, events.Finished)]
    assert [event.reason for event in closed] == ["cancelled_by_user"]
    assert [entry[2] for event in finished for entry in event.tasks] in ([], ["cancelled_by_user"])


async def test_a_gpu_is_given_to_one_lease_at_a_time(site):
    customer = await site.leased("lease_1")
    await site.open("lease_2")
    header, _ = await site.agent.next(dialect.ENDED)
    assert header[1:4] == ["lease_2", 1, "no_capacity"]
    site.agent.send([dialect.CLOSE, "lease_1", 1, "done"])
    await customer.next(channel.CLOSED)
    await site.leased("lease_2")


async def test_a_gpu_that_the_node_does_not_have_is_refused(site):
    await site.open(gpus=[["GPU-nobody", 1000]])
    header, _ = await site.agent.next(dialect.ENDED)
    assert header[3] == "gpu_unhealthy"


async def test_a_simulated_gpu_is_given_whole_or_not_at_all(site):
    await site.open(gpus=[[site.gpus[0], 500]])
    header, _ = await site.agent.next(dialect.ENDED)
    assert header[3] == "no_capacity"


async def test_two_leases_have_two_children(site):
    first = await site.leased("lease_1", gpus=[[site.gpus[0], 1000]])
    second = await site.leased("lease_2", gpus=[[site.gpus[1], 1000]])
    pids = []
    for customer in (first, second):
        customer.call(customer.function(os.getpid))
        pids.append((await customer.outcomes(1))[0])
    assert len({*pids, os.getpid()}) == 3


async def test_a_child_knows_nothing_of_the_nodes_environment(site, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    customer = await site.leased()
    customer.call(customer.function(lambda: dict(os.environ)))
    environment = (await customer.outcomes(1))[0]
    assert "RAY_AUTH_TOKEN" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    "frame",
    [
        [channel.CALL, "run_1", b"x", [[0, 1, [5]]], 0],
        [channel.CALL, "run_1", b"x", [[0, 1, []]], 0],
        [channel.CALL, "run_1", b"x", [], 0],
        [channel.CALL, "run_1", b"x", [[-1, 1, [0]]], 0],
        [channel.CALL, 5, b"x", [[0, 1, [0]]], 0],
        [channel.FN, b"not the digest"],
        [channel.ACK],
        ["nonsense"],
        [dialect.CLOSE, "lease_1", 1, "done"],
    ],
)
async def test_a_malformed_frame_ends_the_connection_and_not_the_lease(site, frame):
    customer = await site.leased()
    customer.send(frame)
    await customer.end()
    again = await site.customer()
    again.call(again.function(lambda: 1))
    assert await again.outcomes(1) == {0: 1}


async def test_functions_without_end_end_the_connection_and_the_same_one_again_does_not(site, monkeypatch):
    monkeypatch.setattr("fabric.agent.functions.FUNCTION_BYTES", 10_000)
    customer = await site.leased()
    for _ in range(3):
        customer.send([channel.FN, hashlib.sha256(bytes(9_000)).digest()], bytes(9_000))
    customer.call(customer.function(abs), -1)
    assert await customer.outcomes(1) == {0: 1}
    customer.send([channel.FN, hashlib.sha256(bytes(1_000)).digest()], bytes(1_000))
    await customer.end()


@pytest.mark.parametrize("data", [b"\xff" * 12, b"\x00" * 12, b"\x05\x00\x00\x00" + bytes(8) + b"abcde"])
async def test_bytes_that_are_no_frame_end_the_connection(site, data):
    customer = await site.leased()
    customer.stream._transport.write(data)
    await customer.end()


@pytest.mark.parametrize(
    "first", [[dialect.CONTROL, "guess"], [dialect.CHANNEL, "guess", "lease_1", 1], [channel.PING, 1]]
)
async def test_a_connection_without_the_nodes_token_gets_nothing(site, peer, first):
    await site.leased()
    await peer.connect(site.address)
    peer.send(first)
    await peer.end()
    assert not peer.frames


async def test_a_channel_to_another_generation_is_closed(site, peer):
    await site.leased()
    await peer.connect(site.address)
    peer.send([dialect.CHANNEL, site.token, "lease_1", 2])
    header, _ = await peer.next(channel.CLOSED)
    assert header[1] == Reason.OPERATOR_LOST


async def test_what_a_restarted_node_had_open_is_closed_at_the_last_moment_known(make_site):
    first = make_site()
    await first.start()
    customer = await first.leased()
    customer.call(customer.function(lambda: time.sleep(60)))
    while not any(isinstance(event, events.Passed) for event in first.events()):
        customer.send([channel.PING, 1])
        await customer.next(channel.PONG)
    last = first.events()[-1].ns
    await first.crash()
    second = make_site()
    await second.start()
    told = second.events()
    closed = next(event for event in told if isinstance(event, events.Closed))
    finished = next(event for event in told if isinstance(event, events.Finished))
    assert (closed.reason, finished.tasks[0][2]) == (Reason.OPERATOR_LOST, Reason.OPERATOR_LOST)
    assert closed.ns == finished.ns == last
    assert second.hello["leases"] == []
    await second.stop()


async def test_a_stopped_node_leaves_no_socket_and_no_child_behind(make_site):
    site = make_site()
    await site.start()
    customer = await site.leased()
    customer.call(customer.function(os.getpid))
    pidfd = os.pidfd_open((await customer.outcomes(1))[0])
    await site.stop()
    assert os.listdir(site.sockets.name) == []  # noqa: PTH208 - one line, no event loop to hold up
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)


@pytest.mark.parametrize("mode", [0o755, 0o770])
async def test_a_socket_folder_that_others_can_enter_is_refused(make_site, tmp_path, mode):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    site = make_site(listen=f"unix:{folder}/n")
    with pytest.raises(PermissionError, match="0700"):
        await site.start()


async def test_the_tcp_address_of_a_node_serves_as_the_unix_one_does(make_site):
    site = make_site(listen="tcp:127.0.0.1")
    await site.start()
    assert site.address.startswith("tcp:127.0.0.1:")
    customer = await site.leased()
    customer.call(customer.function(lambda: 1))
    assert await customer.outcomes(1) == {0: 1}
    await site.stop()


@pytest.mark.parametrize("code", [2**63, -1, "five", 256])
async def test_an_exit_code_that_no_program_has_is_not_passed_on(make_site, code):
    site = make_site()
    await site.start()
    customer = await site.leased()

    def fail(code):
        raise job.ProgramFailed(code)

    customer.call(customer.function(fail), code)
    assert (await customer.outcomes(1))[0][4] is None
    await site.stop()


async def test_a_program_runs_in_its_folder_streams_its_output_and_its_exit_code_comes_back(make_site, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "hello.txt").write_text("from the folder")
    site = make_site(isolation="bubblewrap")
    await site.start()
    try:
        customer = await site.leased()
        digest = customer.function(Carrying(run_command))
        packed = Baggage({"TOKEN": "abc"}, pack_workdir(tmp_path / "there"), fresh=True)
        customer.call(digest, packed, ('cat hello.txt; echo; echo "[$TOKEN]" >&2; python -c "import fabric"; exit 5',))
        outcome = (await customer.outcomes(1))[0]
        assert outcome[2:] == [Reason.USER_ERROR, "the program ended with exit code 5", 5]
        lines = [tuple(line[::2]) for header, _ in customer.frames if header[0] == channel.LOG for line in header[3]]
        assert sorted(lines) == [(1, "from the folder"), (2, "[abc]")]
        customer.call(digest, packed, ("ls -d /tmp/workdir-* | wc -l | grep -qx 1",), task=1)
        assert await customer.outcomes(1) == {1: 0}
        events_of = [event for event in site.events() if isinstance(event, events.Finished)]
        assert events_of[0].tasks[0][2] == Reason.USER_ERROR
    finally:
        await site.stop()
