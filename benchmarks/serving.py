"""What a served chat model answers beside a bare transformers server and Ray Serve: same weights, requests and machine.

`ours` is `fabric.serve` of a `workloads.ChatModel` on an embedded fabric, started for the purpose; `plain` is one
FastAPI process that generates one request after the other; `ray_serve` is the same engine as ours in a deployment of
Ray Serve (`pip install 'berkeley-compute[benchmarks]'`; left out without it). All are up and warm, with the same number
of threads, and get their requests in turns: in each round every server alone has all clients ask it. A ratio is the
median of the rounds', so that a load that drifts cancels; the least and the largest are printed beside it. Requests are
streamed chat completions at temperature 0. Absolute figures are of the machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.run_overhead import embedded_fabric, percentile
from workloads import ChatModel

MODEL = "SmolLM2-135M-Instruct"
READY_WITHIN_S = 180
TOPICS = ("the sea", "a railway", "bread", "winter", "a library", "gold", "bees", "the moon")


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 2 when an argument is wrong or the weights are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--clients", type=_positive, default=4, help="that ask at the same time (default 4)")
    parser.add_argument("--rounds", type=_positive, default=5, help="in which each server has its turn (default 5)")
    parser.add_argument("--requests", type=_positive, default=1, help="of each client in a turn (default 1)")
    parser.add_argument("--tokens", type=_positive, default=16, help="of an answer, at most (default 16)")
    parser.add_argument("--threads", type=_positive, default=1, help="of each model (default 1)")
    parser.add_argument("--model", default=MODEL, help=f"a folder, a GGUF file or a packaged name (default {MODEL})")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 2 clients, 8 tokens: to see that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--server", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.server:
        SERVERS[options.server[0]](options.model, int(options.server[1]), options.clients, options.threads)
        return 0
    if options.quick:
        options.rounds, options.clients, options.tokens = 2, 2, 8
    if missing := _missing_weights(options.model):
        print(f"benchmarks.serving: {missing}", file=sys.stderr)
        return 2
    asked = ("rounds", "clients", "requests", "tokens", "threads", "model", "quick")
    config = {name: getattr(options, name) for name in asked}
    report = {"name": "serving", "config": config | {"cores": os.cpu_count()}, "figures": measure(options)}
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report["figures"].items():
            print(f"{name:32} {value:12.3f}")
    return 0


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The figures of all that can run here; what is left out is said on standard error."""
    with contextlib.ExitStack() as up:
        targets = {"": up.enter_context(our_service(options))}
        for kind in ("plain", "ray_serve"):
            if kind == "plain" or has_ray_serve():
                targets[f"{kind}_"] = up.enter_context(plain_server(kind, options))
            else:
                print("Ray Serve left out: pip install 'berkeley-compute[benchmarks]'", file=sys.stderr)
        for target in targets.values():
            asyncio.run(wake(target, options.clients, options.tokens))
        rounds = [one_round(targets, number, options) for number in range(options.rounds)]
    outcomes = {prefix: [turns[prefix] for turns in rounds] for prefix in targets}
    figures = {k: v for prefix, turns in outcomes.items() for k, v in figures_of(merged(turns), prefix).items()}
    for prefix in targets.keys() - {""}:
        figures |= ratios_of(outcomes[""], outcomes[prefix], f"vs_{prefix}ratio")
    return figures | {"same_answers_pct": same_pct(merged(outcomes[""]), merged(outcomes["plain_"]))}


# What asks.


@dataclass(frozen=True)
class Target:
    """A server under test; `alive` raises when it has ended."""

    url: str
    api_key: str
    model: str
    alive: Callable[[], None]


@dataclass(frozen=True)
class Answer:
    """One answer: when its first and last text came, counted from the request, in ms; and its tokens."""

    ttft_ms: float
    last_ms: float
    tokens: int
    text: str


@dataclass(frozen=True)
class Outcome:
    """All answers, in the order of their questions, and how long they took together."""

    answers: Sequence[Answer]
    seconds: float


def figures_of(outcome: Outcome, prefix: str = "") -> dict[str, float]:
    """Rates per second and times in ms; an answer of one token says nothing of the time of a further one."""
    first = [answer.ttft_ms for answer in outcome.answers]
    further = [(a.last_ms - a.ttft_ms) / (a.tokens - 1) for a in outcome.answers if a.tokens > 1]
    figures = {
        "requests_per_s": len(outcome.answers) / outcome.seconds,
        "tokens_per_s": sum(answer.tokens for answer in outcome.answers) / outcome.seconds,
        "ttft_p50_ms": percentile(first, 50),
        "ttft_p99_ms": percentile(first, 99),
    }
    if further:
        figures |= {"tpot_p50_ms": percentile(further, 50), "tpot_p99_ms": percentile(further, 99)}
    return {prefix + name: value for name, value in figures.items()}


def merged(turns: Sequence[Outcome]) -> Outcome:
    """All turns of a server as one."""
    return Outcome([answer for turn in turns for answer in turn.answers], sum(turn.seconds for turn in turns))


def ratios_of(ours: Sequence[Outcome], theirs: Sequence[Outcome], name: str) -> dict[str, float]:
    """Ours ÷ theirs in requests per second: the rounds' median, least and largest."""
    each = [
        (len(mine.answers) / mine.seconds) / (len(other.answers) / other.seconds)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return {name: statistics.median(each), f"{name}_min": min(each), f"{name}_max": max(each)}


def same_pct(one: Outcome, other: Outcome) -> float:
    """How many answers have the same text, in per cent."""
    pairs = list(zip(one.answers, other.answers, strict=True))
    return 100 * sum(a.text == b.text for a, b in pairs) / len(pairs)


def one_round(targets: Mapping[str, Target], number: int, options: argparse.Namespace) -> dict[str, Outcome]:
    """A turn of each, alone, with the same questions; another one begins each time."""
    names = list(targets)
    names = names[number % len(names) :] + names[: number % len(names)]
    return {name: asyncio.run(ask_all(targets[name], number, options)) for name in names}


async def wake(target: Target, clients: int, tokens: int) -> None:
    """Wait until it answers, and warm it up with a request of each client."""
    async with _client(target) as http:
        await _ready(http, target)
        await asyncio.gather(*(ask(http, target.model, -1 - client, tokens) for client in range(clients)))


async def ask_all(target: Target, number: int, options: argparse.Namespace) -> Outcome:
    """The turn of this number: each client asks again as soon as it is answered."""
    async with _client(target) as http:

        async def one_client(client: int) -> list[Answer]:
            first = (number * options.clients + client) * options.requests
            return [await ask(http, target.model, first + n, options.tokens) for n in range(options.requests)]

        started = time.perf_counter()
        rows = await asyncio.gather(*map(one_client, range(options.clients)))
        seconds = time.perf_counter() - started
    return Outcome([answer for row in rows for answer in row], seconds)


def _client(target: Target) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {target.api_key}"}
    return httpx.AsyncClient(base_url=target.url, headers=headers, timeout=READY_WITHIN_S)


async def _ready(http: httpx.AsyncClient, target: Target) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while True:
        target.alive()
        try:
            await ask(http, target.model, 0, 2)
            return
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if time.monotonic() > until:
                raise SystemExit(f"{target.url} did not answer within {READY_WITHIN_S} s: {error}") from None
        await asyncio.sleep(0.2)


async def ask(http: httpx.AsyncClient, model: str, number: int, tokens: int) -> Answer:
    """One streamed chat completion.

    Raises:
        RuntimeError: the stream ended with an error, or without text.
    """
    question = f"Question {number}: tell me something about {TOPICS[number % len(TOPICS)]}."
    body = {
        "model": model, "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    text, first, last, spent = "", 0.0, 0.0, 0
    started = time.perf_counter()
    async with http.stream("POST", "chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(f"{answer.url} answered with an error: {chunk['error']}")
            spent = (chunk.get("usage") or {}).get("completion_tokens", spent)
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if piece:
                last = (time.perf_counter() - started) * 1000
                first, text = first or last, text + piece
    if not text or not spent:
        raise RuntimeError(f"{answer.url} gave no text or no usage for {question!r}")
    return Answer(first, last, spent, text)


# What is asked.


class Engine(ChatModel):
    """The product's engine, with so many threads wherever it runs."""

    def __init__(self, model: str, threads: int) -> None:
        super().__init__(model)
        self.threads = threads

    def start(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        super().start()


@contextlib.contextmanager
def our_service(options: argparse.Namespace) -> Iterator[Target]:
    """One replica on an embedded fabric, both gone at the end."""
    with embedded_fabric():
        import fabric

        service = fabric.serve(Engine(options.model, options.threads), replicas=1, max_concurrency=options.clients)
        try:
            yield Target(service.url.rstrip("/") + "/", service.api_key, service.name, lambda: None)
        finally:
            service.stop()


@contextlib.contextmanager
def plain_server(kind: str, options: argparse.Namespace) -> Iterator[Target]:
    """One of `SERVERS` in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        "-m",
        "benchmarks.serving",
        "--server",
        kind,
        str(port),
        "--model",
        options.model,
        f"--threads={options.threads}",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FABRIC_"))}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command, f"--clients={options.clients}"],
            env=kept, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

        def alive() -> None:
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the {kind} server ended:\n{log.read().decode(errors='replace')[-3000:]}")

        try:
            yield Target(f"http://127.0.0.1:{port}/v1/", "none", options.model, alive)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Plain:
    """What one writes first: `model.generate`, one request after the other, each token's text as it comes."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from workloads.inference import weights

        torch.set_num_threads(threads)
        path = weights.find(model)
        device = weights.device_for(path)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._tokenizer: Any = weights.load(path, AutoTokenizer)
        self._model: Any = weights.load(path, AutoModelForCausalLM, dtype=dtype).to(device).eval()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)  # one for good: a thread brings its own pool of OpenMP threads

    async def chat(self, messages: Sequence[dict[str, Any]], *, max_tokens: int, **_: Any) -> AsyncIterator[Any]:
        """As `ChatModel.chat`, always at temperature 0."""
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(self._model.device)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        put = asyncio.get_running_loop().call_soon_threadsafe

        class Streamer:
            """What `generate` tells its tokens: first the whole prompt, then one by one."""

            def put(self, value: Any) -> None:
                put(arrived.put_nowait, value)

            def end(self) -> None:
                """`generate` returned; `work` says so, whether it did or failed."""

        def work() -> None:
            try:
                self._model.generate(**tokens, max_new_tokens=max_tokens, do_sample=False, streamer=Streamer())
            finally:
                put(arrived.put_nowait, None)

        async with self._turn:
            self._thread.submit(work)
            await arrived.get()
            written, shown = [], ""
            while (token := await arrived.get()) is not None:
                written.append(int(token))
                text = self._tokenizer.decode(written, skip_special_tokens=True)
                if text != shown and not text.endswith("\ufffd"):
                    yield {"text": text[len(shown) :]}
                    shown = text
        yield {
            "finish_reason": "stop",
            "prompt_tokens": tokens["input_ids"].shape[1],
            "completion_tokens": len(written),
        }


async def events(engine: Any, body: dict[str, Any]) -> AsyncIterator[str]:
    """An engine's answer as OpenAI's stream."""
    async for piece in engine.chat(body["messages"], max_tokens=body["max_tokens"], temperature=0):
        chunk: dict[str, Any] = {"object": "chat.completion.chunk", "model": body["model"], "choices": []}
        if "text" in piece:
            chunk["choices"] = [{"index": 0, "delta": {"content": piece["text"]}, "finish_reason": None}]
        else:
            chunk["usage"] = {name: piece[name] for name in ("prompt_tokens", "completion_tokens")}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def serve_plain(model: str, port: int, _clients: int, threads: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    engine, app = Plain(model, threads), FastAPI()

    @app.post("/v1/chat/completions")
    async def completions(body: dict[str, Any]) -> StreamingResponse:
        return StreamingResponse(events(engine, body), media_type="text/event-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def serve_by_ray(model: str, port: int, clients: int, threads: int) -> None:
    """A local Ray cluster of its own with one replica, until SIGTERM."""
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    class Replica:
        def __init__(self) -> None:
            self._engine = Engine(model, threads)
            self._engine.start()

        async def __call__(self, request: Request) -> StreamingResponse:
            return StreamingResponse(events(self._engine, await request.json()), media_type="text/event-stream")

    stopped = threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-serve-") as folder:
        ray.init(address="local", include_dashboard=False, _temp_dir=folder)
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            made: Any = serve.deployment(Replica, max_ongoing_requests=clients)  # type: ignore[call-overload]
            serve.run(made.bind(), route_prefix="/v1/chat/completions")
            stopped.wait()
        finally:
            serve.shutdown()
            ray.shutdown()


SERVERS = {"plain": serve_plain, "ray_serve": serve_by_ray}


def has_ray_serve() -> bool:
    try:
        import ray.serve  # noqa: F401 - whether all that it needs is there
    except ImportError:
        return False
    return True


def _missing_weights(model: str) -> str:
    import fabric
    from workloads.inference import weights

    try:
        weights.find(model)
    except fabric.InvalidRequest as error:
        return str(error)
    return ""


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
