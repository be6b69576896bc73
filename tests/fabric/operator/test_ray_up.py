"""From `fabric operator init` to `ray down` against hosts made of namespaces, in the order of docs/operators.md."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from eth_account import Account

ROOT = Path(__file__).parents[3]
ADMIN_KEY = "fk_admin"
WALLET_KEY = "0x" + "11" * 32
GPUS = {
    1: ("RTX 4090", "NVIDIA GeForce RTX 4090*1@24564"),
    2: ("H100", "NVIDIA H100 80GB HBM3*2@81559"),
    3: ("L4", "NVIDIA L4*1@23034"),
    4: ("A100", "NVIDIA A100-SXM4-80GB*1@81920"),
}

JOB = """
import json, sys, threading, time, fabric

def work(seconds):
    import time
    time.sleep(seconds)
    return 6 * 7

def one(gpu, seconds):
    try:
        answer = fabric.run(work, float(seconds), gpu=gpu, name=gpu, retry=fabric.Retry(max=0))
    except fabric.Error as error:
        answer = type(error).__name__
    print(json.dumps([gpu, answer]), flush=True)

threads = [threading.Thread(target=one, args=job.split("=")) for job in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


NOISE = re.compile(
    r"\tV+(INFO|WARN) |cli_output_helpers|node_provider|network_util|docker\.py|To ensure this mount|onnection to"
    r"|Permanently|usage_lib|^sending incremental|^sent \d|^total size|^\./$|Autoscaler v2"
)
"""Of Ray's words: the commands it runs by ssh, what rsync counts, and what it says to every cluster."""


class Site:
    """An operator's own machine and the fabric they join, both on this machine; the cluster is on `hosts`."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.base = hosts.base
        self.url = f"http://{hosts.subnet}.1:8700"
        self.folder = self.base / "operator"
        for name in ("home", "tmp", "stub"):
            (self.base / name).mkdir()
        stub = Path(__file__).with_name("nvml_stub.c")
        library = self.base / "stub" / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, stub], check=True)
        self.processes = []

    def start_control_plane(self):
        customer = {
            "id": "cus_admin",
            "name": "admin",
            "api_key_sha256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest(),
            "test_balance_dc": 10**9,
            "admin": True,
        }
        bootstrap = self.base / "bootstrap.json"
        bootstrap.write_text(json.dumps({"customers": [customer], "operators": []}))
        environment = {
            "FABRIC_HOST": f"{self.hosts.subnet}.1",
            "FABRIC_STATE_DIR": str(self.base / "control"),
            "FABRIC_BOOTSTRAP": str(bootstrap),
        }
        self.start([sys.executable, "-P", "-m", "api"], "control.log", environment)
        wait_for(self._answers, "the control plane", 30)

    def start(self, command, log, environment):
        with (self.base / log).open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environ(**environment),
            )
        self.processes.append(process)
        return process

    def start_host(self, index):
        bashrc = [
            f"export LD_LIBRARY_PATH={self.base}/stub STUB_SEED={index} STUB_GPUS='{GPUS[index][1]}'",
            "export OMP_NUM_THREADS=1",
        ]
        self.hosts.start(index, "\n".join([*bashrc, ""]))

    def environ(self, **more):
        return {"PATH": os.environ["PATH"], "HOME": str(self.base / "home"), "LANG": "C.UTF-8", **more}

    def on_own_machine(self, *command, check=True, **environment):
        """A command of the operator; Ray's launcher keeps state in /tmp, so it gets one of its own."""
        steps = ["mount --make-rprivate /"]
        if ROOT.is_relative_to("/tmp"):  # a checkout there must still be seen
            kept = self.base / "tmp" / ROOT.relative_to("/tmp")
            kept.mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {shlex.quote(str(ROOT))} {shlex.quote(str(kept))}")
        steps += ['mount --rbind "$0" /tmp', 'exec "$@"']
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", " && ".join(steps), self.base / "tmp", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environ(**environment),
            timeout=150,
            check=False,
        )
        self.record(command, done)
        assert done.returncode == 0 or not check, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done

    def record(self, command, done):
        """Keep what was typed and said in `transcript.txt`, without this machine's own paths and the token."""
        words = [str(word) for word in command]
        typed = ["fabric", *words[4:]] if "fabric.cli" in words else ["ray", *words[4:]]
        text = f"$ {shlex.join(typed)}\n{done.stdout}{done.stderr}[{done.returncode}]\n\n"
        for path, name in ((self.folder, "~/gpus"), (self.base, "~"), (sys.prefix, "/opt/fabric"), (ROOT, "~/src")):
            text = text.replace(str(path), name)
        text = "".join(line for line in text.splitlines(True) if not NOISE.search(line))
        text = re.sub(r"(?m)^\d{4}-\d\d-\d\d [\d:,]+\t\w+ \S+ -- ", "", text)
        text = re.sub(r"join\.op_\w+\.[\w-]+", "join.op_….…", re.sub(r"\x1b\[[0-9;]*m", "", text))
        with (self.base / "transcript.txt").open("a") as file:
            file.write(text)
        if kept := os.environ.get("TRANSCRIPT"):
            Path(kept).write_text((self.base / "transcript.txt").read_text())

    def operator(self, *arguments, **options):
        command = (sys.executable, "-P", "-m", "fabric.cli", "operator", *arguments)
        return self.on_own_machine(*command, OPERATOR_WALLET_KEY=WALLET_KEY, **options)

    def ray(self, command, *arguments):
        launcher = (sys.executable, "-P", "-m", "ray.scripts.scripts", command)
        return self.on_own_machine(*launcher, *arguments)

    def call(self, method, path, **options):
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=20, trust_env=False, **options)
        answer.raise_for_status()
        return answer.json()

    def invite(self):
        wallet = Account.from_key(WALLET_KEY).address
        return self.call("POST", "/v1/operators/join-tokens", json={"name": "Alice", "wallet": wallet})["token"]

    def offered(self):
        """How many GPUs of each model the fabric offers now."""
        counts = {}
        for gpu in self.call("GET", "/v1/gpus")["gpus"]:
            if gpu["offered"]:
                counts[gpu["model"]] = counts.get(gpu["model"], 0) + 1
        return counts

    def run_jobs(self, log, *jobs):
        """Start runs in a customer's process; each ends with a line of JSON in the log."""
        environment = {"FABRIC_URL": self.url, "FABRIC_API_KEY": ADMIN_KEY, "FABRIC_QUIET": "1"}
        script = self.base / "job.py"
        script.write_text(JOB)
        return self.start([sys.executable, "-P", script, *jobs], log, environment)

    def answers(self, log):
        lines = (self.base / log).read_text().splitlines()
        return dict(json.loads(line) for line in lines if line.startswith("["))

    def leases(self):
        """Model to lease, generation and node, of the runs that go on."""
        runs = self.call("GET", "/v1/runs")["runs"]
        running = [lease for run in runs if run["state"] == "RUNNING" for lease in run["leases"]]
        still = [lease for lease in running if lease["state"] == "OPEN"]
        return {lease["gpus"][0]["model"]: (lease["id"], lease["generation"], lease["node"]) for lease in still}

    def reason(self, lease):
        """Why a lease ended, as the control plane has it."""
        return next(
            one["reason"] for run in self.call("GET", "/v1/runs")["runs"] for one in run["leases"] if one["id"] == lease
        )

    def findings(self):
        examined = self.operator("doctor", "--json", "-C", self.folder, check=False)
        return json.loads(examined.stdout)

    def end(self):
        for process in self.processes:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def agent_log(self):
        return self.hosts.ssh(1, "cat ~/.fabric-operator/agent/agent.log").stdout

    def tell(self):
        """What pytest shows when the test failed."""
        for name in ("control.log", "long.log"):
            if (self.base / name).exists():
                sys.stdout.write(f"{name}:\n{(self.base / name).read_text()[-3000:]}\n")
        for run in self.call("GET", "/v1/runs")["runs"]:
            sys.stdout.write(f"{json.dumps(run)}\n")
        for index in self.hosts.running:
            told = self.hosts.ssh(index, "tail -n 40 ~/.fabric-operator/agent/agent.log").stdout
            sys.stdout.write(f"host {index}:\n{told}\n")

    def _answers(self):
        try:
            return httpx.get(self.url + "/readyz", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def wait_for(true, what, seconds):
    deadline = time.monotonic() + seconds
    while not (seen := true()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.25)
    return seen


@pytest.fixture
def site(hosts):
    made = Site(hosts)
    try:
        yield made
    finally:
        made.tell()
        made.end()


def init_arguments(site):
    hosts = site.hosts
    prices = [word for model, _ in GPUS.values() for word in ("--price", f"{model}:on_demand=1.00")]
    settings = json.dumps({"num_cpus": 1})
    nodes = [word for i in (1, 2, 3, 4)[:3] for word in ("--node", f"{hosts.address(i)}={settings}")]
    return [
        *("--url", site.url, "--head", hosts.address(1), "--worker", hosts.address(2), "--worker", hosts.address(3)),
        *("--ssh-user", "gpus", "--ssh-key", str(hosts.ssh_key), "--venv", sys.prefix, "--region", "eu"),
        *prices,
        *nodes,
        *("-C", str(site.folder)),
    ]


def add_worker(site, index):
    """What an operator does in an editor."""
    file, address = site.folder / "cluster.yaml", site.hosts.address(index)
    text = file.read_text()
    changed = re.sub(r"(worker_ips: \[.*?)\]", rf'\1, "{address}"]', text)
    assert changed != text
    file.write_text(changed)


def remember(hosts, verb, value=b""):
    """Put a value among what the head's GCS keeps, or get it."""
    arguments = "b'kept', b'fabric'" if verb == "get" else f"b'kept', {value!r}, True, b'fabric'"
    program = f"from ray._raylet import GcsClient; print(GcsClient(address='{hosts.address(1)}:6379')"
    program += f".internal_kv_{verb}({arguments}))"
    done = hosts.ssh(1, f". ~/.fabric-operator/host/env.sh; python -P -c {shlex.quote(program)}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_an_operators_cluster_from_init_to_ray_down(site):
    hosts = site.hosts
    for index in (1, 2, 3):
        site.start_host(index)
    site.start_control_plane()

    site.operator("init", "--token", site.invite(), *init_arguments(site))
    site.ray("up", "-y", site.folder / "cluster.yaml")
    wait_for(lambda: site.offered() == {"RTX 4090": 1, "H100": 2, "L4": 1}, "GPUs of three hosts", 90)

    bad = [finding for finding in site.findings() if finding["verdict"] == "bad"]
    assert bad == []
    assert "2.60.0" in site.ray("exec", site.folder / "cluster.yaml", "ray --version").stdout
    assert hosts.ssh(1, "ls ~/.fabric-operator/agent/session.key").returncode == 0
    assert hosts.ssh(2, "ls ~/.fabric-operator/agent/session.key").returncode != 0, "the agent's key is on a worker"

    site.run_jobs("first.log", "RTX 4090=0", "H100=0", "L4=0").wait(60)
    assert site.answers("first.log") == {"RTX 4090": 42, "H100": 42, "L4": 42}

    site.run_jobs("long.log", "H100=900", "L4=900")
    before = wait_for(lambda: len(site.leases()) == 2 and site.leases(), "two long runs", 60)
    assert before["H100"][2].endswith(hosts.address(2))
    assert before["L4"][2].endswith(hosts.address(3))

    site.start_host(4)
    add_worker(site, 4)
    site.operator("up", "-C", site.folder)
    wait_for(lambda: site.offered().get("A100") == 1, "the GPU of the added host", 60)
    assert site.leases() == before

    hosts.cut_power(3)
    wait_for(lambda: site.answers("long.log"), "the end of the run on the lost host", 90)
    assert site.answers("long.log") == {"L4": "OperatorLost"}
    wait_for(lambda: site.leases() == {"H100": before["H100"]}, "the end of the lost lease and of no other", 30)
    wait_for(lambda: site.reason(before["L4"][0]) == "operator_lost", "the agent's word that its node is lost", 30)
    wait_for(lambda: site.offered() == {"RTX 4090": 1, "H100": 2, "A100": 1}, "the lost GPU's withdrawal", 30)

    remember(hosts, "put", b"the cluster")
    hosts.cut_power(1)
    wait_for(lambda: site.answers("long.log").get("H100"), "the end of the run whose agent was on the head", 90)
    assert site.answers("long.log") == {"L4": "OperatorLost", "H100": "OperatorLost"}
    refused = site.operator("up", "-C", site.folder, check=False)
    assert f"{hosts.address(3)}  cannot log in" in refused.stdout, (
        "what is without power is named before anything starts"
    )
    for index in (1, 3):
        site.start_host(index)
    site.operator("up", "-C", site.folder)
    everything = {"RTX 4090": 1, "H100": 2, "L4": 1, "A100": 1}
    wait_for(lambda: site.offered() == everything, "all GPUs behind the head again", 180)
    assert "the cluster" in remember(hosts, "get"), "what the head knew was in RocksDB"
    site.run_jobs("after.log", "H100=0", "L4=0", "A100=0").wait(60)
    assert site.answers("after.log") == {"H100": 42, "L4": 42, "A100": 42}
    assert all(check["ok"] for check in site.call("GET", "/v1/audit")["checks"])
    site.operator("status", "-C", site.folder, check=False)

    hosts.expose(1, "203.0.113.5")
    refused = hosts.ssh(1, "~/.fabric-operator/host/run agent start")
    assert refused.returncode == 1
    assert "203.0.113.5:6379" in refused.stderr
    hosts.ssh(1, "kill -9 $(cat ~/.fabric-operator/agent/agent.pid)")
    wait_for(lambda: "203.0.113.5:6379" in site.agent_log(), "the refusal of the agent that was started again", 30)

    hosts.cut_power(3)
    site.ray("down", "-y", site.folder / "cluster.yaml")
    assert {index: hosts.processes(index) for index in (1, 2, 4)} == {1: "", 2: "", 4: ""}
    down = site.operator("down", "-C", site.folder, check=False)
    assert down.returncode == 1
    assert f"left behind: {hosts.address(3)}: " in down.stderr, "only the host without power did not answer"
    assert hosts.address(2) not in down.stderr.rpartition("left behind")[2]
    assert {index: hosts.processes(index) for index in (1, 2, 4)} == {1: "", 2: "", 4: ""}
    assert hosts.ssh(1, "ls ~/.fabric-operator/gcs").returncode != 0
