"""Without what it needs the embedded fabric says what to install or set."""

import pytest

from fabric.local import requirements
from fabric.wire.errors import InvalidRequest


def test_a_complete_installation_passes():
    requirements.check_requirements()


def test_a_missing_package_is_named_with_both_ways_out(monkeypatch):
    monkeypatch.setattr(requirements, "_MODULES", ("ray", "no_such_module_here"))
    with pytest.raises(InvalidRequest, match=r"no_such_module_here missing.*berkeley-compute\[local\].*FABRIC_URL"):
        requirements.check_requirements()


def test_an_old_ray_is_refused_with_the_version_it_needs(monkeypatch):
    monkeypatch.setattr(requirements, "version", lambda _: "2.51.1")
    with pytest.raises(InvalidRequest, match=r"Ray 2\.51 is too old .* 2\.52"):
        requirements.check_requirements()


def test_another_system_is_told_to_use_a_fabric_elsewhere(monkeypatch):
    monkeypatch.setattr(requirements.sys, "platform", "darwin")
    with pytest.raises(InvalidRequest, match=r"needs Linux.*FABRIC_URL"):
        requirements.check_requirements()
