"""A language model of characters on a text that comes with Python: `python -m workloads.examples.char_lm`."""

import inspect
from typing import Any

import workloads

CONTEXT = 32


def loop(session: Any, text: str, epochs: int, width: int = 64) -> dict[str, Any]:
    """Train a small transformer to write the text; its loss at the end, in nats per character, and what it writes."""
    import torch

    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text], device=session.device)
    model = session.wrap(_make(len(letters), width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    session.resume(model, optimizer)
    windows = torch.arange(CONTEXT + 1, device=session.device)
    loss = torch.tensor(float("nan"))
    for batch in session.batches(len(ids) - CONTEXT - 1, batch_size=32, epochs=epochs):
        seen = ids[batch.to(session.device)[:, None] + windows]
        optimizer.zero_grad()
        scores = model(seen[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), seen[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        session.report(loss=loss, tokens=seen[:, 1:].numel())
    return {"loss": loss.item(), "sample": _write(model, ids[:CONTEXT], letters)}


def _make(letters: int, width: int) -> Any:
    import torch
    from torch import nn

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letter = nn.Embedding(letters, width)
            self.place = nn.Embedding(CONTEXT, width)
            block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
            self.out = nn.Linear(width, letters)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            size = ids.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(size, device=ids.device)
            hidden = self.letter(ids) + self.place(torch.arange(size, device=ids.device))
            return self.out(self.blocks(hidden, mask=mask, is_causal=True))

    return Writer()


def _write(model: Any, ids: Any, letters: list[str], length: int = 80) -> str:
    import torch

    model.eval()
    with torch.no_grad():
        for _ in range(length):
            following = model(ids[None, -CONTEXT:])[0, -1].argmax()
            ids = torch.cat([ids, following[None]])
    return "".join(letters[number] for number in ids.tolist())


def main(epochs: int = 3, letters: int = 20_000, **where: Any) -> float:
    """The loss at the end, in nats per character; that of one who knows only how frequent each letter is, is 3.1."""
    where.setdefault("gpu", "L4:2")
    trained = workloads.Training(loop, **where).run(inspect.getsource(inspect)[:letters], epochs)
    print(trained.value["sample"])
    print(f"loss {trained.value['loss']:.3f} on {trained.world_size} ranks, {trained.cost}")
    return trained.value["loss"]


if __name__ == "__main__":
    main()
