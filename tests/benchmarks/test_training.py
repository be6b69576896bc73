"""What the training benchmark makes of its rates."""

import pytest

from benchmarks.training import compared


def test_a_drifting_machine_does_not_decide():
    theirs = [100.0, 90.0, 80.0, 70.0]
    figures = compared([0.97 * 95, 0.97 * 85, 0.97 * 75], theirs)
    assert figures["vs_torchrun_ratio"] == pytest.approx(0.97)
    assert figures["vs_torchrun_least_ratio"] == pytest.approx(figures["vs_torchrun_most_ratio"])
    assert figures["torchrun_vs_itself_pct"] == pytest.approx(100 / 9)
