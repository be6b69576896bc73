"""Continuous batching on a transformers model: sequences join and leave between two steps of one loop.

Each prompt is read alone; its keys and values then stand, padded on the left, beside those of the sequences at work, so
that one forward step gives each its next token. Nothing here knows of text.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from workloads.inference.sampling import Sampling, pick

Told = Callable[[int | None, BaseException | None], bool]
"""Takes a token, or None and what ended the sequence; answers whether more tokens are wanted."""


@dataclass(eq=False)
class Sequence_:  # noqa: N801 - `Sequence` is taken
    """One request at work. `tokens` are the prompt's, then those that were chosen."""

    tokens: list[int]
    sampling: Sampling
    told: Told
    prompt: int = 0
    generator: Any = None
    cancelled: bool = False
    cache: Any = field(default=None, repr=False)


class Batcher:
    """One loop on one model. `submit` from any thread; `told` is called in the loop's thread.

    Args:
        model: a causal language model, in evaluation mode.
        ends: token ids that end a sequence; they are told too.
        max_batch: sequences at work at the same time; more wait.
    """

    def __init__(self, model: Any, ends: Sequence[int], *, max_batch: int) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._ends = frozenset(ends)
        self._max_batch = max_batch
        self._new: queue.SimpleQueue[Sequence_ | None] = queue.SimpleQueue()
        self._at_work: list[Sequence_] = []
        self._layers: list[tuple[Any, Any]] = []
        self._cache: Any = None
        self._mask: Any = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, tokens: Sequence[int], sampling: Sampling, told: Told) -> Sequence_:
        """Queue a prompt; set `cancelled` of what is returned to end it early."""
        generator = torch.Generator()
        generator.manual_seed(sampling.seed) if sampling.seed is not None else generator.seed()
        sequence = Sequence_(list(tokens), sampling, told, len(tokens), generator)
        self._new.put(sequence)
        return sequence

    def close(self) -> None:
        """End the loop; sequences at work hear nothing more."""
        self._new.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            try:
                if not self._admit():
                    return
                if self._at_work:
                    self._step()
            except Exception as error:  # noqa: BLE001 - the outermost loop: whoever waits must hear of it
                for sequence in self._at_work:
                    sequence.told(None, error)
                self._keep([])

    def _admit(self) -> bool:
        """Read the prompts of those that wait, while there is room; False at the end."""
        while len(self._at_work) < self._max_batch and not (self._at_work and self._new.empty()):
            sequence = self._new.get()
            if sequence is None:
                return False
            if not sequence.cancelled:
                self._read(sequence)
        return True

    def _read(self, sequence: Sequence_) -> None:
        try:
            cache = DynamicCache()
            ids = torch.tensor([sequence.tokens], device=self._device)
            logits = self._model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits
        except Exception as error:  # noqa: BLE001 - one bad prompt ends itself, not the batch
            sequence.told(None, error)
            return
        if self._advance(sequence, logits[0, -1]):
            self._join(sequence, cache)

    def _step(self) -> None:
        """One token for each."""
        ones = torch.ones((len(self._at_work), 1), dtype=torch.long, device=self._device)
        self._mask = torch.cat([self._mask, ones], dim=1)
        places = torch.tensor([[len(s.tokens) - 1] for s in self._at_work], device=self._device)
        ids = torch.tensor([[s.tokens[-1]] for s in self._at_work], device=self._device)
        logits = self._model(
            input_ids=ids, attention_mask=self._mask, position_ids=places, cache=self._cache, use_cache=True
        ).logits
        kept = [at for at, s in enumerate(self._at_work) if not s.cancelled and self._advance(s, logits[at, -1])]
        if len(kept) < len(self._at_work):
            self._keep(kept)

    def _advance(self, sequence: Sequence_, logits: Any) -> bool:
        """Choose and tell a token; whether the sequence goes on."""
        token = pick(logits.cpu(), sequence.sampling, sequence.generator)
        sequence.tokens.append(token)
        wanted = sequence.told(token, None)
        written = len(sequence.tokens) - sequence.prompt
        return wanted and token not in self._ends and written < sequence.sampling.max_tokens

    def _join(self, sequence: Sequence_, cache: Any) -> None:
        """Put its keys and values beside the others', padded on the left to the longest."""
        new = [(layer.keys, layer.values) for layer in cache.layers]
        have = self._mask.shape[1] if self._at_work else 0
        own = new[0][0].shape[2]
        width = max(have, own)
        rows = [_padded(self._mask, width)] if have else []
        self._mask = torch.cat([*rows, _padded(torch.ones((1, own), dtype=torch.long, device=self._device), width)])
        old = [(layer.keys, layer.values) for layer in self._cache.layers] if have else []
        joined = [
            tuple(
                torch.cat([*([_wide(o, width)] if old else []), _wide(n, width)])
                for o, n in zip(pair, fresh, strict=True)
            )
            for pair, fresh in zip(old or [(None, None)] * len(new), new, strict=True)
        ]
        self._cache = DynamicCache(joined)
        self._at_work.append(sequence)

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows; padding that none of them needs is cut off."""
        self._at_work = [self._at_work[at] for at in rows]
        if not rows:
            self._cache = self._mask = None
            return
        mask = self._mask[rows]
        cut = int(mask.shape[1] - mask.sum(dim=1).max())
        self._mask = mask[:, cut:]
        self._cache = DynamicCache([(_rows(x.keys, rows, cut), _rows(x.values, rows, cut)) for x in self._cache.layers])


def _rows(tensor: Any, rows: list[int], cut: int) -> Any:
    return tensor[rows, :, cut:].contiguous()


def _padded(mask: Any, width: int) -> Any:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _wide(tensor: Any, width: int) -> Any:
    return torch.nn.functional.pad(tensor, (0, 0, width - tensor.shape[2], 0))
