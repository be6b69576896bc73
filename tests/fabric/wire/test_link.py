import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire import link

GRANT = link.Grant(
    lease="lease_a",
    generation=1,
    session="ses_a",
    run="run_a",
    node="node_a",
    gpus=[link.GpuShare(uuid="GPU-1", share_milli=1000)],
    cpu_milli=1000,
    memory_bytes=1,
    startup_timeout_ms=120_000,
    notice_ms=0,
    nonce=link.Nonce(seq=1, value=b"v"),
)


@pytest.mark.parametrize(
    "message", [GRANT, GRANT.nonce, link.Ack(lease="l", generation=1, seq=-1), link.Receipts(receipts=[b"r"])]
)
def test_a_message_comes_back_as_it_went(message):
    assert link.decode(link.encode(message)) == message


@given(st.binary(max_size=60))
def test_noise_is_refused(noise):
    with pytest.raises(link.LinkError):
        link.decode(noise)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "grants"}, "grants"),
        ({"generation": "1"}, "grant.generation"),
        ({"surprise": 1}, "grant.surprise"),
        ({"gpus": [{"uuid": "GPU-1", "share_milli": 1001}]}, "share_milli"),
    ],
)
def test_a_message_with_a_field_that_does_not_belong_is_refused_and_named(change, said):
    with pytest.raises(link.LinkError, match=said):
        link.decode(msgpack.packb({**GRANT.model_dump(), **change}))


def test_a_message_that_is_too_long_is_refused():
    with pytest.raises(link.LinkError, match="at most"):
        link.decode(bytes(link.MAX_MESSAGE_BYTES + 1))
