"""The demo's work: a small classifier of handwritten digits, trained on real data that scikit-learn carries."""

from dataclasses import dataclass

import fabric


@dataclass(frozen=True)
class Trained:
    """What one training reports. `accuracy` is on held-out images, 0 to 1."""

    hidden: int
    learning_rate: float
    epochs: int
    loss: float
    accuracy: float


def train(hidden: int, learning_rate: float, epochs: int = 60, seed: int = 0) -> Trained:
    """Train a two-layer network on 1,437 images of 8 × 8 pixels and test it on 360 others.

    Args:
        hidden: width of the hidden layer.
        learning_rate: of Adam.
        epochs: passes over the training images.
        seed: of the weights and of the split.
    """
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16.0, labels, test_size=0.2, random_state=seed, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])

    model = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    loss = torch.tensor(0.0)
    for epoch in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
            loss.backward()
            optimiser.step()
        fabric.progress(epoch + 1, epochs)
    accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    print(f"hidden {hidden:3d}, learning rate {learning_rate:g}: loss {loss.item():.3f}, accuracy {accuracy:.3f}")
    return Trained(hidden, learning_rate, epochs, round(loss.item(), 4), round(accuracy, 4))
