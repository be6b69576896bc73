"""Simulated GPUs: the same every time, different on every node, never taken for real ones."""

import pytest

from fabric.agent.simulated import SimulationError, inventory, parse


def test_each_model_is_there_as_often_as_asked():
    gpus = inventory("H100:2, l4", "n1")
    assert [gpu.model for gpu in gpus] == ["H100", "H100", "L4"]
    assert all(gpu.simulated and gpu.uuid.startswith("SIM-") for gpu in gpus)


def test_uuids_are_stable_and_belong_to_one_node():
    first = {gpu.uuid for gpu in inventory("H100:2,L4:2", "n1")}
    assert first == {gpu.uuid for gpu in inventory("L4:2,H100:2", "n1")}
    assert len(first) == 4
    assert not first & {gpu.uuid for gpu in inventory("H100:2,L4:2", "n2")}


def test_nothing_is_simulated_unless_asked():
    assert parse("") == ()


@pytest.mark.parametrize("text", ["H100:0", "H100:x", ":2", "H100:2:3", "H100 2", "H100:-1"])
def test_what_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(SimulationError, match="H100:2,L4:2"):
        parse(text)
