from pathlib import Path

import pytest

from fabric.agent.sandbox.spec import Bind, ChildSpec, Limits, environment


def test_a_spec_that_names_a_program_is_accepted():
    assert ChildSpec(argv=("/bin/true",), uid=1, binds=(Bind(Path("/usr")),)).argv == ("/bin/true",)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"argv": ()}, "argv is empty"),
        ({"uid": 0}, "never runs as root"),
        ({"uid": -1}, "never runs as root"),
        ({"binds": (Bind(Path("here")),)}, "here is not an absolute path"),
        ({"devices": (Path("nvidia0"),)}, "nvidia0 is not an absolute path"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ChildSpec(**{"argv": ("/bin/true",), **wrong})


@pytest.mark.parametrize("name", Limits.__slots__)
def test_a_limit_is_one_or_more(name):
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} is 0; a limit is 1 or more"):
        Limits(**{name: 0})


def test_no_variable_can_uncover_a_gpu_of_another_lease():
    spec = ChildSpec(argv=("/bin/true",), env={"CUDA_VISIBLE_DEVICES": "GPU-other", "A": "b"})
    assert environment(spec)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(spec)["A"] == "b"
