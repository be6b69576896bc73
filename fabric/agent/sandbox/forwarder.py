"""The inner end of a child's way to the network: `python -P -m fabric.agent.sandbox.forwarder SOCKET PORT`.

Runs inside the sandbox, with no more rights than the program it serves: takes connections on `127.0.0.1` and passes
them to the proxy's socket, which decides. Says `ready` on its standard output when it listens.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping

PORT = 3128

_PIECE_BYTES = 256 << 10


def start(path: str) -> Mapping[str, str]:
    """Start one as a process of its own; the environment that makes programs use it.

    Raises:
        OSError: it did not start.
    """
    argv = [sys.executable, "-P", "-m", "fabric.agent.sandbox.forwarder", path, str(PORT)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        if process.stdout.readline().strip() != b"ready":
            raise OSError("the way to the network did not open")
    url = f"http://127.0.0.1:{PORT}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = {spelling: url for name in names for spelling in (name, name.upper())}
    return proxies | {"no_proxy": "localhost,127.0.0.1", "NO_PROXY": "localhost,127.0.0.1"}


async def serve(path: str, port: int) -> None:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(path)
            try:
                await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
            finally:
                far_writer.close()
        except OSError:
            pass  # one side hung up
        finally:
            writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", port)
    os.write(1, b"ready\n")
    await server.serve_forever()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
