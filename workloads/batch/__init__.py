"""Batch inference: one call per row of a data set, each row exactly once in the output, whatever ends in between."""

from workloads.batch.batch import Batch, Report
from workloads.batch.journal import JournalMismatch

__all__ = ["Batch", "JournalMismatch", "Report"]
