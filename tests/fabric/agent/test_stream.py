"""Frames over a real socket: whole, in order, held when told to, ended by anything that is no frame."""

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.agent.stream import FrameStream
from fabric.wire.frames import PREFIX, FrameError, pack_bytes


class Ends:
    """A stream and the plain socket at its other end."""

    async def open(self) -> "Ends":
        ours, self.raw = socket.socketpair()
        self.raw.setblocking(False)
        self.frames: list[tuple[list[Any], bytes]] = []
        self.error: Any = "open"
        self.arrived = asyncio.Event()
        self.closed = asyncio.Event()
        loop = asyncio.get_running_loop()
        _, self.stream = await loop.create_unix_connection(
            lambda: FrameStream(self._on_frame, self._on_closed), sock=ours
        )
        return self

    async def put(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.raw, data)

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.frames) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def close(self) -> None:
        self.stream.abort()
        self.raw.close()
        await self.closed.wait()

    def _on_frame(self, header: list[Any], body: Any) -> None:
        self.frames.append((header, bytes(body)))
        self.arrived.set()

    def _on_closed(self, error: Exception | None) -> None:
        self.error = error
        self.closed.set()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 400_000)), min_size=1, max_size=5),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=5),
)
def test_frames_arrive_whole_however_the_bytes_are_cut(sizes, cuts):
    async def scenario() -> None:
        ends = await Ends().open()
        frames = [(["kind", bytes(head)], bytes([n % 251]) * body) for n, (head, body) in enumerate(sizes)]
        data = b"".join(pack_bytes(header, body) for header, body in frames)
        at = turn = 0
        while at < len(data):
            step = cuts[turn % len(cuts)]
            await ends.put(data[at : at + step])
            at, turn = at + step, turn + 1
        await ends.wait(len(frames))
        assert ends.frames == frames
        await ends.close()

    asyncio.run(scenario())


async def test_a_held_stream_delivers_nothing_until_it_is_released():
    ends = await Ends().open()
    ends.stream.hold()
    await ends.put(pack_bytes(["a"]) + pack_bytes(["b"]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert ends.frames == []
    ends.stream.release()
    await ends.wait(2)
    await ends.close()


async def test_what_is_sent_arrives_as_frames_small_and_large():
    ends = await Ends().open()
    large = bytes(1 << 20)
    ends.stream.send(["small", 1], b"ab", b"c")
    ends.stream.send(["large"], large)
    expected = pack_bytes(["small", 1], b"abc") + pack_bytes(["large"], large)
    got = b""
    while len(got) < len(expected):
        got += await asyncio.get_running_loop().sock_recv(ends.raw, 1 << 20)
    assert got == expected
    await ends.close()


@pytest.mark.parametrize(
    "data", [PREFIX.pack(1 << 31, 0), PREFIX.pack(1, 1 << 60), PREFIX.pack(1, 0) + b"\xc0", PREFIX.pack(0, 0)]
)
async def test_bytes_that_are_no_frame_end_the_stream_before_anything_is_allocated(data):
    ends = await Ends().open()
    await ends.put(data)
    await asyncio.wait_for(ends.closed.wait(), 10)
    assert isinstance(ends.error, FrameError)
    assert ends.frames == []
    ends.raw.close()


async def test_sending_on_a_closed_stream_is_nothing():
    ends = await Ends().open()
    await ends.close()
    ends.stream.send(["late"])
    assert not ends.stream.open
