"""A state folder of its own for each test."""

import os

import pytest

from fabric.local.home import Home


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for key in list(os.environ):
        if key.startswith("FABRIC_"):
            monkeypatch.delenv(key)


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.make()
    return made
