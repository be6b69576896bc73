"""`workloads.FineTune`: a transformers model learns from texts by LoRA (peft); what comes of it is a small adapter."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabric
from workloads.inference import weights
from workloads.training.outcome import Trained
from workloads.training.training import Training

if TYPE_CHECKING:
    from workloads.training.session import Session

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Text = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is learnt: `rank` and `alpha` of LoRA, which `targets` it is put on, and how it is trained."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    epochs: int = 1
    batch_size: int = 4
    length: int = 256
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "epochs", "batch_size", "length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise fabric.InvalidRequest(f"{name}={value!r} is not a whole number of 1 or more")
        if not 0 <= self.dropout < 1:
            raise fabric.InvalidRequest(f"dropout={self.dropout!r} is not from 0 to below 1")
        if not self.learning_rate > 0:
            raise fabric.InvalidRequest(f"learning_rate={self.learning_rate!r} is not more than 0")


class FineTune:
    """LoRA of a language model.

    Args:
        model: a folder, a GGUF file, or the name of a model that an installed package brings; seen from the node.
        texts: what it learns from: texts, or chats as lists of `{"role": …, "content": …}`.
        output: a folder for the adapter, as `peft.PeftModel.from_pretrained` reads it; None: it is in the value only.
        adapter: what is learnt and how.
        keywords: as for `Training`: `gpu`, `nodes`, `budget`, `folder`, …
    """

    def __init__(
        self,
        model: str | Path,
        texts: Iterable[Text],
        *,
        output: str | Path | None = None,
        adapter: Adapter | None = None,
        **keywords: Any,
    ) -> None:
        self._model = str(model)
        self._texts = [text if isinstance(text, str) else [dict(turn) for turn in text] for text in texts]
        if not self._texts:
            raise fabric.InvalidRequest("there is nothing to learn from: `texts` is empty")
        self._output = None if output is None else Path(output)
        self._adapter = adapter or Adapter()
        self._training = Training(tune, **keywords)

    def run(self) -> Trained:
        """Train; blocks. The value has `tensors` by name, and `config`.

        Raises:
            fabric.InvalidRequest: no such model, or too little text for one batch.
        """
        trained = self._training.run(self._model, self._texts, asdict(self._adapter))
        if self._output is not None:
            save(self._output, trained.value)
        return trained


def tune(session: "Session", model: str, texts: list[Any], members: Mapping[str, Any]) -> dict[str, Any]:
    """The loop; every rank has all of the model and learns from its part of the texts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peft: Any = import_module("peft")
    wanted = Adapter(**{**members, "targets": tuple(members["targets"])})
    path = weights.find(model)
    tokenizer: Any = weights.load(path, AutoTokenizer)
    blocks = pack(tokenizer, texts, wanted.length)
    config = peft.LoraConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha,
        lora_dropout=wanted.dropout,
        target_modules=list(wanted.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    adapted: Any = peft.get_peft_model(weights.load(path, AutoModelForCausalLM, dtype=torch.float32), config)
    wrapped: Any = session.wrap(adapted)
    learnt = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=wanted.learning_rate)
    session.resume(wrapped, optimizer)
    wrapped.train()
    for batch in session.batches(len(blocks), wanted.batch_size, wanted.epochs):
        tokens = blocks[batch].to(session.device)
        optimizer.zero_grad()
        loss = wrapped(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        session.report(loss=loss, tokens=tokens.numel())
    state = {name: tensor.detach().cpu() for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
    return {"tensors": state, "config": json.loads(json.dumps(config.to_dict(), default=_plain))}


def pack(tokenizer: Any, texts: Sequence[Any], length: int) -> Any:
    """All texts one after the other, each with an end, cut into rows of `length` tokens; what is left over is dropped.

    Raises:
        fabric.InvalidRequest: they do not fill one row.
    """
    import torch

    ids: list[int] = []
    for text in texts:
        plain = text if isinstance(text, str) else tokenizer.apply_chat_template(text, tokenize=False)
        ids += tokenizer(plain, add_special_tokens=False)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    rows = len(ids) // length
    if rows == 0:
        raise fabric.InvalidRequest(f"the texts have {len(ids)} tokens and do not fill one row of {length}: give more")
    return torch.tensor(ids[: rows * length]).view(rows, length)


def save(folder: Path, adapter: Mapping[str, Any]) -> None:
    """Write an adapter as peft reads it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in adapter["tensors"].items()}, folder / ADAPTER)
    (folder / CONFIG).write_text(json.dumps(adapter["config"], indent=1), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Sets and enumerations of peft's as JSON has them."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
