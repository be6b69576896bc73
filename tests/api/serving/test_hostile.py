"""The router against hostile customers, lying replicas, and what is missing when it starts again."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import fabric
from api.serving import endpoint as endpoints
from api.serving.openai import ChatIn
from fabric.client.events import Part
from fabric.client.http import ControlPlane
from fabric.wire.codec import encode

AUTH = {"Authorization": "Bearer fk_" + "1" * 43}


class Liar:
    """Answers as no honest model does."""

    model = "liar"

    def chat(self, messages, **_):
        last = messages[-1]["content"]
        yield {"text": "fine "} if last != "junk" else "no dict"
        yield {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}

    def embed(self, texts):
        return {"vectors": {"nan": [[float("nan")]], "none": None, "words": [["a"]]}.get(texts[0], [[1.0]])}

    def wait(self, seconds):
        import os
        import time

        self.waits = self.begun() + 1
        time.sleep(seconds)
        return os.getpid()

    def begun(self):
        """How often it was asked to wait."""
        return getattr(self, "waits", 0)

    def leave(self):
        import os

        import fabric

        fabric.simulate_preemption(after=0)
        return os.getpid()

    def nan(self):
        return float("nan")


def post(service, path, body, **options):
    url = service.url.removesuffix("/v1") + path
    return httpx.post(url, json=body, headers={**AUTH, **options.pop("headers", {})}, timeout=60, **options)


CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MALFORMED = [
    *((CHAT, {"messages": wrong}) for wrong in (None, [], "x", {}, [3], [{}], [{"role": "king", "content": "x"}])),
    *((CHAT, {"messages": [{"role": "user", "content": wrong}]}) for wrong in (3, {}, [{"type": "image_url"}])),
    *((CHAT, {"model": wrong}) for wrong in (None, 3, "", "other")),
    *((CHAT, {"max_tokens": wrong}) for wrong in (-1, 0, 1.5, "5", True)),
    *((CHAT, {"temperature": wrong}) for wrong in (-1, 2.1, "hot", True)),
    *((CHAT, {"stop": wrong}) for wrong in (["a"] * 5, [""], "", 3, [1])),
    *((CHAT, wrong) for wrong in ({"top_p": 0}, {"seed": 2**70}, {"n": 2}, {"n": True}, {"stream": "perhaps"})),
    *((CHAT, {"stream_options": wrong}) for wrong in (3, {"include_usage": "x"}, {"include_usage": True})),
    *((EMBEDDINGS, {"input": wrong}) for wrong in (None, "", [], [""], [1], {})),
    (EMBEDDINGS, {"encoding_format": "int8"}),
]
NOT_JSON = [
    b"", b"{", b"null", b"[]", b"[" * 100_000, b'{"model": "\xff"}', b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"model": "liar", "messages": [{"role": "user", "content": "\\ud800"}]}',
]  # fmt: skip


@pytest.mark.slow
def test_whatever_is_wrong_is_an_error_in_openais_format(make_town):
    town = make_town()
    town.operator("op-1")
    service = fabric.serve(Liar(), gpu="L4", max_rtt_ms=5000)
    said = {"model": "liar", "messages": [{"role": "user", "content": "x"}]}
    with httpx.Client(base_url=service.url.removesuffix("/v1"), headers=AUTH, timeout=60) as client:
        answers = [
            *(client.post(path, json=said | {"input": "x"} | wrong) for path, wrong in MALFORMED),
            *(client.post(path, content=wrong) for path in (CHAT, EMBEDDINGS) for wrong in NOT_JSON),
            client.post(CHAT, content=b'{"x": "' + b"a" * (16 << 20) + b'"}'),
            client.patch(CHAT),
        ]
    for at, answer in enumerate(answers):
        assert 400 <= answer.status_code < 500, (MALFORMED[at : at + 1], answer.text)
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert service.status["runs"] == [], "nothing ran, so nothing is billed"
    nulls = {"temperature": None, "n": None, "stop": None, "stream_options": None, "max_tokens": None, "seed": None}
    answer = post(service, "/v1/chat/completions", said | nulls)
    assert answer.json()["choices"][0]["message"]["content"] == "fine "
    tool = {"role": "assistant", "content": None, "tool_calls": []}
    assert post(service, "/v1/chat/completions", said | {"messages": [tool, *said["messages"]]}).status_code == 200
    junk = {"model": "liar", "messages": [{"role": "user", "content": "junk"}]}
    for path, body, status in [
        ("/v1/chat/completions", junk, 500),
        ("/v1/embeddings", {"model": "liar", "input": "nan"}, 500),
        ("/v1/embeddings", {"model": "liar", "input": "none"}, 500),
        ("/v1/embeddings", {"model": "liar", "input": "words", "encoding_format": "base64"}, 500),
        ("/v1/embeddings", {"model": "liar", "input": None}, 400),
        ("/call/nan", {}, 500),
        ("/call/start", {}, 404),
        ("/call/wait", {"args": 3}, 400),
        ("/v1/nothing", {}, 404),
    ]:
        answer = post(service, path, body)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]["message"], path
    assert post(service, "/v1/embeddings", {"model": "liar", "input": "ok"}).status_code == 200
    for key in ("fk_é".encode("latin-1"), b"fk_" + b"x" * 5000):
        answer = post(service, "/v1/embeddings", {}, headers={"Authorization": b"Bearer " + key})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    service.stop()


@pytest.mark.slow
def test_a_known_key_outlives_the_control_plane_and_counts_outlive_the_router(make_town):
    town = make_town()
    town.operator("op-1")
    service = fabric.serve(Liar(), gpu="L4")
    assert post(service, "/call/wait", {"args": [0]}).status_code == 200
    town.wait(lambda: service.status.get("requests") == 1)
    # A run that the router had noted and never submitted, as when it is killed in between.
    httpx.put(
        f"{town.url}/v1/serving/endpoints/{service.id}", json={"run": "run_never"}, headers=_router(town)
    ).raise_for_status()
    town.kill("serving")
    town.start("serving", ["-m", "api.serving"], town.serving_environ)
    answer = town.wait(lambda: _or_none(lambda: post(service, "/call/wait", {"args": [0]})))
    assert answer.status_code == 200
    town.wait(lambda: service.status.get("requests") == 2)
    town.wait(lambda: any(r["state"] == "ready" for r in service.status["replicas"]))
    town.parts["control"].terminate()
    town.parts["control"].wait(20)
    assert post(service, "/call/wait", {"args": [0]}).status_code == 200, "the replica and the key are known"
    answer = post(service, "/call/wait", {"args": [0]}, headers={"Authorization": "Bearer fk_unknown"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


@pytest.mark.slow
def test_a_replica_that_got_its_notice_finishes_what_it_has_and_another_one_goes_on(make_town):
    town = make_town()
    town.operator("op-1")
    town.operator("op-2")
    service = fabric.serve(Liar(), gpu="L4", replicas=(1, 1), max_concurrency=4)
    town.wait(lambda: any(r["state"] == "ready" for r in service.status.get("replicas", ())))
    first = service.status["replicas"][0]["operator"]
    with ThreadPoolExecutor(1) as pool:
        pid = post(service, "/call/wait", {"args": [0]}).json()["value"]
        slow = pool.submit(post, service, "/call/wait", {"args": [1.5]})
        town.wait(lambda: post(service, "/call/begun", {}).json()["value"] == 2)
        assert post(service, "/call/leave", {}).json()["value"] == pid
        others = [post(service, "/call/wait", {"args": [0]}) for _ in range(20)]
        assert {answer.status_code for answer in others} == {200}
        assert slow.result().json()["value"] == pid
    town.wait(lambda: post(service, "/call/wait", {"args": [0]}).json()["value"] != pid)
    town.wait(lambda: [r["operator"] for r in service.status["replicas"]] == [({"op-1", "op-2"} - {first}).pop()])
    assert service.status["failures"] == 0
    service.stop()


class Nowhere(endpoints.Endpoint):
    """An endpoint without replicas, for what it does by itself."""

    async def tick(self):
        """There is nobody to ask."""


async def test_parts_that_do_not_wait_for_their_reader_end_the_request():
    served = _endpoint()
    stream = served.stream("chat", endpoints.Prompt())
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    while not served.open_bytes:  # noqa: ASYNC110 - it is a number
        await asyncio.sleep(0)
    packed = encode("x")
    for seq in range(1000):
        served.put(Part(0, seq, [memoryview(packed.header), *map(memoryview, packed.buffers)]))
    assert served.open_bytes == 0, "nobody holds it any more"
    assert await reading == "x"
    with pytest.raises(fabric.RunFailed, match="ahead of its reader"):
        [piece async for piece in stream]


async def test_an_endpoint_says_when_it_is_full(monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_OPEN", 2)
    served = _endpoint()
    waiting = [asyncio.create_task(served.call("wait", "x" * 1000)) for _ in range(2)]
    assert not served.full
    while not served.full:  # noqa: ASYNC110 - it is a number
        await asyncio.sleep(0)
    assert served.open_bytes > 2000
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not served.full
    assert served.open_bytes == 0


def test_counts_go_on_from_the_last_report():
    async def made():
        return _endpoint({"requests": 4, "prompt_tokens": 9})

    served = asyncio.run(made())
    assert (served.requests, served.failures, served.tokens["prompt_tokens"]) == (4, 0, 9)


def test_nulls_are_what_was_left_out():
    asked = ChatIn.model_validate({"model": "m", "messages": [{"role": "user", "content": None}], "temperature": None})
    assert (asked.temperature, asked.messages[0].content) == (1.0, "")


def _endpoint(report=None):
    facts = {
        "id": "ep_1", "name": "m", "customer": "c", "min_replicas": 0, "max_replicas": 1, "at_once": 4, "methods": [],
        "report": report or {}, "runs": [],
    }  # fmt: skip
    plane = ControlPlane("http://127.0.0.1:1", "k")
    return Nowhere(facts, plane, plane, idle_s=1)


def _router(town):
    from api import router_tokens

    secret = router_tokens.load_secret(town.folder / "control")
    token = router_tokens.make(secret, router_tokens.ROUTER, time.time_ns() // 1_000_000)
    return {"Authorization": f"Bearer {token}"}


def _or_none(call):
    try:
        answer = call()
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 200 else None
