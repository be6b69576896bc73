"""What people run on the fabric, built on its public names alone; resolved on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.inference import ChatModel, Embedder
    from workloads.training import FineTune, Training

_HOMES = {
    "ChatModel": "workloads.inference",
    "Embedder": "workloads.inference",
    "FineTune": "workloads.training",
    "Training": "workloads.training",
}
__all__ = ["ChatModel", "Embedder", "FineTune", "Training"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'workloads' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
