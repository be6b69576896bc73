"""The engine against plain transformers, on a tiny model with random weights made here."""

import asyncio
from itertools import zip_longest

import pytest

import fabric
from workloads.inference import weights
from workloads.inference.chat import ChatModel
from workloads.inference.sampling import Sampling, Tail

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Letters:
    """A tokenizer of letters: a token is a character's code."""

    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) % 128 for letter in text]}

    def decode(self, tokens):
        return "".join(map(chr, tokens))

    def apply_chat_template(self, messages, **_):
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=0, bos_token_id=1, initializer_range=0.6,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def chat(tiny):
    model = ChatModel("tiny", max_batch=4)
    model.run_on(tiny, Letters())
    yield model
    model._batcher.close()


async def written(chat, prompt, **wishes):
    pieces = [piece async for piece in chat.complete(prompt, **{"temperature": 0, "max_tokens": 20, **wishes})]
    return "".join(piece.get("text", "") for piece in pieces), pieces[-1]


def plain(tiny, prompt, count=20):
    ids = torch.tensor([[ord(letter) for letter in prompt]])
    out = tiny.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    return "".join(chr(token) for token in out.tolist() if token)


async def test_alone_every_token_is_that_of_a_plain_run(chat, tiny):
    for prompt in ("hello", "a longer prompt than that", "x"):
        text, end = await written(chat, prompt)
        assert text == plain(tiny, prompt)
        assert end["prompt_tokens"] == len(prompt)


async def test_batched_with_others_that_come_and_go_the_tokens_are_the_same(chat, tiny):
    prompts = ["hello", "a longer prompt than that", "x", "one more", "and another one", "the last of them"]
    counts = [20, 3, 11, 20, 7, 15]
    answers = await asyncio.gather(*(written(chat, p, max_tokens=n) for p, n in zip(prompts, counts, strict=True)))
    expected = [plain(tiny, p, n) for p, n in zip(prompts, counts, strict=True)]
    pairs = [pair for (text, _), want in zip(answers, expected, strict=True) for pair in zip_longest(text, want)]
    assert sum(a == b for a, b in pairs) >= 0.99 * len(pairs)


async def test_a_seed_repeats_a_sampled_answer_and_another_one_does_not(chat):
    first = await written(chat, "hello", temperature=1.5, seed=7)
    assert await written(chat, "hello", temperature=1.5, seed=7) == first
    assert await written(chat, "hello", temperature=1.5, seed=8) != first


async def test_a_tiny_top_p_leaves_the_likeliest_token(chat):
    assert await written(chat, "hello", temperature=1.0, top_p=1e-6, seed=1) == await written(chat, "hello")


async def test_the_answer_ends_at_a_stop_without_showing_it(chat):
    text, _ = await written(chat, "hello")
    stopped, end = await written(chat, "hello", stop=(text[5:8],))
    assert stopped == text[: text.index(text[5:8])]
    assert end["finish_reason"] == "stop"


async def test_max_tokens_and_the_contexts_end_are_reason_length(chat):
    _, end = await written(chat, "hello", max_tokens=1)
    assert (end["finish_reason"], end["completion_tokens"]) == ("length", 1)
    _, end = await written(chat, "h" * 120, max_tokens=100)
    assert (end["finish_reason"], end["completion_tokens"]) == ("length", 8)


async def test_a_prompt_longer_than_the_context_is_refused_by_its_code(chat):
    with pytest.raises(fabric.InvalidRequest, match="context has 128") as refused:
        await written(chat, "h" * 128)
    assert refused.value.details["code"] == "context_length_exceeded"


async def test_a_request_that_is_left_early_gives_its_place_to_others(chat):
    for _ in range(8):
        pieces = chat.complete("hello", max_tokens=100, temperature=0)
        await anext(pieces)
        await pieces.aclose()
    assert (await written(chat, "x"))[1]


async def test_a_chat_goes_through_the_models_template(chat):
    pieces = [p async for p in chat.chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=3)]
    assert pieces[-1]["prompt_tokens"] == len("user: hi\n")


@pytest.mark.parametrize("wish", [{"temperature": 3}, {"top_p": 0}, {"max_tokens": 0}, {"stop": ("",)}])
def test_a_wish_out_of_range_is_refused(wish):
    with pytest.raises(fabric.InvalidRequest, match=next(iter(wish))):
        Sampling(**wish)


def test_what_may_become_a_stop_or_half_a_character_waits():
    tail = Tail(["END"])
    assert tail.take("abE", last=False) == ("ab", False)
    assert tail.take("abEx\ufffd", last=False) == ("Ex", False)
    assert tail.take("abExyEND more", last=False) == ("y", True)
    assert Tail(["END"]).take("abEN", last=True) == ("abEN", False)


def test_weights_beyond_the_gpus_memory_say_what_to_ask_for():
    weights.check_fit(10 * 10**9, 24 * 10**9)
    with pytest.raises(fabric.InvalidRequest, match=r"gpu='25GB\.\.'"):
        weights.check_fit(20 * 10**9, 16 * 10**9)


def test_a_model_goes_to_a_gpu_that_holds_it_and_is_refused_where_it_does_not_fit(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000))
    assert weights.device_for(tmp_path) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, answer in ((1_200, "cuda"), (1_199, "")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10_000))
        if answer:
            assert weights.device_for(tmp_path) == answer
        else:
            with pytest.raises(fabric.InvalidRequest, match="ask for a larger one"):
                weights.device_for(tmp_path)


def test_an_unknown_model_and_a_folder_without_one_are_refused(tmp_path):
    with pytest.raises(fabric.InvalidRequest, match="SmolLM2"):
        weights.find("no-such-model")
    with pytest.raises(fabric.InvalidRequest, match="no model"):
        weights.load(tmp_path, transformers.AutoModelForCausalLM)
