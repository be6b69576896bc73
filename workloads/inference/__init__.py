"""Inference: models as actors that `fabric.serve` puts behind one URL."""

from workloads.inference.chat import ChatModel
from workloads.inference.embedder import Embedder

__all__ = ["ChatModel", "Embedder"]
