"""Environments: installed once, of wheels only, in a sandbox, shared, bounded, and before all else in the child."""

import asyncio
import importlib
import os
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from fabric.agent import dialect, events
from fabric.agent.envs import EnvError, EnvOptions, Envs
from fabric.agent.sandbox import Bubblewrap, Plain
from fabric.client.command import run_command
from fabric.wire import channel
from fabric.wire.reasons import Reason
from fabric.wire.surroundings import EnvSpec

sys.path.insert(0, str(Path(__file__).parent))

from wheels import wheel

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    folder.chmod(0o755)
    wheel(folder, "greet", {"greet.py": "WORD = 'hello'"}, requires=("deep",))
    wheel(folder, "deep", {"deep/__init__.py": "DEPTH = 3"})
    wheel(folder, "large", {"large.py": "'''" + "x" * 300_000 + "'''"})
    wheel(folder, "cloudpickle", {"cloudpickle.py": "__version__ = '0.0'"}, version="0.0")
    with tarfile.open(folder / "source-1.0.tar.gz", "w:gz") as archive:
        setup = folder / "setup.py"
        setup.write_text(f"open({str(folder / 'i-ran')!r}, 'w')")
        archive.add(setup, "source-1.0/setup.py")
    return folder


@pytest.fixture
def isolation(request):
    made = getattr(request, "param", Bubblewrap)()
    yield made
    made.close()


BOTH = pytest.mark.parametrize("isolation", [Plain, Bubblewrap], indirect=True)


def envs_of(tmp_path, index, isolation, **options):
    return Envs(tmp_path / "envs", isolation, EnvOptions(find_links=str(index), **options), tmp_path)


@BOTH
async def test_packages_and_what_they_need_are_installed_beside_the_nodes_own_python(tmp_path, index, isolation):
    envs = envs_of(tmp_path, index, isolation)
    env = await envs.get(EnvSpec(pip=["greet"]))
    assert (env.site / "greet.py").is_file()
    assert (env.site / "deep" / "__init__.py").is_file()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("greet")
    for path in (tmp_path / "envs" / env.digest).rglob("*"):
        assert not path.stat().st_mode & 0o022
        assert path.stat().st_uid == os.getuid()


async def test_two_that_ask_at_once_and_one_that_asks_later_share_one_installation(tmp_path, index, isolation):
    envs = envs_of(tmp_path, index, isolation)
    first, second = await asyncio.gather(*(envs.get(EnvSpec(pip=["deep"])) for _ in range(2)))
    made = (first.site / "deep").stat().st_ino
    third = await envs.get(EnvSpec(pip=["deep"]))
    assert first == second == third
    assert (third.site / "deep").stat().st_ino == made
    assert await envs.get(EnvSpec(pip=["deep>=1"])) != first


@BOTH
@pytest.mark.parametrize("requirement", ["source"])
async def test_what_cannot_be_had_as_a_wheel_fails_with_the_installers_words_and_leaves_nothing(
    tmp_path, index, isolation, requirement
):
    envs = envs_of(tmp_path, index, isolation)
    with pytest.raises(EnvError, match="No matching distribution found for"):
        await envs.get(EnvSpec(pip=[requirement]))
    assert not list((tmp_path / "envs").iterdir())
    assert "i-ran" not in {path.name for path in index.iterdir()}


async def test_who_waits_alone_and_leaves_takes_the_installation_along(tmp_path, index, isolation):
    envs = envs_of(tmp_path, index, isolation)
    waiting = [asyncio.ensure_future(envs.get(EnvSpec(pip=["greet"]))) for _ in range(2)]
    await asyncio.sleep(0.05)
    waiting[0].cancel()
    env = await waiting[1]
    assert env.site.is_dir()
    alone = asyncio.ensure_future(envs.get(EnvSpec(pip=["deep"])))
    await asyncio.sleep(0.05)
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    assert [path.name for path in (tmp_path / "envs").iterdir()] == [env.digest]
    await envs.stop()


async def test_an_installer_that_begins_to_start_as_the_last_one_leaves_is_ended(tmp_path, index, monkeypatch):
    isolation, begun, launched = Plain(), threading.Event(), []
    launch = isolation.launch

    def slow(spec):
        begun.set()
        time.sleep(0.2)
        launched.append(launch(spec))
        return launched[-1]

    monkeypatch.setattr(isolation, "launch", slow)
    envs = envs_of(tmp_path, index, isolation)
    alone = asyncio.ensure_future(envs.get(EnvSpec(pip=["deep"])))
    await asyncio.to_thread(begun.wait)
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    (child,) = launched
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    assert not list((tmp_path / "envs").iterdir())


async def test_the_longest_unused_goes_when_there_is_too_much_and_what_is_used_stays(tmp_path, index, isolation):
    envs = envs_of(tmp_path, index, isolation, cache_bytes=1_700_000)
    used = await envs.get(EnvSpec(pip=["large"]))
    idle = await envs.get(EnvSpec(pip=["large>=1"]))
    envs.release(idle)
    os.utime(tmp_path / "envs" / used.digest, (1, 1))
    envs.release(await envs.get(EnvSpec(pip=["large>=0.1"])))
    there = {path.name for path in (tmp_path / "envs").iterdir()}
    assert used.digest in there
    assert idle.digest not in there
    assert len(there) == 2


async def test_one_that_fills_the_disk_is_ended(tmp_path, index):
    plain = Plain()
    envs = envs_of(tmp_path, index, plain, cache_bytes=1 << 20)
    envs._options = EnvOptions(find_links=str(index), cache_bytes=1)
    with pytest.raises(EnvError, match=r"needs more than|pip ended"):
        await envs.get(EnvSpec(pip=["large"]))
    plain.close()


@pytest.fixture
def make_node(request, make_site, index):
    isolation = getattr(request, "param", "bubblewrap")
    return lambda **options: make_site(isolation=isolation, envs=EnvOptions(find_links=str(index)), **options)


@pytest.mark.parametrize("make_node", ["none", "bubblewrap"], indirect=True)
async def test_a_function_finds_its_packages_before_all_others_and_its_processes_too(make_node):
    def look():
        import subprocess

        import cloudpickle
        import deep
        import greet

        script = "import greet; print(greet.WORD)"
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        return greet.WORD, deep.DEPTH, said.strip(), cloudpickle.__version__ != "0.0"

    site = make_node()
    await site.start()
    try:
        customer = await site.leased(env={"python": "", "pip": ["cloudpickle==0.0", "greet"]})
        customer.call(customer.function(look))
        assert (await customer.outcomes(1))[0] == ("hello", 3, "hello", True)
    finally:
        await site.stop()


async def test_the_installation_is_the_receipts_setup_and_nothing_of_it_is_idle(make_node):
    site = make_node()
    await site.start()
    try:
        customer = await site.leased(env={"python": "", "pip": ["deep"]})
        customer.call(customer.function(lambda: 1))
        assert await customer.outcomes(1) == {0: 1}
        site.agent.send([dialect.CLOSE, "lease_1", 1, "done"])
        await customer.next(channel.CLOSED)
        meter = site.meter()
        (line,) = meter.run_lines()
        assert line.setup_ms > 50
        assert 0 <= line.idle_ms <= line.gpu_ms - line.setup_ms
        of_kind = {type(event): event for event in site.events()}
        opened, prepared = of_kind[events.Opened], of_kind[events.Prepared]
        assert opened.setup
        assert line.setup_ms == (prepared.ns - opened.ns) // 1_000_000
    finally:
        await site.stop()


async def test_a_failed_installation_ends_the_lease_with_the_installers_words_for_early_and_late_customers(make_node):
    site = make_node()
    await site.start()
    try:
        customer = await site.leased(env={"python": "", "pip": ["nowhere"]})
        header, _ = await customer.next(channel.CLOSED)
        assert header[1] == Reason.DEPS_INSTALL
        assert "No matching distribution found for nowhere" in header[2]
        late = type(customer)()
        await late.attach(site.address, site.token, "lease_1")
        assert (await late.next(channel.CLOSED))[0] == header
        await site.open("lease_2")
        await site.agent.next(dialect.OPENED)
    finally:
        await site.stop()


async def test_an_installation_beyond_the_startup_timeout_ends_the_lease(make_node):
    site = make_node()
    await site.start()
    try:
        customer = await site.leased(env={"python": "", "pip": ["deep"]}, startup_timeout_ms=30)
        header, _ = await customer.next(channel.CLOSED)
        assert (header[1], "startup_timeout=0.03 s" in header[2]) == (Reason.STARTUP_TIMEOUT, True)
    finally:
        await site.stop()


async def test_a_lease_without_packages_sees_none_of_those_of_another(make_site, index):
    site = make_site(isolation="bubblewrap", envs=EnvOptions(find_links=str(index)))
    await site.start()
    try:
        first = await site.leased(env={"python": "", "pip": ["greet"]})
        first.call(first.function(lambda: 1))
        assert await first.outcomes(1) == {0: 1}
        other = await site.leased("lease_2", run="run_2", gpus=[[site.gpus[1], 1000]])
        other.call(other.function(os.path.lexists), str(site.config.state_dir / "envs"))
        assert await other.outcomes(1) == {0: False}
    finally:
        await site.stop()


async def test_another_python_of_the_node_runs_a_command_with_packages_for_it(make_node, tmp_path, monkeypatch):
    folder = tmp_path / "py" / "bin"
    folder.mkdir(parents=True)
    other = folder / "python3.29"
    other.write_text("#!/bin/sh\necho other $PYTHONPATH\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    site = make_node()
    await site.start()
    try:
        assert "python:3.29" in site.hello["info"]["capabilities"]
        customer = await site.leased(env={"python": "3.29", "pip": ["deep"]})
        customer.call(customer.function(run_command), "python | grep -q '^other .*/site' && python3")
        assert await customer.outcomes(1) == {0: 0}
        bare = await site.leased("lease_2", run="run_2", gpus=[[site.gpus[1], 1000]], env={"python": "3.29", "pip": []})
        bare.call(bare.function(run_command), "python | grep -q ^other", run="run_2")
        assert await bare.outcomes(1) == {0: 0}
    finally:
        await site.stop()


async def test_a_python_that_the_node_does_not_have_ends_the_lease(make_node):
    site = make_node()
    await site.start()
    try:
        customer = await site.leased(env={"python": "3.28", "pip": []})
        header, _ = await customer.next(channel.CLOSED)
        assert header[1] == Reason.DEPS_INSTALL
        assert "this node has no Python 3.28" in header[2]
    finally:
        await site.stop()
