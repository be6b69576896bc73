"""Ranks that do not come to the rendezvous are named by those that did; what one that came finds out by itself."""

import re

import pytest
import torch

import fabric
from workloads.training.group import Group, free_port
from workloads.training.outcome import RankLost
from workloads.training.plan import Place, Plan
from workloads.training.session import Session


@pytest.mark.parametrize(("here", "missing"), [(0, "ranks 1, 2 of 3"), (1, "rank 0 of 3")])
def test_ranks_that_do_not_come_in_time_are_named_with_the_setting(here, missing, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    place = Place(here, 3, here, 1, "127.0.0.1", free_port(), "127.0.0.1")
    with pytest.raises(RankLost, match=re.escape(f"{missing} did not come within 1 s (`rendezvous_timeout`)")):
        Group(place, Plan(startup_s=1))


def test_a_model_that_does_not_fit_the_gpu_is_refused_before_anything_of_it_goes_there(tmp_path, monkeypatch):
    group = Group(Place(0, 1, 0, 1, "127.0.0.1", free_port(), "127.0.0.1"), Plan())
    try:
        session = Session(group, Plan(), tmp_path, 0.0)
        session.device = torch.device("cuda", 0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4_799, 10_000))
        with pytest.raises(fabric.InvalidRequest, match="ask for a larger one"):
            session.wrap(torch.nn.Linear(10, 100, bias=False))  # 4,000 bytes, and a fifth more to work with
    finally:
        group.close()
