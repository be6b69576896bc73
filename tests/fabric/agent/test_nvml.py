"""The probe against a driver that is a stub: a library of the same name, compiled here, found before any other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json
from pathlib import Path
from fabric.agent import nvml, probe
devices = probe.find_devices("L4:1", "n1")
gpus = [gpu.model_dump() for gpu in devices.inventory()]
first = gpus[0]["uuid"]
energy = [devices.energy_mj(first)]
nvml.SAMPLE_S = 0
energy.append(devices.energy_mj(first))
print(json.dumps({
    "gpus": gpus, "energy": energy, "busy": [devices.utilisation_pct(gpu["uuid"]) for gpu in gpus],
    "conditions": [one.model_dump() for one in devices.conditions()],
    "devices": [str(path) for path in devices.devices((first,))],
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is missing: the NVML stub cannot be compiled")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stub.c")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


def probed(library: Path, fleet: str | None) -> dict:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    environment.pop("NVML_STUB", None)
    if fleet is not None:
        environment["NVML_STUB"] = fleet
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_real_gpus_are_described_as_the_driver_does(library):
    found = probed(library, "NVIDIA H100 80GB HBM3@81559,NVIDIA A100-SXM4-80GB@81920")
    first, second = found["gpus"]
    assert (first["model"], first["name"], first["memory_bytes"]) == ("H100", "NVIDIA H100 80GB HBM3", 81559 << 20)
    assert (first["driver"], first["simulated"], first["healthy"]) == ("580.00", False, True)
    assert second["model"] == "A100"
    assert first["uuid"] != second["uuid"]


def test_energy_only_grows_and_is_read_no_more_often_than_devices_renew_it(library):
    found = probed(library, "NVIDIA L4@23034")
    assert found["energy"] == [1000, 2000]
    assert found["busy"] == [50]


def test_a_gpu_that_does_not_answer_is_listed_as_unhealthy_and_counts_nothing(library):
    found = probed(library, "NVIDIA L4@23034@broken,NVIDIA L4@23034")
    broken, well = found["gpus"]
    assert (broken["healthy"], broken["problem"]) == (False, "GPU is lost")
    assert well["healthy"]
    assert found["energy"] == [0, 0]
    assert found["busy"] == [0, 50]


def test_without_a_driver_the_simulated_gpus_are_offered_and_say_so(library):
    found = probed(library, None)
    assert [(gpu["model"], gpu["simulated"]) for gpu in found["gpus"]] == [("L4", True)]
    assert found["gpus"][0]["uuid"].startswith("SIM-")
    assert found["energy"] == [0, 0]


def test_a_node_without_a_driver_offers_nothing_and_logs_why(library):
    environment = {name: value for name, value in os.environ.items() if name != "NVML_STUB"}
    program = "from fabric.agent.probe import find_devices; print(find_devices('', 'node-1').inventory())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment | {"LD_LIBRARY_PATH": str(library)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert "this node offers no GPU" in done.stdout
    assert "error=" in done.stdout


def test_how_gpus_are_is_told_and_what_a_lost_one_does_not_say_is_none(library):
    first, second, lost = probed(library, "NVIDIA L4@23034,NVIDIA L4@23034,NVIDIA L4@23034@broken")["conditions"]
    told = {"temperature_c": 61, "power_mw": 250_000, "power_limit_mw": 700_000, "utilisation_pct": 50}
    told |= {"memory_used_bytes": 0, "pcie_generation": 4, "pcie_width": 16, "nvlinks": 1}
    assert {name: first[name] for name in told} == told
    assert (first["processes"], second["processes"]) == ([{"pid": 4321, "memory_bytes": 1 << 30}], [])
    assert {lost[name] for name in told if name != "nvlinks"} == {None}
    assert (lost["nvlinks"], lost["processes"]) == (0, [])
    assert probed(library, None)["conditions"] == [], "simulated ones have none"
