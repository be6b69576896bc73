"""The journal keeps whole records, in order, through any tear of its tail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.agent.journal import Journal, JournalGone, framed_bytes


def all_of(journal: Journal) -> list[bytes]:
    return journal.read(journal.start, 1 << 30)[0]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=12), st.data())
def test_a_torn_tail_loses_only_records_that_were_not_whole(tmp_path_factory, records, data):
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory)
    ends = [journal.append(record) for record in records]
    journal.close()
    cut = data.draw(st.integers(0, ends[-1]))
    (file,) = directory.glob("*.journal")
    file.write_bytes(file.read_bytes()[:cut])
    again = Journal(directory)
    whole = [record for record, end in zip(records, ends, strict=True) if end <= cut]
    assert all_of(again) == whole
    again.append(b"next")
    assert all_of(again) == [*whole, b"next"]
    again.close()


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=8), st.data())
def test_a_damaged_record_ends_the_journal_before_it(tmp_path_factory, records, data):
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory)
    ends = [journal.append(record) for record in records]
    journal.close()
    (file,) = directory.glob("*.journal")
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 0x55
    file.write_bytes(bytes(content))
    again = Journal(directory)
    whole = [record for record, end in zip(records, ends, strict=True) if end <= at]
    assert all_of(again) == whole
    again.close()


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=20), st.integers(1, 100))
def test_reading_in_pieces_gives_each_record_once(tmp_path_factory, records, limit):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    for record in records:
        journal.append(record)
    offset, seen = 0, []
    while offset < journal.end:
        part, behind = journal.read(offset, limit)
        assert behind == offset + sum(map(framed_bytes, part))
        seen += part
        offset = behind
    assert seen == records
    journal.close()


def test_old_segments_go_once_they_are_covered_and_offsets_stay(tmp_path):
    journal = Journal(tmp_path)
    first = journal.append(b"old")
    journal.rotate([b"held"])
    end = journal.append(b"new")
    journal.drop_before(first - 1)
    assert journal.start == 0
    journal.drop_before(first)
    assert journal.start == first
    assert journal.read(first) == ([b"held", b"new"], end)
    with pytest.raises(JournalGone):
        journal.read(0)
    identity = journal.id
    journal.close()
    again = Journal(tmp_path)
    assert (again.id, again.start, again.end) == (identity, first, end)
    again.close()


def test_an_offset_behind_the_end_is_refused(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(JournalGone):
        journal.read(1)
    journal.close()


def test_a_record_beyond_the_limit_is_refused(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(ValueError, match="at most"):
        journal.append(bytes((16 << 20) + 1))
    assert journal.end == 0
    journal.close()
