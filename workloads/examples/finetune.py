"""LoRA on SmolLM2-135M with texts that come with Python: `python -m workloads.examples.finetune`."""

import inspect
from pathlib import Path
from typing import Any

import workloads
from workloads.training.finetune import Adapter


def main(
    model: str = "SmolLM2-135M-Instruct",
    rows: int = 64,
    length: int = 64,
    epochs: int = 2,
    output: str | Path | None = None,
    **where: Any,
) -> Any:
    """The training, with losses in its records and the adapter as its value."""
    text = inspect.getsource(inspect)
    where.setdefault("gpu", "24GB..")
    adapter = Adapter(rank=8, length=length, batch_size=4, epochs=epochs, learning_rate=1e-3)
    trained = workloads.FineTune(model, [text[: rows * length * 6]], output=output, adapter=adapter, **where).run()
    first, last = trained.metrics[0]["loss"], trained.metrics[-1]["loss"]
    print(f"loss {first:.3f} at first, {last:.3f} at the end; {trained.cost}")
    return trained


if __name__ == "__main__":
    main(output="adapter")
