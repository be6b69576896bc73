"""Ranks that do not come to the rendezvous are named by those that did."""

import re

import pytest

from workloads.training.group import Group, free_port
from workloads.training.outcome import RankLost
from workloads.training.plan import Place, Plan


@pytest.mark.parametrize(("here", "missing"), [(0, "ranks 1, 2 of 3"), (1, "rank 0 of 3")])
def test_ranks_that_do_not_come_in_time_are_named_with_the_setting(here, missing, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    place = Place(here, 3, here, 1, "127.0.0.1", free_port(), "127.0.0.1")
    with pytest.raises(RankLost, match=re.escape(f"{missing} did not come within 1 s (`rendezvous_timeout`)")):
        Group(place, Plan(startup_s=1))
