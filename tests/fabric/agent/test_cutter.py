from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.agent import cutter
from fabric.agent.cutter import Cutter
from fabric.wire.frames import MAX_HEADER_BYTES, PREFIX, FrameError, pack_bytes

SMALL = 64


@pytest.fixture(autouse=True, scope="module")
def small_fragments():
    """Fragments so short that short frames need several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutter, "FRAGMENT_BYTES", SMALL)
        yield


def messages_of(pieces):
    """What a WebSocket client makes of the pieces, each message whole."""
    messages = []
    for piece in pieces:
        if piece.first:
            messages.append(b"")
        messages[-1] += piece.data
        assert 0 < len(piece.data) <= SMALL
    return messages


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_every_frame_is_one_message_however_the_bytes_arrive(bodies, steps):
    frames = [pack_bytes(["result", number], body) for number, body in enumerate(bodies)]
    stream, at, pieces, cut = b"".join(frames), 0, [], Cutter()
    while at < len(stream):
        step = steps[len(pieces) % len(steps)]
        pieces += cut.feed(stream[at : at + step])
        at += step
    assert messages_of(pieces) == frames
    assert all(piece.first or not before.last for before, piece in pairwise(pieces))
    assert cut.between_frames


def test_what_is_cut_off_is_no_end_between_frames():
    frame = pack_bytes(["result"], b"x" * 300)
    for size in (1, PREFIX.size, PREFIX.size + 1, SMALL, len(frame) - 1):
        cut = Cutter()
        list(cut.feed(frame[:size]))
        assert not cut.between_frames


def test_a_long_frame_leaves_before_all_of_it_came():
    frame = pack_bytes(["result"], b"x" * 300)
    assert sum(len(piece.data) for piece in Cutter().feed(frame[:200])) == 200


def test_lengths_beyond_the_limits_are_no_frame():
    with pytest.raises(FrameError):
        list(Cutter().feed(PREFIX.pack(MAX_HEADER_BYTES + 1, 0)))
