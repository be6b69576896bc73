"""A batch has each row once in its output, in order, whatever ended in between."""

import json

import pytest

import fabric
from workloads.batch import Batch, JournalMismatch
from workloads.batch.batch import read_output
from workloads.batch.rows import read_rows


def here(function, inputs, *, ordered, return_exceptions):
    """As `fabric.map` with these keywords, in this process."""
    assert ordered
    assert return_exceptions
    for item in inputs:
        try:
            yield function(item)
        except Exception as error:  # noqa: BLE001 - as the fabric does
            yield error


class Killed(BaseException):
    pass


def killed_after(count):
    def mapper(function, inputs, **keywords):
        for number, value in enumerate(here(function, inputs, **keywords)):
            if number == count:
                raise Killed
            yield value

    return mapper


def test_rows_come_out_in_order_and_a_failing_one_keeps_its_error(tmp_path):
    report = Batch(lambda x: 10 // x, [5, 0, 2], tmp_path / "out.jsonl", mapper=here).run()
    assert read_output(tmp_path / "out.jsonl") == [
        {"row": 0, "value": 2},
        {"row": 1, "error": "ZeroDivisionError: integer division or modulo by zero"},
        {"row": 2, "value": 5},
    ]
    assert (report.rows, report.failed, report.resumed) == (3, 1, 0)
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("torn", [b"", b'{"digest": "ab', b"\xff\n"])
def test_after_a_kill_only_what_is_missing_is_done(tmp_path, torn):
    calls = []
    out = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        Batch(calls.append, range(6), out, mapper=killed_after(4)).run()
    assert not out.exists()
    with (tmp_path / "out.jsonl.journal").open("ab") as journal:
        journal.write(torn)
    calls.clear()
    report = Batch(lambda x: calls.append(x) or x * x, range(6), out, mapper=here).run()
    assert calls == [4, 5]
    assert (report.rows, report.resumed) == (6, 4)
    assert [line["row"] for line in read_output(out)] == [0, 1, 2, 3, 4, 5]


def test_a_journal_of_other_inputs_is_refused(tmp_path):
    with pytest.raises(Killed):
        Batch(str, range(6), tmp_path / "out.jsonl", mapper=killed_after(2)).run()
    with pytest.raises(JournalMismatch, match="row 0 is not"):
        Batch(str, [7, 8, 9], tmp_path / "out.jsonl", mapper=here).run()
    with pytest.raises(ValueError, match="have 1 rows, 2 are done"):
        Batch(str, [0], tmp_path / "out.jsonl", mapper=here).run()


def test_a_finished_output_is_not_overwritten(tmp_path):
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(FileExistsError):
        Batch(str, [1], tmp_path / "out.jsonl", mapper=here).run()


def test_a_class_is_made_once_and_arrays_become_lists(tmp_path):
    numpy = pytest.importorskip("numpy")
    made = []

    class Model:
        def __init__(self):
            made.append(self)

        def __call__(self, row):
            return numpy.arange(row)

    Batch(Model, [1, 2], tmp_path / "out.jsonl", mapper=here).run()
    assert len(made) == 1
    assert read_output(tmp_path / "out.jsonl")[1]["value"] == [0, 1]


def test_a_value_that_is_not_json_is_the_rows_error(tmp_path):
    report = Batch(lambda _: object(), [1], tmp_path / "out.jsonl", mapper=here).run()
    assert report.failed == 1
    assert "is not JSON" in read_output(tmp_path / "out.jsonl")[0]["error"]


def test_files_are_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert list(read_rows(tmp_path / "a.jsonl")) == [{"x": 1}, {"x": 2}]
    assert list(read_rows(str(tmp_path / "a.csv"))) == [{"x": "1", "y": "2"}]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    parquet.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [{"x": 1}, {"x": 2}]


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in"):
        list(read_rows("rows.txt"))
    (tmp_path / "a.jsonl").write_text(json.dumps(1) + "\n{\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        list(read_rows(tmp_path / "a.jsonl"))
    with pytest.raises(fabric.InvalidRequest, match="leave it out"):
        Batch(str, [1], tmp_path / "o", ordered=False)
    with pytest.raises(fabric.InvalidRequest, match="function or a class"):
        Batch(3, [1], tmp_path / "o")
