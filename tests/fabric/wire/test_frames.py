import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire import frames

header_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)


@given(st.text(max_size=10), st.lists(header_values, max_size=4), st.lists(st.binary(max_size=200), max_size=4))
def test_a_frame_comes_back_as_it_went(kind, rest, pieces):
    header, body = frames.unpack(frames.pack_bytes([kind, *rest], *pieces))
    assert header == [kind, *rest]
    assert [bytes(p) for p in frames.split(body, [len(p) for p in pieces])] == pieces


@given(st.binary(max_size=100))
def test_noise_is_refused_and_nothing_else_happens(noise):
    try:
        header, _ = frames.unpack(noise)
    except frames.FrameError:
        return
    assert isinstance(header[0], str)


@given(st.data())
def test_a_frame_cut_off_anywhere_is_refused(data):
    frame = frames.pack_bytes(["call", 1, 2], b"x" * 50)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(frames.FrameError):
        frames.unpack(frame[:cut])


def test_a_frame_that_announces_too_much_is_refused_before_it_is_read():
    with pytest.raises(frames.FrameError, match="at most"):
        frames.unpack_lengths(frames.PREFIX.pack(frames.MAX_HEADER_BYTES + 1, 0))
    with pytest.raises(frames.FrameError, match="at most"):
        frames.unpack_lengths(frames.PREFIX.pack(10, frames.MAX_BODY_BYTES + 1))
    assert frames.unpack_lengths(frames.PREFIX.pack(10, 20)) == (10, 20)


@pytest.mark.parametrize("sizes", [[1, 1], [4, -1], [3, 1]])
def test_pieces_that_do_not_add_up_are_refused(sizes):
    with pytest.raises(frames.FrameError, match="body of 3"):
        list(frames.split(memoryview(b"abc"), sizes))


@pytest.mark.parametrize("header", [b"\x90", b"\x91\x01", b"\x81\xa1a\x01", b"\xc1"])
def test_a_header_without_a_kind_is_refused(header):
    with pytest.raises(frames.FrameError):
        frames.unpack_header(header)
