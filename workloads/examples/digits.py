"""Handwritten digits on two ranks: `python -m workloads.examples.digits` (two GPUs of one node, or `--nodes 2`)."""

import argparse
from typing import Any

import workloads


def loop(session: Any, epochs: int) -> float:
    """Train on four fifths of scikit-learn's digits; the accuracy on the rest."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16.0, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32, device=session.device) for part in split[:2])
    train_y, test_y = (torch.tensor(part, device=session.device) for part in split[2:])

    model = session.wrap(torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    session.resume(model, optimizer)
    for batch in session.batches(len(train_x), batch_size=32, epochs=epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        loss.backward()
        optimizer.step()
        session.report(loss=loss)
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_y).float().mean().item()


def main(epochs: int = 30, **where: Any) -> float:
    """The accuracy on images that were held out, 0 to 1."""
    where.setdefault("gpu", "L4:2")
    trained = workloads.Training(loop, **where).run(epochs)
    print(f"accuracy {trained.value:.3f} on {trained.world_size} ranks, {trained.cost}")
    return trained.value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    given = parser.parse_args()
    main(given.epochs, gpu="L4" if given.nodes > 1 else "L4:2", nodes=given.nodes)
