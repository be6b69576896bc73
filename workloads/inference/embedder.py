"""Texts to vectors: the mean of a transformer's last states, of length 1."""

from collections.abc import Sequence
from typing import Any

import fabric
from workloads.inference import weights

MAX_INPUTS = 2048


class Embedder:
    """`fabric.serve(Embedder("all-MiniLM-L6-v2"))`; the weights are loaded where it runs.

    Args:
        model: a folder or the name of a model that an installed package brings; seen from the node.
        max_batch: texts that share a step.
    """

    def __init__(self, model: str = "all-MiniLM-L6-v2", *, max_batch: int = 32) -> None:
        self.model = str(model)
        self.max_batch = max_batch

    def start(self) -> None:
        """Load the weights; called once, where the model lives.

        Raises:
            fabric.InvalidRequest: no such model, or it does not fit the GPU.
        """
        from transformers import AutoModel, AutoTokenizer

        path = weights.find(self.model)
        self._device = weights.device_for(path)
        self._tokenizer = weights.load(path, AutoTokenizer)
        self._model = weights.load(path, AutoModel).to(self._device).eval()
        self._context = self._model.config.max_position_embeddings

    def embed(self, texts: Sequence[str]) -> dict[str, Any]:
        """`{"vectors": [[float]], "prompt_tokens": n}`, one vector per text, in order.

        Raises:
            fabric.InvalidRequest: too many texts, or one longer than the context.
        """
        if not 1 <= len(texts) <= MAX_INPUTS:
            raise fabric.InvalidRequest(f"{len(texts)} inputs; 1 to {MAX_INPUTS} are allowed")
        sizes = [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]
        if max(sizes) > self._context:
            raise fabric.InvalidRequest(
                f"input {sizes.index(max(sizes))} has {max(sizes)} tokens; this model's context has {self._context}",
                code="context_length_exceeded",
            )
        fabric.count(prompt_tokens=sum(sizes))
        vectors = [
            v for at in range(0, len(texts), self.max_batch) for v in self._vectors(texts[at : at + self.max_batch])
        ]
        return {"vectors": vectors, "prompt_tokens": sum(sizes)}

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            batch = self._tokenizer(list(texts), padding=True, return_tensors="pt").to(self._device)
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).cpu().tolist()
