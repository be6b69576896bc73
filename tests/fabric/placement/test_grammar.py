"""The GPU grammar: what every part means, and that a wrong character is named with what would be legal there."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.grammar import (
    ANY_GPU,
    NO_GPU,
    VENDORS,
    GpuRequest,
    GpuSpec,
    GrammarError,
    name_matches,
    nominal_size_text,
    parse_gpu,
    parse_size,
    size_text,
)

GB = 10**9
MIB = 2**20


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("H100", GpuSpec(names=("H100",))),
        ("H100:8", GpuSpec(names=("H100",), count_min=8, count_max=8)),
        ("A100:80GB:8", GpuSpec("", ("A100",), 80 * GB, 80 * GB, 8, 8)),
        ("24GB..", GpuSpec(memory_min_bytes=24 * GB)),
        ("..24GiB:2", GpuSpec(memory_max_bytes=24 * GB, count_min=2, count_max=2)),
        ("4090", GpuSpec(names=("4090",))),
        (":8", GpuSpec(count_min=8, count_max=8)),
        ("nvidia", GpuSpec("nvidia")),
        ("nvidia:", GpuSpec("nvidia")),
        ("NVIDIA::8", GpuSpec("nvidia", count_min=8, count_max=8)),
        ("nvidia:4090", GpuSpec("nvidia", ("4090",))),
        ("amd:MI300X:2..8", GpuSpec("amd", ("MI300X",), count_min=2, count_max=8)),
        ("H100,H200:80GB..200GB:2..", GpuSpec("", ("H100", "H200"), 80 * GB, 200 * GB, 2, None)),
        ("L4:0.5", GpuSpec(names=("L4",), milli=500)),
        ("L4:.125", GpuSpec(names=("L4",), milli=125)),
        (" H100 : 8 ", GpuSpec(names=("H100",), count_min=8, count_max=8)),
    ],
)
def test_each_form_means_what_the_grammar_says(text: str, spec: GpuSpec) -> None:
    assert parse_gpu(text) == GpuRequest((spec,))


@pytest.mark.parametrize(
    ("text", "position", "legal"),
    [
        ("", 0, "names"),
        (":", 0, "names"),
        ("H100:", 5, "number of GPUs"),
        ("H1!0:8", 2, "a name"),
        ("H100,,A100", 5, "a name"),
        ("H100:8:8", 7, "[vendor:]"),
        ("H100:80GB:x", 10, "number of GPUs"),
        ("H100:1.5", 6, "share of one"),
        ("H100:0", 5, "number of GPUs"),
        ("H100:0.0", 5, "0.001"),
        ("H100:-1", 5, "number of GPUs"),
        ("24GB..12GB", 6, "24GB or more"),
        ("H100:8..2", 8, "8 or more"),
    ],
)
def test_a_bad_string_says_which_character_and_what_would_be_legal(text: str, position: int, legal: str) -> None:
    with pytest.raises(GrammarError) as error:
        parse_gpu(text)
    assert error.value.position == position
    assert legal in error.value.legal
    assert f"character {position + 1}" in str(error.value)


def test_nothing_asked_is_one_gpu_of_any_model() -> None:
    assert parse_gpu(None) == ANY_GPU
    assert ANY_GPU.specs[0].count_min == 1


def test_a_list_is_an_order_and_a_set_is_not() -> None:
    assert parse_gpu(["H200:8", "H100:8"]).ordered
    assert [str(spec) for spec in parse_gpu(["H200:8", "H100:8"]).specs] == ["H200:8", "H100:8"]
    assert not parse_gpu({"H200:8", "H100:8"}).ordered
    assert parse_gpu({"b", "a"}) == parse_gpu({"a", "b"})


@pytest.mark.parametrize("request_", [[], set(), [8], {"a": 1}, 8, ["H100", ""]])
def test_what_is_neither_text_nor_alternatives_is_refused(request_: object) -> None:
    with pytest.raises(GrammarError):
        parse_gpu(request_)  # type: ignore[arg-type]


_NAMES = st.lists(st.sampled_from(["H100", "4090", "RTX A6000", "MI300X", "L40S", "a-b_c"]), unique=True, max_size=3)
_GIGA = st.integers(1, 300).map(lambda giga: giga * GB)


@st.composite
def _specs(draw: st.DrawFn) -> GpuSpec:
    low, high = draw(st.sampled_from([(0, None), (None, None), (0, 1), (1, None), (1, 1)]))
    least = 0 if not low else draw(_GIGA)
    most = None if high is None else least + draw(st.integers(0 if low else 1, 100)) * GB
    count = draw(st.integers(1, 64))
    top = draw(st.sampled_from([count, count + 3, None]))
    milli = draw(st.sampled_from([1000, 1000, 1, 25, 500, 999]))
    counts = (count, top) if milli == 1000 else (1, 1)
    return GpuSpec(draw(st.sampled_from(["", *VENDORS])), tuple(draw(_NAMES)), least, most, *counts, milli)


@given(st.lists(_specs(), min_size=1, max_size=4, unique=True), st.booleans())
def test_text_and_value_are_the_same_thing(specs: list[GpuSpec], ordered: bool) -> None:
    request = parse_gpu([str(spec) for spec in specs] if ordered else {str(spec) for spec in specs})
    assert set(request.specs) == set(specs)
    assert parse_gpu(request.source()) == request


def test_work_without_gpus_is_not_in_the_grammar_but_prints() -> None:
    assert str(NO_GPU) == ":0"


@pytest.mark.parametrize(
    ("label", "reported_mib"),
    [(80, 81_559), (24, 24_564), (24, 23_034), (24, 22_731), (16, 15_109), (40, 40_536), (141, 143_771), (48, 46_068)],
)
def test_a_label_matches_the_card_that_is_sold_under_it(label: int, reported_mib: int) -> None:
    for text in (f"{label}GB", f"{label}GB..", f"..{label}GB"):
        assert parse_gpu(text).specs[0].accepts_memory(reported_mib * MIB)


@pytest.mark.parametrize(
    ("text", "reported_mib"), [("25GB..", 23_034), ("80GB", 40_536), ("..40GB", 81_559), ("48GB..", 24_564)]
)
def test_a_label_does_not_match_another_card(text: str, reported_mib: int) -> None:
    assert not parse_gpu(text).specs[0].accepts_memory(reported_mib * MIB)


@pytest.mark.parametrize(
    ("name", "model", "matches"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX-4090", "NVIDIA GeForce RTX 4090", True),
        ("4090", "NVIDIA GeForce RTX 4090", True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("L4", "NVIDIA L40S", False),
        ("T4", "NVIDIA T4G", False),
        ("100", "NVIDIA H100 80GB HBM3", False),
    ],
)
def test_names_come_from_the_inventory_word_by_word(name: str, model: str, matches: bool) -> None:
    assert name_matches(name, model) is matches


def test_a_vendor_excludes_the_others() -> None:
    spec = parse_gpu("amd:24GB..").specs[0]
    assert spec.accepts("amd", "MI300X", 192 * GB)
    assert not spec.accepts("nvidia", "H100", 80 * GB)


@given(st.integers(0, 2**50))
def test_a_size_survives_its_text(size_bytes: int) -> None:
    assert parse_size(size_text(size_bytes)) == size_bytes


@pytest.mark.parametrize(("text", "size"), [("32GB", 32 * GB), ("1.5GB", 3 * GB // 2), ("512MiB", 512 * MIB), (7, 7)])
def test_sizes_are_decimal_unless_they_say_otherwise(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["32", "GB", "-1GB", "32 XB", -1, True, None, "1.GB"])
def test_a_size_without_number_or_unit_is_refused(text: object) -> None:
    with pytest.raises(GrammarError):
        parse_size(text)  # type: ignore[arg-type]


def test_the_sdk_parses_without_numpy() -> None:
    code = "import sys, fabric.placement.request, fabric.placement.answer; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("mib", "label"),
    [
        (81_559, "80GB"),  # H100
        (81_920, "80GB"),  # A100
        (95_830, "94GB"),  # H100 NVL
        (143_771, "141GB"),  # H200
        (24_564, "24GB"),  # RTX 4090
        (24_576, "24GB"),
        (23_034, "24GB"),  # L4
        (15_109, "16GB"),  # T4
        (9_856, "10GB"),  # a seventh of an A100
        (54_000, "57GB"),  # nothing that is sold
    ],
)
def test_a_reported_size_is_shown_as_the_label_says_it(mib, label):
    assert nominal_size_text(mib << 20) == label
    assert GpuSpec().accepts_memory(mib << 20)
    if label != "57GB":
        assert parse_gpu(f"{label}").specs[0].accepts_memory(mib << 20)


def test_a_size_in_whole_gigabytes_is_its_own_label():
    assert [nominal_size_text(n * 10**9) for n in (1, 24, 80, 96)] == ["1GB", "24GB", "80GB", "96GB"]
