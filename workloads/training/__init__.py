"""Training on the fabric: gangs of ranks with `torch.distributed`, checkpoints, metrics, and adapters by LoRA."""

from workloads.training.finetune import FineTune
from workloads.training.outcome import RankLost, Trained
from workloads.training.training import Training

__all__ = ["FineTune", "RankLost", "Trained", "Training"]
