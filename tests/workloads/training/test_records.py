"""Records as lines, texts and curves."""

import xml.etree.ElementTree as ET

import fabric
from workloads.training import metrics
from workloads.training.outcome import Failed, Trained
from workloads.training.plot import curve, page

RECORD = {
    "step": 3,
    "epoch": 1,
    "loss": 0.5,
    "samples_per_s": 1234.0,
    "tokens_per_s": 0.0,
    "seconds": 2.0,
    "attempt": 1,
}


def test_a_record_comes_back_from_its_line_and_nothing_else_is_one():
    assert metrics.of_line(metrics.to_line(RECORD)) == RECORD
    assert metrics.of_line("[rank 0] " + metrics.to_line(RECORD)) == RECORD
    for line in ("loss 3", metrics.MARK + "{", metrics.MARK + "[]", metrics.MARK + '{"step": "x"}'):
        assert metrics.of_line(line) is None


def test_what_the_caller_knows_is_added_to_what_the_ranks_kept():
    lost = {**RECORD, "step": 9, "cost_usd": 9.0}
    assert metrics.merge([RECORD], [{**RECORD, "cost_usd": 0.1}, lost]) == [{**RECORD, "cost_usd": 0.1}]


def test_a_record_reads_well():
    text = metrics.as_text({**RECORD, "cost_usd": 0.25, "attempt": 2})
    assert text == "step 3 · epoch 1 · loss 0.5000 · 1,234 samples/s · USD 0.25000 · attempt 2"


def test_a_curve_is_a_picture_that_shows_where_an_attempt_began():
    records = [{**RECORD, "step": n, "loss": 1 / n, "attempt": 1 + n // 5} for n in range(1, 9)]
    drawn = ET.fromstring(curve(records, "loss"))
    line = drawn.find("polyline").get("points").split()
    heights = [float(point.split(",")[1]) for point in line]
    assert len(line) == 8
    assert heights == sorted(heights)
    assert len(drawn.findall("line[@class='again']")) == 1


def test_a_page_holds_no_markup_of_others_and_loads_nothing():
    text = page(Trained(None, (RECORD,), "<script>", 2, 1, "run_1"))
    assert "<script>" not in text
    assert "http" not in text
    assert "last loss" in text


def test_a_failure_comes_back_as_the_exception_it_was_or_as_one_that_names_it():
    known = Failed(1, "KeyError", "x", "Traceback …").error(2)
    assert type(known) is KeyError
    assert known.__notes__[0].startswith("on rank 1 of 2")
    full = Failed(1, "OutOfMemoryError", "CUDA out of memory", "Traceback …").error(2)
    assert (type(full), full.reason) == (fabric.OutOfMemory, "oom")
    foreign = Failed(0, "SystemExitish", "x", "Traceback …").error(2)
    assert str(foreign) == "SystemExitish: x"
