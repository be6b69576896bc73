"""A language model that answers chats and completions: text in, pieces of text out, many requests at once.

Whoever wants another engine writes a class with the same `chat` and `complete` (`docs/serving.md` shows vLLM's).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import fabric
from workloads.inference import weights
from workloads.inference.sampling import Sampling, Tail


class ChatModel:
    """`fabric.serve(ChatModel("SmolLM2-135M-Instruct"))`; the weights are loaded where it runs, not here.

    Args:
        model: a folder, a GGUF file, or the name of a model that an installed package brings; seen from the node.
        context: tokens of prompt and answer together; None: what the model was made for.
        max_batch: requests that share a step.
    """

    def __init__(self, model: str, *, context: int | None = None, max_batch: int = 16) -> None:
        self.model = str(model)
        self.context = context
        self.max_batch = max_batch

    def start(self) -> None:
        """Load the weights and begin the loop; called once, where the model lives.

        Raises:
            fabric.InvalidRequest: no such model, or it does not fit the GPU.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = weights.find(self.model)
        device = weights.device_for(path)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        tokenizer = weights.load(path, AutoTokenizer)
        self.run_on(weights.load(path, AutoModelForCausalLM, dtype=dtype).to(device), tokenizer)

    def run_on(self, model: Any, tokenizer: Any) -> None:
        """Begin with a model that is loaded already."""
        from workloads.inference.batching import Batcher

        self._tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = {token for token in [*ends, tokenizer.eos_token_id] if token is not None}
        made_for = getattr(model.config, "max_position_embeddings", None) or 2048
        self._context = min(self.context or made_for, made_for)
        self._batcher = Batcher(model.eval(), sorted(self._ends), max_batch=self.max_batch)

    async def chat(self, messages: Sequence[dict[str, Any]], **wishes: Any) -> AsyncIterator[dict[str, Any]]:
        """The assistant's next message: pieces of `{"text"}`, then a `finish_reason` with both counts of tokens.

        Raises:
            fabric.InvalidRequest: a wish out of range, or a prompt longer than the context.
        """
        try:
            prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # noqa: BLE001 - a template is a program of the model's maker
            raise fabric.InvalidRequest(f"the model's chat template refuses these messages: {error}") from None
        tokens = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        async for piece in self._write(tokens, wishes):
            yield piece

    async def complete(self, prompt: str, **wishes: Any) -> AsyncIterator[dict[str, Any]]:
        """A text that goes on from `prompt`; as `chat`."""
        async for piece in self._write(self._tokenizer(prompt)["input_ids"], wishes):
            yield piece

    async def _write(self, tokens: list[int], wishes: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        room = self._context - len(tokens)
        if room < 1 or not tokens:
            raise fabric.InvalidRequest(
                f"the prompt has {len(tokens)} tokens; this model's context has {self._context}, of which one at least "
                "is the answer's",
                code="context_length_exceeded" if tokens else "empty_prompt",
            )
        asked = wishes.get("max_tokens")
        sampling = Sampling(**{**wishes, "max_tokens": min(asked if asked is not None else room, room)})
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[int | None, BaseException | None]] = asyncio.Queue()

        def told(token: int | None, error: BaseException | None) -> bool:
            loop.call_soon_threadsafe(arrived.put_nowait, (token, error))
            return True

        sequence = self._batcher.submit(tokens, sampling, told)
        try:
            async for piece in self._pieces(arrived, sampling, len(tokens)):
                yield piece
        finally:
            sequence.cancelled = True

    async def _pieces(self, arrived: Any, sampling: Sampling, prompt: int) -> AsyncIterator[dict[str, Any]]:
        written: list[int] = []
        tail, reason = Tail(sampling.stop), ""
        fabric.count(prompt_tokens=prompt)
        while not reason:
            token, error = await arrived.get()
            if error is not None:
                raise error
            fabric.count(completion_tokens=1)
            ended = token in self._ends
            written += [] if ended else [token]
            length = len(written) + ended >= sampling.max_tokens
            text, stopped = tail.take(self._tokenizer.decode(written), last=ended or length)
            reason = "stop" if ended or stopped else "length" if length else ""
            if text:
                yield {"text": text}
            if reason:
                spent = {"prompt_tokens": prompt, "completion_tokens": len(written) + ended}
                yield {"finish_reason": reason, **spent}
