"""Bands that somebody measured: read, refused, and before those of the file."""

import json

import pytest

from fabric.wire.bands import band_of, plan_for, read_bands

MEASURED = {"edge": 16384, "honest_tflops": 300, "int8_tops": 1979, "bandwidth_gb_s": 2000, "source": "measured"}
GIB = 1 << 30


def test_a_measured_band_comes_before_the_files_and_only_for_its_model():
    measured = read_bands(json.dumps({"H100": MEASURED}))
    assert band_of("H100", measured=measured).honest_tflops == 300
    assert band_of("A100", measured=measured) == band_of("A100")
    ours, theirs = plan_for("H100", 80 * GIB), plan_for("H100", 80 * GIB, measured=measured)
    assert theirs.fill_limit_ms > ours.fill_limit_ms
    assert theirs.filled_bytes == ours.filled_bytes


def test_a_simulated_gpu_has_the_band_of_simulated_ones_whatever_was_measured():
    measured = read_bands(json.dumps({"H100": MEASURED}))
    assert band_of("H100", simulated=True, measured=measured) == band_of("H100", simulated=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "an object"),
        ("{", "Expecting"),
        (json.dumps({"H100": {"edge": 16}}), "H100 needs exactly the members bandwidth_gb_s, edge"),
        (json.dumps({"H100": MEASURED | {"extra": 1}}), "exactly"),
        (json.dumps({"H100": MEASURED | {"edge": 17}}), "H100: edge is 17"),
        (json.dumps({"H100": MEASURED | {"honest_tflops": 0}}), "honest_tflops is 0"),
        (json.dumps({"H100": MEASURED | {"honest_tflops": "fast"}}), "honest_tflops is 'fast'"),
        (json.dumps({"H100": MEASURED | {"bandwidth_gb_s": float("nan")}}), "bandwidth_gb_s is nan"),
        (json.dumps({"H100": MEASURED | {"int8_tops": 200}}), "less than honest_tflops"),
        (json.dumps({"H100": MEASURED | {"source": 5}}), "source"),
    ],
)
def test_a_bad_band_is_refused_with_what_is_wrong(text, says):
    with pytest.raises(ValueError, match=says):
        read_bands(text)


def test_the_bands_of_the_file_pass_as_measured_ones():
    from importlib.resources import files

    known = json.loads((files("fabric.wire") / "gpu_bands.json").read_text())["models"]
    assert read_bands(json.dumps(known)).keys() == known.keys()
