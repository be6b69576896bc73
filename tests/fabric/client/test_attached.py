"""fabric.run and fabric.map end to end against small real servers."""

import _thread
import itertools
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fabric
from fabric.wire import channel


def test_a_run_returns_the_value_of_the_function(small_fabric):
    assert fabric.run(lambda x: x * 2, 21) == 42


def test_a_second_run_uses_the_lingering_lease_and_is_registered_beside_it(small_fabric):
    assert fabric.run(lambda: 1) == 1
    assert fabric.run(lambda: 2) == 2
    assert len(small_fabric.leases) == 1
    assert [r for r in small_fabric.requests if r[:2] == ("POST", "/v1/runs")].__len__() == 1


def test_a_map_gives_results_in_the_order_of_the_inputs(small_fabric):
    assert list(fabric.map(lambda x: x + 1, range(500))) == list(range(1, 501))


def test_a_map_takes_inputs_only_as_far_as_there_is_room(small_fabric):
    taken = []

    def numbers():
        for n in itertools.count():
            taken.append(n)
            yield n

    results = fabric.map(lambda x: x, numbers())
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    results.close()
    assert len(taken) < 3000


def test_the_users_exception_comes_back_with_the_workers_traceback(small_fabric):
    def broken():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        fabric.run(broken)
    assert "Traceback on the worker" in caught.value.__notes__[0]
    assert "broken" in caught.value.__notes__[0]


def test_a_run_that_raises_ends_its_display_with_the_error(small_fabric, capsys, monkeypatch):
    monkeypatch.setattr("fabric.client.display.CALM_S", 0.0)
    with pytest.raises(ZeroDivisionError):
        fabric.run(lambda: (time.sleep(0.2), 1 / 0))
    told = capsys.readouterr().err
    assert " ended after " in told
    assert " done in " not in told


def test_a_retried_error_gets_a_second_attempt(small_fabric, tmp_path):
    mark = tmp_path / "mark"

    def flaky():
        if not mark.exists():
            mark.touch()
            raise ValueError("first")
        return "second"

    assert fabric.run(flaky, retry=fabric.Retry(on=("error",), max=1)) == "second"


def test_an_interrupted_attempt_is_tried_again_and_a_crash_is_not(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().fail_with = ["gpu_unhealthy", "crashed"]
    with pytest.raises(fabric.RunFailed, match=r"as the test wants \(attempt 2") as caught:
        fabric.run(lambda: 1)
    assert (caught.value.reason, caught.value.details["attempts"]) == ("crashed", 2)


def test_after_a_dropped_connection_no_task_runs_twice(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().drop_after = 20
    assert list(fabric.map(lambda x: x, range(100), max_parallel=1)) == list(range(100))
    ran = small_fabric.node().ran
    assert len(ran) == len(set(ran))
    assert len(small_fabric.leases) == 1


def test_tasks_of_a_lost_lease_go_to_another_as_a_new_attempt(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().close_with = "operator_lost"
    assert sorted(fabric.map(lambda x: x, range(50), ordered=False)) == list(range(50))
    assert len(small_fabric.leases) == 2
    assert {attempt for *_, attempt in small_fabric.node(1).ran} == {1, 2}
    assert small_fabric.leases["lease0"]["released"] == "internal_error", "as far as a customer can say"


def test_a_map_sends_nothing_more_to_a_lease_that_leaves_and_gets_another(small_fabric):
    assert fabric.run(lambda: 0) == 0
    leaves = small_fabric.node()
    before, leaves.warn_with = len(leaves.ran), "preempted"
    assert list(fabric.map(lambda x: x, range(100), max_parallel=1)) == list(range(100))
    sent = len(leaves.ran) - before
    assert 1 <= sent < 50, "what was there already was still done"
    assert len(small_fabric.node(1).ran) == 100 - sent
    assert {attempt for *_, attempt in small_fabric.node(1).ran} == {1}
    assert small_fabric.leases["lease0"]["released"] == "preempted"


def test_a_run_that_is_at_work_stays_where_it_is_and_its_lease_is_not_kept_for_the_next(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().warn_with = "operator_drain"
    assert fabric.run(lambda: 1) == 1
    assert len(small_fabric.leases) == 1
    assert fabric.run(lambda: 2) == 2
    assert (len(small_fabric.leases), small_fabric.leases["lease0"]["state"]) == (2, "CLOSED")


def test_a_lingering_lease_that_gets_its_notice_is_given_back_at_once(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.on_loop(small_fabric.node().send([channel.NOTICE, "preempted", 30_000]))
    until = time.monotonic() + 20
    while small_fabric.leases["lease0"]["state"] != "CLOSED" and time.monotonic() < until:
        time.sleep(0.01)
    assert small_fabric.leases["lease0"]["state"] == "CLOSED"
    assert fabric.run(lambda: 1) == 1
    assert len(small_fabric.leases) == 2


def test_an_actor_is_called_where_its_object_is_until_the_lease_ends(small_fabric):
    class Counter:
        def __init__(self):
            self.count = 0

        def up(self):
            self.count += 1
            return self.count

    counter = fabric.actor(Counter)()
    assert counter.up.remote() == 1
    small_fabric.on_loop(small_fabric.node().send([channel.NOTICE, "preempted", 30_000]))
    assert [counter.up.remote() for _ in range(20)] == list(range(2, 22))
    counter.close()
    assert len(small_fabric.leases) == 1


def test_a_lease_that_ends_for_a_reason_without_retry_ends_the_run_with_its_error(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().close_with = "budget_exhausted"
    with pytest.raises(fabric.BudgetExhausted, match="as the test wants"):
        fabric.run(lambda: 1)


def test_a_node_that_sends_nonsense_loses_the_lease(small_fabric):
    assert fabric.run(lambda: 0) == 0
    small_fabric.node().nonsense = True
    assert fabric.run(lambda: 1) == 1
    assert len(small_fabric.leases) == 2


def test_an_answer_of_the_control_plane_that_is_not_understood_ends_the_run(small_fabric, monkeypatch):
    monkeypatch.setattr(small_fabric, "describe", lambda run: {"id": run})
    with pytest.raises(fabric.ServiceError, match="not understood"):
        fabric.run(lambda: 0)


def test_a_result_that_cannot_travel_says_which_part(small_fabric):
    with pytest.raises(fabric.RunFailed, match=r'result\["f"\]') as caught:
        fabric.run(lambda: {"f": lambda: 1})
    assert caught.value.reason == "result_not_transportable"


def test_a_failed_task_ends_the_map_unless_exceptions_are_wanted(small_fabric):
    def half(x):
        if x % 2:
            raise ValueError(x)
        return x

    with pytest.raises(ValueError, match="1"):
        list(fabric.map(half, range(10)))
    mixed = list(fabric.map(half, range(4), return_exceptions=True))
    assert mixed[::2] == [0, 2]
    assert all(isinstance(answer, ValueError) for answer in mixed[1::2])


def test_what_the_inputs_raise_is_raised_to_the_caller(small_fabric):
    def inputs():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(fabric.map(lambda x: x, inputs()))


def test_a_map_of_nothing_gives_nothing(small_fabric):
    assert list(fabric.map(lambda x: x, [])) == []


def test_a_map_with_max_parallel_uses_that_many_leases(small_fabric):
    assert len(list(fabric.map(lambda _: time.sleep(0.05), range(20), max_parallel=2))) == 20
    assert len(small_fabric.leases) == 2
    assert all(len(node.ran) > 3 for node in small_fabric.nodes.values())


def test_a_node_with_another_python_is_refused_with_what_to_do(small_fabric, monkeypatch):
    monkeypatch.setattr(small_fabric, "python", "3.8")
    with pytest.raises(fabric.InvalidRequest, match=r"the node .* python 3\.8; .*another operator"):
        fabric.run(lambda: 1)


def test_runs_of_several_threads_get_leases_of_their_own(small_fabric):
    with ThreadPoolExecutor(2) as threads:
        both = threading.Barrier(2)
        results = list(threads.map(lambda x: (both.wait(5), fabric.run(lambda: (time.sleep(0.2), x)[1]))[1], [1, 2]))
    assert results == [1, 2]
    assert len(small_fabric.leases) == 2


def test_large_arguments_and_results_travel_in_fragments(small_fabric):
    array = np.arange(1_000_000)
    assert (fabric.run(lambda a: a + 1, array) == array + 1).all()


def test_a_budget_gets_a_lease_of_its_own_that_is_released_at_once(small_fabric):
    assert fabric.run(lambda: 1) == 1
    assert fabric.run(lambda: 2, budget=1) == 2
    eventually(lambda: [lease["released"] for lease in small_fabric.leases.values()] == ["", "done"])


def test_refusals_of_the_control_plane_are_typed_errors(small_fabric):
    small_fabric.problems = [("price-exceeded", "the cheapest costs $2.50")]
    with pytest.raises(fabric.PriceExceeded, match="cheapest"):
        fabric.run(lambda: 1, max_price=1)


@pytest.fixture
def interruptible():
    """A process that was started in the background of a shell ignores interrupts, and so would Python."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_the_run(small_fabric):
    def interrupt():
        while not small_fabric.nodes or not small_fabric.node().ran:
            time.sleep(0.01)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        fabric.run(lambda: time.sleep(30))
    (run,) = small_fabric.runs.values()
    assert (run["state"], run["reason"]) == ("CANCELLED", "cancelled_by_user")


def test_the_end_of_the_session_releases_its_leases(small_fabric):
    assert fabric.run(lambda: 1, linger=100) == 1
    fabric.init(None)
    assert small_fabric.requests[-1][1].endswith("/end")


def test_a_detached_run_returns_its_value_from_the_stored_result(small_fabric):
    run = fabric.submit(lambda x: {"x": x}, 3, name="ft-1")
    assert run.result(timeout=10) == {"x": 3}
    assert fabric.attach(run.id).status == "SUCCEEDED"
    assert str(run.cost.accrued) == "1.23456"
    assert run.explain().text == "the only one"


def test_a_detached_runs_exception_is_raised_as_itself(small_fabric):
    def broken():
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        fabric.submit(broken).result(timeout=10)


def test_attaching_to_what_does_not_exist_is_refused(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="no run run_0"):
        fabric.attach("run_0")


def test_a_decorated_function_remembers_where_it_wants_to_run(small_fabric):
    @fabric.function(gpu="H100")
    def double(x):
        """Twice."""
        return 2 * x

    assert (double(1), double.local(2), double.remote(3)) == (2, 4, 6)
    assert list(double.map([4, 5])) == [8, 10]
    assert double.spawn(6).result(timeout=10) == 12
    assert double.__doc__ == "Twice."
    assert small_fabric.requests[0][2]["gpu"] == ["H100"]


def test_a_decorator_with_an_unknown_keyword_is_refused_when_it_is_written():
    with pytest.raises(fabric.InvalidRequest, match="gpus"):
        fabric.function(gpus="H100")


def test_offers_are_listed_cheapest_first(small_fabric):
    (offer,) = fabric.offers(gpu="H100")
    assert (offer.model, str(offer.price)) == ("H100", "2.5")
    assert small_fabric.wishes["nodes"] == ["1"]


@pytest.mark.parametrize(("nodes", "asked"), [(3, "3"), ((2, 4), "2")])
def test_offers_for_several_nodes_are_those_that_the_least_of_them_would_take(small_fabric, nodes, asked):
    assert fabric.offers(gpu="H100", nodes=nodes)
    assert small_fabric.wishes["nodes"] == [asked]
    with pytest.raises(fabric.InvalidRequest, match="nodes=0 is neither"):
        fabric.offers(nodes=0)


def test_an_unreachable_control_plane_says_so(monkeypatch):
    monkeypatch.setenv("FABRIC_URL", "http://127.0.0.1:9")
    with pytest.raises(fabric.ServiceError, match="cannot be reached"):
        fabric.offers()
    with pytest.raises(fabric.ServiceError, match="cannot be reached"):
        fabric.submit(lambda: 7)
    fabric.init(None)


def test_a_job_starts_no_embedded_fabric(monkeypatch):
    monkeypatch.setattr("fabric.wire.job.checkpoint_dir", Path)
    monkeypatch.setattr("fabric.local.ensure", None)
    with pytest.raises(fabric.InvalidRequest, match="a job of the fabric starts no fabric of its own"):
        fabric.run(lambda: 7)


def test_a_mistyped_key_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("FABRIC_ULR", "http://127.0.0.1:9")
    with pytest.raises(fabric.InvalidRequest, match="did you mean FABRIC_URL"):
        fabric.offers()


def eventually(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class Opaque:
    """The codec has no place for a class that is no dataclass, nor for a function."""

    def __init__(self, weights):
        self.weights = weights
        self.score = lambda x: x + len(self.weights)


def make_opaque(size=3):
    return Opaque(np.arange(size, dtype=np.uint8))


def test_a_trusted_result_is_whatever_can_be_pickled(small_fabric):
    value = fabric.run(make_opaque, 1 << 20, trust=True)
    assert type(value).__qualname__ == "Opaque"
    assert value.weights.tobytes() == make_opaque(1 << 20).weights.tobytes()
    assert value.score(1) == 1 + (1 << 20)
    value.weights[0] = 9  # large arrays come writable
    assert [value.score(1) for value in fabric.map(make_opaque, [1, 2], trust=True)] == [2, 3]

    async def later():
        return make_opaque(4)

    assert fabric.run(later, trust=True).score(1) == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fabric.Env(pip=3), r"Env\(pip=3\) is not a list of requirements"),
        (lambda: fabric.Env(python=3.11), r"Env\(python=3\.11\) is not a minor version"),
        (lambda: fabric.init(3), r"fabric\.init\(url=3\)"),
        (lambda: fabric.init("http://x", b"key"), r"fabric\.init\(api_key=b'key'\)"),
        (lambda: fabric.simulate_preemption("soon"), "after='soon' must be between 0 and 86400"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_what_was_given(make, words):
    with pytest.raises(fabric.InvalidRequest, match=words):
        make()


@pytest.mark.parametrize("run_id", [3, None, "", b"run_1", "run_\ud800"])
def test_what_is_no_id_of_a_run_is_not_attached_to(small_fabric, run_id):
    with pytest.raises(fabric.InvalidRequest, match=r"is not the id of a run; `run\.id` is one"):
        fabric.attach(run_id)


def test_nothing_is_unpickled_without_trust(small_fabric):
    with pytest.raises(fabric.RunFailed, match="not transportable") as caught:
        fabric.run(lambda: {"model": make_opaque()})
    assert caught.value.reason == "result_not_transportable"

    pickled = pickle.dumps(3)
    assert fabric.run(lambda: [pickled]) == [pickled]


def test_a_trusted_functions_exception_is_still_no_pickle(small_fabric):
    with pytest.raises(KeyError, match="lost"):
        fabric.run(lambda: {}["lost"], trust=True)


class OnlyThere:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("not in this process")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: {"lock": threading.Lock()}, "cannot be pickled .*lock.*; return what can be"),
        (OnlyThere, "cannot be read here: RuntimeError: not in this process"),
    ],
)
def test_what_is_no_pickle_or_cannot_be_loaded_here_says_so(small_fabric, function, words):
    with pytest.raises(fabric.RunFailed, match=words) as caught:
        fabric.run(function, trust=True)
    assert caught.value.reason == "result_not_transportable"


def test_trust_is_said_with_true_or_false(small_fabric):
    with pytest.raises(fabric.InvalidRequest, match="trust='yes' is neither True nor False"):
        fabric.run(make_opaque, trust="yes")
