"""A checkpoint on disk: whole or not there, of this model or refused."""

import pytest
import torch

import fabric
from workloads.training import checkpoint


def made(width=4, steps=3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return model, optimizer


def stored(folder, step, model, optimizer):
    tensors, scalars = checkpoint.gather(model, optimizer, sharded=False)
    checkpoint.write(folder, step, checkpoint.Stored(tensors, {"scalars": scalars, "steps": step}))


def test_model_and_optimiser_go_on_as_if_nothing_had_happened(tmp_path):
    model, optimizer = made()
    stored(tmp_path, 3, model, optimizer)
    again, resumed = made(steps=0)
    checkpoint.put_back(again, resumed, checkpoint.newest(tmp_path), sharded=False)
    for net, steps in ((model, optimizer), (again, resumed)):
        steps.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert resumed.param_groups[0]["betas"] == (0.8, 0.9)


def test_a_checkpoint_that_was_cut_off_does_not_count_and_older_ones_go(tmp_path):
    stored(tmp_path, 1, *made())
    stored(tmp_path, 2, *made())
    cut_off = tmp_path / "step-000000000003"
    cut_off.mkdir()
    (cut_off / checkpoint.TENSORS).write_bytes(b"half")
    assert checkpoint.newest(tmp_path).state["steps"] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_another_shape_is_refused_by_the_name_of_what_differs(tmp_path):
    stored(tmp_path, 1, *made(width=4))
    other, optimizer = made(width=5, steps=0)
    with pytest.raises(fabric.InvalidRequest, match=r"'0.weight' is \(4, 2\) there and \(5, 2\) here"):
        checkpoint.put_back(other, optimizer, checkpoint.newest(tmp_path), sharded=False)


def test_frozen_weights_stay_where_they_are_and_tied_ones_are_kept(tmp_path):
    model, _ = made()
    model[0].requires_grad_(requires_grad=False)
    model[1].twin = model[1].weight
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    stored(tmp_path, 1, model, optimizer)
    names = set(checkpoint.newest(tmp_path).tensors)
    assert names == {"model/1.weight", "model/1.bias", "model/1.twin"}
