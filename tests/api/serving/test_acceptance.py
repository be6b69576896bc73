"""Inference end to end, in real processes: two operators, one of them killed, through the official `openai` client."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import fabric

pytestmark = pytest.mark.slow


class Echo:
    """Answers with the words of the last message, one piece a word; `slow` seconds between them."""

    model = "echo"

    def __init__(self, slow=0.02):
        self.slow = slow

    def start(self):
        import os

        self.pid = os.getpid()

    async def chat(self, messages, **wishes):
        import asyncio

        words = messages[-1]["content"].split()[: wishes["max_tokens"] or 1000]
        if words == ["fail"]:
            raise fabric.InvalidRequest("the model does not like this", code="disliked")
        for word in words:
            await asyncio.sleep(self.slow)
            yield {"text": word + " "}
        fabric.count(completion_tokens=len(words))
        yield {"finish_reason": "stop", "prompt_tokens": len(words), "completion_tokens": len(words)}

    def embed(self, texts):
        return {"vectors": [[float(len(text)), 0.5] for text in texts], "prompt_tokens": len(texts)}

    def double(self, x):
        return {"twice": 2 * x, "pid": self.pid}

    def count_to(self, n):
        yield from range(n)


@pytest.fixture
def client_of():
    """OpenAI's client of a service, closed at the end."""
    made = []

    def make(service):
        made.append(openai.OpenAI(base_url=service.url, api_key=service.api_key, max_retries=0, timeout=60))
        return made[-1]

    yield make
    for client in made:
        client.close()


def ask(client, text, **more):
    return client.chat.completions.create(model="echo", messages=[{"role": "user", "content": text}], **more)


def told(client, text):
    """The whole text of a streamed answer."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, text, stream=True) if chunk.choices)


def test_openais_client_gets_whole_streamed_and_refused_answers(make_town, client_of):
    town = make_town()
    town.operator("op-1")
    service = fabric.serve(Echo(0), gpu="L4")
    client = client_of(service)
    assert [model.id for model in client.models.list()] == ["echo"]
    answer = ask(client, "one two three", max_tokens=2)
    assert answer.choices[0].message.content == "one two "
    assert (answer.choices[0].finish_reason, answer.usage.total_tokens) == ("stop", 4)
    assert told(client, "four five") == "four five "
    last = list(ask(client, "six", stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.completion_tokens == 1
    floats = client.embeddings.create(model="echo", input=["ab", "c"], encoding_format="float")
    assert [one.embedding for one in floats.data] == [[2.0, 0.5], [1.0, 0.5]]
    assert client.embeddings.create(model="echo", input="abc").data[0].embedding == [3.0, 0.5]
    for wrong, kind, code in [
        (lambda: ask(client, "fail"), openai.BadRequestError, "disliked"),
        (lambda: ask(client, "fail", stream=True), openai.BadRequestError, "disliked"),
        (lambda: ask(client, "x", temperature=9), openai.BadRequestError, "invalid_value"),
        (lambda: ask(client, "x", n=2), openai.BadRequestError, "unsupported_value"),
        (lambda: client.completions.create(model="echo", prompt="x"), openai.NotFoundError, "unsupported_operation"),
        (
            lambda: client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}]),
            openai.NotFoundError,
            "model_not_found",
        ),
        (lambda: ask(client.with_options(api_key="fk_wrong"), "x"), openai.AuthenticationError, "invalid_api_key"),
        (
            lambda: ask(client.with_options(base_url=service.url.replace(service.id, "ep_none")), "x"),
            openai.NotFoundError,
            "unknown_endpoint",
        ),
    ]:
        with pytest.raises(kind) as refused:
            wrong()
        assert refused.value.code == code
    base = service.url.removesuffix("v1")
    call = client.post(f"{base}call/double", body={"args": [4]}, cast_to=object)
    assert call["value"]["twice"] == 8
    town.wait(lambda: service.status.get("completion_tokens") == 5)
    service.stop()
    town.wait(lambda: _status(lambda: ask(client, "x")) == 404)


def test_no_request_fails_while_an_operator_is_killed_and_everything_is_in_the_books(make_town, client_of):
    town = make_town()
    town.operator("op-1")
    town.operator("op-2")
    service = fabric.serve(Echo(), gpu="L4", replicas=(2, 2), max_concurrency=8)
    town.wait(lambda: sum(r["state"] == "ready" for r in service.status.get("replicas", ())) == 2)
    assert {replica["operator"] for replica in service.status["replicas"]} == {"op-1", "op-2"}
    client = client_of(service)
    stop, answers, broken, failed = threading.Event(), [], [], []

    def worker(number):
        while not stop.is_set():
            text = f"{number} a b c d e"
            try:
                if number % 2:
                    answers.append(ask(client, text).choices[0].message.content == text + " ")
                else:
                    read = told(client, text)
                    (answers if read == text + " " else broken).append(True)
            except openai.APIError as error:
                (broken if number % 2 == 0 else failed).append(str(error))

    with ThreadPoolExecutor(6) as pool:
        for number in range(6):
            pool.submit(worker, number)
        town.wait(lambda: len(answers) > 30)
        killed = len(answers)
        town.kill("op-1")
        town.wait(lambda: len(answers) > killed + 60)
        stop.set()
    assert failed == []
    assert all(answers)
    assert len(broken) <= 6, "only streams that were under way there may break"
    town.operator("op-1")
    service.stop()
    runs = service.status["runs"]
    receipt = fabric.attach(runs[0]).receipt()
    receipt.verify()
    lines = [line for signed in receipt.receipts for line in signed.tasks]
    assert sum(dict(line.counters).get("completion_tokens", 0) for line in lines) > 100
    town.wait(lambda: town.get("/v1/audit", key="fk_" + "2" * 43)["ok"])


def test_an_endpoint_starts_from_zero_goes_back_to_zero_and_outlives_its_maker_and_its_router(make_town, client_of):
    town = make_town(idle_s=1.0)
    town.operator("op-1")
    service = fabric.serve(Echo(0), gpu="L4")
    assert service.status.get("replicas", []) == []
    client = client_of(service)
    assert ask(client, "hello").choices[0].message.content == "hello "
    town.wait(lambda: service.status["replicas"] == [] and service.status["requests"] == 1)
    first = service.status["runs"]
    town.wait(lambda: fabric.attach(first[0]).status == "SUCCEEDED")
    assert ask(client, "again").choices[0].message.content == "again "
    assert len(service.status["runs"]) == 2
    town.kill("serving")
    town.start("serving", ["-m", "api.serving"], town.serving_environ)
    began = time.monotonic()
    found = town.wait(lambda: _or_none(lambda: ask(client, "after the router").choices[0].message.content))
    assert found == "after the router "
    assert time.monotonic() - began < 60
    service.stop()


def _status(call):
    try:
        call()
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def _or_none(call):
    try:
        return call()
    except openai.APIConnectionError:
        return None
