"""A small real fabric for the SDK's tests: HTTP and WebSocket servers on loopback that speak the real frames."""

import asyncio
import hashlib
import json
import os
import pickle
import platform
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import cloudpickle
import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from fabric.client import session as sessions
from fabric.wire import channel, frames
from fabric.wire.codec import NotTransportable, encode, encode_exception
from fabric.wire.job import ProgramFailed

PRICE = 250_000
KEY = "fk_" + "0" * 40


class SmallNode:
    """One lease's node: runs tasks one at a time, keeps results until they are acknowledged, speaks real frames."""

    def __init__(self, lease, python):
        self.lease = lease
        self.python = python
        self.ws = None
        self.kept, self.functions, self.calls, self.ran = {}, {}, [], []
        self.running = None
        self.actors, self.at_work, self.cancelled, self.read_to, self.over = {}, [], [], {}, False
        self.queue = asyncio.Queue()
        self.drop_after = None
        self.close_with = None
        self.warn_with = None
        self.fail_with = []
        self.nonsense = False
        self.worker = asyncio.create_task(self.work())

    async def serve(self, ws):
        self.ws = ws
        await self.send(
            [
                channel.READY,
                {
                    "lease": self.lease,
                    "generation": 1,
                    "node": f"node-{self.lease}",
                    "python": self.python,
                    "cloudpickle": cloudpickle.__version__,
                },
            ]
        )
        async for message in self.messages(ws):
            header, body = frames.unpack(message)
            if header[0] == channel.FN:
                assert hashlib.sha256(body).digest() == header[1]
                self.functions[header[1]] = pickle.loads(body)
                if len(header) > 2:
                    self.actors[header[1]] = None
            elif header[0] == channel.CANCEL:
                self.cancelled += header[2]
            elif header[0] == channel.TAKEN:
                self.read_to[header[2]] = header[4]
            elif header[0] == channel.CALL and header[2] in self.actors:
                self.calls.append(header)
                pieces = frames.split(body, [size for task in header[3] for size in task[2]])
                for task, attempt, sizes in header[3]:
                    own = [bytes(next(pieces)) for _ in sizes]
                    self.at_work.append(asyncio.create_task(self.act(header[1], header[2], task, attempt, own)))
            elif header[0] == channel.CALL:
                self.calls.append(header)
                pieces = frames.split(body, [size for task in header[3] for size in task[2]])
                for task, attempt, sizes in header[3]:
                    self.queue.put_nowait((header[1], header[2], task, attempt, [bytes(next(pieces)) for _ in sizes]))
            elif header[0] == channel.ACK:
                for task in header[2]:
                    self.kept.pop((header[1], task), None)
            elif header[0] == channel.RESUME:
                await self.resume(header)

    async def messages(self, ws):
        try:
            async for message in ws:
                yield message
        except ConnectionClosed:
            return

    async def resume(self, header):
        _, run, owed = header
        waiting = {(r, t) for r, _, t, _, _ in self.queue._queue} | {self.running}
        unknown = []
        for task, _ in owed:
            if (run, task) in self.kept:
                await self.send(*self.kept[run, task])
            elif (run, task) not in waiting:
                unknown.append(task)
        if unknown:
            await self.send([channel.UNKNOWN, run, unknown])

    async def work(self):
        while True:
            run, digest, task, attempt, pieces = await self.queue.get()
            self.running = (run, task)
            if self.fail_with:
                reason = self.fail_with.pop(0)
                await self.send([channel.FAILED, run, [[task, attempt, reason, "as the test wants", None]]])
                continue
            self.ran.append((run, task, attempt))
            loop = asyncio.get_running_loop()
            status, encoded = await loop.run_in_executor(None, self.call, digest, pieces)
            if status is None:
                self.running = None
                await self.send([channel.FAILED, run, [[task, attempt, "user_error", "the program ended", encoded]]])
                continue
            sizes = [memoryview(part).nbytes for part in encoded]
            frame = ([channel.RESULT, run, [[task, attempt, status, 0, 0, 0, sizes]]], *encoded)
            self.kept[run, task] = frame
            if self.nonsense:
                await self.send([channel.RESULT, run, [[task, "what?"]]])
            self.running = None
            if self.warn_with is not None:
                reason, self.warn_with = self.warn_with, None
                await self.send([channel.NOTICE, reason, 30_000])
            if self.close_with is not None:
                reason, self.close_with = self.close_with, None
                await self.send([channel.CLOSED, reason, "as the test wants"])
                await self.ws.close()
                return
            if self.drop_after is not None and len(self.ran) >= self.drop_after:
                self.drop_after = None
                self.ws.transport.abort()
                continue
            await self.send(*frame)

    async def act(self, run, digest, task, attempt, pieces):
        """A task of an actor: beside the others, in a thread; its stream is sent as it comes."""
        loop = asyncio.get_running_loop()

        def send(*frame):
            asyncio.run_coroutine_threadsafe(self.send(*frame), loop).result(5)

        def work():
            name, streams, args, kwargs = pickle.loads(pieces[0], buffers=pieces[1:])[0]
            if self.actors[digest] is None:
                self.actors[digest] = self.functions[digest]()
            value = getattr(self.actors[digest], name)(*args, **kwargs) if name else None
            for seq, part in enumerate(value if streams else ()):
                while not self.over and seq > self.read_to.get(task, -1) + channel.PARTS_AHEAD:
                    if task in self.cancelled:
                        raise GeneratorExit
                    time.sleep(0.002)
                if self.over:
                    raise GeneratorExit
                encoded = encode(part)
                sizes = [memoryview(p).nbytes for p in (encoded.header, *encoded.buffers)]
                send([channel.PART, run, task, attempt, seq, sizes], encoded.header, *encoded.buffers)
            return None if streams else value

        self.ran.append((run, task, attempt))
        try:
            encoded = await loop.run_in_executor(None, lambda: encode(work()))
            status = channel.STATUS_VALUE
        except GeneratorExit:
            await self.send([channel.FAILED, run, [[task, attempt, "cancelled_by_user", "cancelled", None]]])
            return
        except Exception as error:  # noqa: BLE001 - whatever the method raises is its result
            encoded, status = encode_exception(error, traceback.format_exc()), channel.STATUS_EXCEPTION
        sizes = [memoryview(part).nbytes for part in (encoded.header, *encoded.buffers)]
        frame = ([channel.RESULT, run, [[task, attempt, status, 0, 0, 0, sizes]]], encoded.header, *encoded.buffers)
        self.kept[run, task] = frame
        await self.send(*frame)

    def call(self, digest, pieces):
        try:
            args, kwargs = pickle.loads(pieces[0], buffers=pieces[1:])
            encoded = encode(self.functions[digest](*args, **kwargs))
        except NotTransportable as error:
            return channel.STATUS_NOT_TRANSPORTABLE, [str(error).encode()]
        except ProgramFailed as error:
            return None, error.exit_code
        except Exception as error:  # noqa: BLE001 - whatever the function raises is its result
            encoded = encode_exception(error, traceback.format_exc())
            return channel.STATUS_EXCEPTION, [encoded.header, *encoded.buffers]
        return channel.STATUS_VALUE, [encoded.header, *encoded.buffers]

    async def send(self, header, *body):
        self.over = self.over or header[0] == channel.CLOSED
        try:
            await self.ws.send(frames.pack_bytes(header, *body))
        except ConnectionClosed:
            return


class SmallFabric:
    """A control plane with `gpus` leases to give and a node behind each."""

    def __init__(self, gpus):
        self.gpus = gpus
        self.runs, self.leases, self.nodes, self.blobs, self.endpoints = {}, {}, {}, {}, {}
        self.requests, self.problems, self.probes = [], [], []
        self.fits_nothing = ""
        self.away, self.last_words, self.unanswered = False, None, []
        self.more_offers = []
        self.wishes = {}
        self.python = ".".join(platform.python_version_tuple()[:2])
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = self.on_loop(self.start())
        self.port = self.server.sockets[0].getsockname()[1]
        fabric = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fabric.unanswered += [self.path.rpartition("/")[2]] * fabric.away
                if fabric.away and fabric.last_words is None:
                    self.close_connection = True
                    return
                status, answer = fabric.last_words if fabric.away else fabric.handle(self.command, self.path, body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815 - the base class names them

            def log_message(self, *_):
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    async def start(self):
        return await serve(self.connected, "127.0.0.1", 0, max_size=None, compression=None)

    def on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(5)

    def come_back(self):
        self.away, self.gpus = False, 2

    def go_away(self):
        """Answer nothing more, and drop every connection to a node."""
        self.away = True
        for node in self.nodes.values():
            if node.ws is not None:
                self.loop.call_soon_threadsafe(node.ws.transport.abort)

    async def connected(self, ws):
        if self.away:
            ws.transport.abort()
            return
        lease = ws.request.headers["Authorization"].removeprefix("Bearer token-")
        await self.nodes[lease].serve(ws)

    def node(self, at=0):
        return list(self.nodes.values())[at]

    def handle(self, method, path, body):
        url = urlsplit(path)
        parts = url.path.strip("/").split("/")[1:]
        content = json.loads(body or b"{}") if parts[0] != "blobs" else body
        self.requests.append((method, url.path, content))
        if self.problems:
            return 400, {"type": f"/problems/{self.problems[0][0]}", "detail": self.problems.pop(0)[1]}
        if self.fits_nothing and (method, parts) == ("POST", ["runs"]):
            return 409, {"type": "/problems/no-capacity", "detail": self.fits_nothing}
        if self.fits_nothing and parts[0] == "offers":
            return 200, {"offers": []}
        if parts[0] == "blobs":
            return self.blob(method, parts[1], body)
        if parts[0] == "offers":
            self.wishes = parse_qs(url.query)
            offer = {
                "operator": "op_1",
                "operator_name": "acme",
                "region": "eu",
                "vendor": "nvidia",
                "model": "H100",
                "memory_bytes": 80 * 10**9,
                "count_free": self.gpus,
                "count_total": self.gpus,
                "per_node": 1,
                "tier": "on_demand",
                "price_dc_per_gpu_hour": str(PRICE),
                "reputation": 500,
                "verification": 1,
                "simulated": True,
            }
            return 200, {"offers": [offer, *(offer | other for other in self.more_offers)]}
        return getattr(self, f"handle_{parts[0]}")(method, parts[1:], content, parse_qs(url.query))

    def handle_ping(self, _method, _parts, _content, _query):
        return 200, b""

    def handle_sessions(self, _method, parts, content, _query):
        if parts[1] == "rtts":
            return 200, {"probe": self.probes.pop(0) if self.probes else []}
        for entry in content.get("runs", []) if parts[1] == "runs" else []:
            request = entry["request"]
            run = self.runs.setdefault(request["id"], self.new_run(request))
            run["leases"] = [request["lease"]["id"]]
            run["state"], run["reason"], run["message"] = entry["state"], entry["reason"], entry["message"]
        return 200, {"runs": []}

    def new_run(self, request):
        return {"request": request, "state": "QUEUED", "reason": "", "message": "", "leases": []}

    def blob(self, method, digest, body):
        if method == "PUT":
            self.blobs[digest] = body
            return 201, {}
        return (200, self.blobs[digest]) if digest in self.blobs else (404, {"detail": "no such blob"})

    def handle_runs(self, method, parts, content, query):
        if not parts and method == "GET":
            return 200, {"runs": [self.describe(run) for run in self.runs], "next": None}
        if not parts:
            run = self.runs.setdefault(content["id"], self.new_run(content))
            self.grant(content["id"], content["leases"])
            if content["kind"] == "submit":
                self.on_loop(self.work(content["id"]))
            return 201, self.describe(content["id"])
        run = self.runs.get(parts[0])
        if run is None:
            return 404, {"type": "/problems/invalid-request", "detail": f"no run {parts[0]}"}
        if parts[1:] == ["route"]:
            routes = [
                {
                    "lease": lease,
                    "generation": 1,
                    "gateway": f"ws://127.0.0.1:{self.port}/v1/channel",
                    "token": f"token-{lease}",
                }
                for lease in run["leases"]
                if self.leases[lease]["state"] == "OPEN"
            ]
            return 200, {"state": run["state"], "reason": run["reason"], "message": run["message"], "routes": routes}
        if parts[1:] == ["leases"]:
            self.grant(parts[0], content["count"])
        elif parts[1:] == ["logs"]:
            events = "".join(f"data: {json.dumps(line)}\n\n" for line in run.get("logs", []))
            return 200, f"{events}event: end\ndata: {{}}\n\n".encode()
        elif parts[1:] == ["finish"]:
            run["state"], run["reason"], run["message"] = content["state"], content["reason"], content["message"]
        elif parts[1:] == ["cancel"]:
            run["state"], run["reason"] = "CANCELLED", "cancelled_by_user"
        return 200, self.describe(parts[0])

    def handle_endpoints(self, method, parts, content, query):
        if method == "POST" and not parts:
            facts = {
                "id": content["id"], "name": content["name"], "url": f"http://router/serve/{content['id']}/v1",
                "state": "ACTIVE", "runs": [], "report": {}, "spent_dc": "0", "given": content,
            }  # fmt: skip
            self.endpoints[content["id"]] = facts
            return 201, facts
        if not parts:
            shown = [e for e in self.endpoints.values() if e["state"] == "ACTIVE" or query["all"] == ["true"]]
            return 200, {"endpoints": shown}
        if parts[0] not in self.endpoints:
            return 404, {"type": "/problems/not-found", "detail": f"there is no endpoint {parts[0]} in this account"}
        if parts[1:] == ["stop"]:
            self.endpoints[parts[0]]["state"] = "STOPPED"
        return 200, self.endpoints[parts[0]]

    def handle_leases(self, _method, parts, content, _query):
        if content["reason"] in ("operator_lost", "gpu_unhealthy"):
            return 422, {"type": "/problems/invalid-request", "detail": "that is for the fabric to say"}
        self.leases[parts[0]]["state"] = "CLOSED"
        self.leases[parts[0]]["released"] = content["reason"]
        return 200, {}

    def grant(self, run, count):
        active = sum(lease["state"] == "OPEN" for lease in self.leases.values())
        for _ in range(min(count, self.gpus - active)):
            lease = f"lease{len(self.leases)}"
            self.leases[lease] = {"state": "OPEN", "released": ""}
            self.nodes[lease] = self.on_loop(self.make_node(lease))
            self.runs[run]["leases"].append(lease)
            self.runs[run]["state"] = "RUNNING"

    async def make_node(self, lease):
        return SmallNode(lease, self.python)

    async def work(self, run):
        """What an agent does with a detached run: its one task, then the result blob."""
        request = self.runs[run]["request"]
        node = SmallNode("detached", self.python)
        node.functions[b"x"] = pickle.loads(self.blobs[request["work"]["code"]])
        header, body = frames.unpack(self.blobs[request["work"]["args"]])
        assert header[0] == channel.CALL
        status, encoded = node.call(b"x", [bytes(p) for p in frames.split(body, header[3][0][2])])
        sizes = [memoryview(part).nbytes for part in encoded]
        blob = frames.pack_bytes([channel.RESULT, run, [[0, 1, status, 0, 0, 0, sizes]]], *encoded)
        digest = hashlib.sha256(blob).hexdigest()
        self.blobs[digest] = blob
        self.runs[run] |= {
            "state": "FAILED" if status else "SUCCEEDED",
            "result": {"blob": digest, "message": ""},
            "reason": "user_error" if status else "done",
        }

    def describe(self, run):
        facts = self.runs[run]
        leases = [
            {
                "id": lease,
                "generation": 1,
                "state": self.leases[lease]["state"],
                "reason": "",
                "operator": "op_1",
                "operator_name": "acme",
                "node": f"node-{lease}",
                "price_dc_per_gpu_hour": PRICE,
                "gpus": [{"model": "H100", "share_milli": 1000, "simulated": True}],
                "granted_at_ms": time.time_ns() // 10**6,
                "opened_at_ms": None,
            }
            for lease in facts["leases"]
        ]
        return {
            "id": run,
            "kind": facts["request"]["kind"],
            "name": facts["request"]["name"],
            "tags": facts["request"]["tags"],
            "state": facts["state"],
            "reason": facts["reason"],
            "message": facts["message"],
            "leases": leases,
            "attempts": facts.get("attempts", []),
            "result": facts.get("result"),
            "cost": {
                "accrued_dc": "123456",
                "held_dc": "0",
                "rate_dc_per_hour": "250000",
                "gpu_ms": 1234,
                "idle_ms": 0,
                "setup_ms": 0,
                "utilised_gpu_ms": 0,
                "energy_mj": 0,
                "budget_dc": None,
            },
            "explain": {"considered": 1, "rejected": {}, "chosen": None, "next_best": None, "text": "the only one"},
        }

    def close(self):
        for node in self.nodes.values():
            node.over = True
        self.http.shutdown()
        self.http.server_close()

        async def stop():
            self.server.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()

        self.on_loop(stop())


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith("FABRIC_"):
            monkeypatch.delenv(key)


@pytest.fixture
def small_fabric(monkeypatch):
    """A fabric with two GPUs, chosen by the environment as a user would."""
    fabric = SmallFabric(gpus=2)
    monkeypatch.setenv("FABRIC_URL", fabric.url)
    monkeypatch.setenv("FABRIC_API_KEY", KEY)
    yield fabric
    sessions.end()
    fabric.close()
