"""Whose line is whose: a model of a child that writes, marks and goes on, read at any moment."""

import os

from hypothesis import given
from hypothesis import strategies as st

from fabric.agent.output import MAX_LINE_BYTES, OutputPipe

STAMP = b"0123456789abcdef"


class Child:
    """Writes as the real one does: a mark at a task's end when something of it has not been read."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self.running = self.ended = 0
        self.unread = 0

    def write(self, data: bytes) -> None:
        os.write(self.write_fd, data)
        self.unread += len(data)

    def end(self) -> None:
        if self.unread:
            self.write(b"\x1e%s %d\x1e" % (STAMP, self.running))
        self.ended = self.running

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x1e"), min_size=1, max_size=20)


@given(st.lists(st.lists(st.tuples(TEXT, st.booleans(), st.booleans()), max_size=4), min_size=1, max_size=6))
def test_every_byte_comes_once_under_the_task_that_wrote_it(tasks):
    child, lines = Child(), []
    pipe = OutputPipe(child.read_fd, 1, STAMP)

    def read() -> None:
        lines.extend(pipe.drain(child))
        child.unread = 0

    for number, writes in enumerate(tasks, start=1):
        child.running = number
        for text, newline, read_now in writes:
            child.write(text.encode() + (b"\n" if newline else b""))
            if read_now:
                read()
        child.end()
    read()
    written = {n: "".join(text for text, _, _ in writes) for n, writes in enumerate(tasks, start=1) if writes}
    heard = {n: "".join(line.text for line in lines if line.number == n) for n in {line.number for line in lines}}
    assert heard == written
    child.close()


def test_a_line_without_an_end_is_out_before_its_tasks_result():
    child = Child()
    pipe = OutputPipe(child.read_fd, 2, STAMP)
    child.running = 1
    child.write(b"half")
    assert pipe.drain(child) == []
    child.unread = 0
    child.end()
    assert [(line.number, line.stream, line.text) for line in pipe.drain(child)] == [(1, 2, "half")]
    child.close()


def test_a_line_beyond_the_limit_is_cut_and_says_so():
    child = Child()
    pipe = OutputPipe(child.read_fd, 1, STAMP)
    child.running = 1
    for _ in range(3):
        child.write(b"x" * 40_000)
        assert pipe.drain(child) == []
    child.write(b"\n")
    (line,) = pipe.drain(child)
    assert line.text.startswith("x" * MAX_LINE_BYTES)
    assert line.text.endswith("… (cut)")
    assert len(line.text) < MAX_LINE_BYTES + 100
    child.close()


def test_a_mark_that_the_customers_code_makes_up_breaks_nothing():
    child = Child()
    pipe = OutputPipe(child.read_fd, 1, STAMP)
    child.running = 1
    child.write(b"a\x1e" + STAMP + b" nonsense\x1eb\n")
    assert [line.number for line in pipe.drain(child)] == [1, 1]
    child.close()


def test_bytes_that_are_no_text_are_replaced():
    child = Child()
    pipe = OutputPipe(child.read_fd, 1, STAMP)
    child.running = 1
    child.write(b"\xff\xfe\n")
    assert pipe.drain(child)[0].text == "\ufffd\ufffd"
    child.close()
