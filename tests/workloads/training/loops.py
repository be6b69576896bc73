"""Loops that the tests train with; they travel to the ranks as source."""

import os
import signal
import sys
import time


def digits(session, epochs, hidden=64, sharded=False, kill_at=None, wait_at=None):
    """(final training loss, accuracy, the step that this attempt began at).

    In attempt 1 a rank dies at `kill_at`: (rank, step), or all say "waiting" and stand still at the step `wait_at`.
    """
    import torch
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)
    hidden_layer = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Dropout(0.1))
    model = session.wrap(torch.nn.Sequential(hidden_layer, torch.nn.Linear(hidden, 10)), sharded=sharded)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    session.resume(model, optimizer, schedule=schedule)
    first = session.steps
    for batch in session.batches(1437, 32, epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[:1437][batch]), y[:1437][batch])
        loss.backward()
        optimizer.step()
        schedule.step()
        session.report(loss=loss)
        if kill_at == (session.rank, session.steps) and session.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if wait_at == session.steps and session.attempt == 1:
            sys.stdout.write("waiting\n")
            sys.stdout.flush()
            time.sleep(300)
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean().item()
        return torch.nn.functional.cross_entropy(model(x[:1437]), y[:1437]).item(), accuracy, first


def wrong_on(session, rank):
    """One rank finds that something is wrong while the others wait for it."""
    import torch

    model = session.wrap(torch.nn.Linear(2, 2))
    for step in range(100):
        if session.rank == rank and step == 3:
            raise LookupError(f"rank {rank} found nothing")
        model(torch.ones(1, 2)).sum().backward()


def one_hangs(session, rank):
    import torch

    model = session.wrap(torch.nn.Linear(2, 2))
    if session.rank == rank:
        time.sleep(60)
    model(torch.ones(1, 2)).sum().backward()


def one_goes_on(session):
    """Rank 1 makes a step more than rank 0."""
    import torch

    model = session.wrap(torch.nn.Linear(2, 2))
    for step in range(2 + session.rank):
        model(torch.ones(1, 2)).sum().backward()
        if step < 2:
            session.report()


def endless(session):
    """Ends only because it is stopped; the steps made, and those in the newest checkpoint."""
    import torch

    model = session.wrap(torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    session.resume(model, optimizer)
    for _ in session.batches(10_000, 1, 1_000_000):
        time.sleep(0.01)
        session.report(loss=1 / session.steps if session.steps else 1.0, tokens=7)
    return session.steps, stored()


def stored():
    """Steps of the checkpoints that are here."""
    import fabric

    return [int(folder.name[len("step-") :]) for folder in fabric.checkpoint_dir().iterdir()]


def disagree(session, about):
    """Rank 1 does something else than rank 0."""
    import torch

    odd = session.rank == 1
    model = session.wrap(torch.nn.Linear(2, 3 if odd and about == "shape" else 2), sharded=about == "sharded")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    session.resume(model, optimizer, **{"plan" if odd and about == "name" else "schedule": schedule})
    if about == "save" and not odd:
        session.save()
    for _ in range(4 if odd and about == "steps" else 3):
        session.report(loss=1.0)


def saves(session, width, **named):
    """Stores a checkpoint; its model is split over the ranks."""
    import torch

    model = session.wrap(torch.nn.Linear(2, width), sharded=True)
    optimizer = torch.optim.Adam(model.parameters())
    found = session.resume(
        model, optimizer, **{name: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for name in named}
    )
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    session.save()
    return found
