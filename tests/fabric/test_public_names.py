"""`import fabric`: few names, resolved on use, next to no time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fabric
from fabric.wire import errors

HEAVY = ("ray", "torch", "web3", "fastapi", "sqlmodel", "sqlalchemy", "numpy", "httpx", "rich", "typer", "pydantic")


def test_every_public_name_resolves_and_the_list_is_sorted():
    assert fabric.__all__ == sorted(fabric.__all__)
    for name in fabric.__all__:
        assert getattr(fabric, name) is not None


def test_every_error_of_the_tree_is_public():
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.Error)}
    assert tree <= set(fabric.__all__)


def test_a_name_that_is_not_public_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="no attribute 'Scheduler'"):
        fabric.Scheduler  # noqa: B018


def test_no_module_directly_under_fabric_bears_the_name_of_a_public_function():
    modules = {path.stem for path in Path(fabric.__file__).parent.iterdir()}
    assert not modules & set(fabric.__all__)


def test_type_checkers_see_every_name_that_is_public():
    tree = ast.parse(Path(fabric.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(fabric.__all__)


def test_importing_fabric_loads_nothing_heavy():
    program = f"import sys, fabric; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _python(program) == "[]"


def test_using_the_sdk_loads_neither_ray_nor_torch_nor_numpy():
    program = f"import sys, fabric; fabric.run; print([m for m in {HEAVY[:7]!r} if m in sys.modules])"
    assert _python(program) == "[]"


def test_importing_fabric_takes_next_to_no_time():
    program = "import time; t = time.perf_counter(); import fabric; print(time.perf_counter() - t)"
    assert min(float(_python(program)) for _ in range(3)) < 0.3


def _python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
