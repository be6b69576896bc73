"""What a function may call while it runs in a job. Outside a job these do nothing."""

from fabric.wire import job


def progress(done: int, total: int | None = None) -> None:
    """Tell whoever waits for this task how far it is.

    Args:
        done: units done so far, 0 or more.
        total: units in all, if known.
    """
    if job.report_progress is not None:
        job.report_progress(done, total)


def count(**counts: int) -> None:
    """Add to this task's named counts, such as `tokens=12`: they stand in its receipt and are never billed.

    Raises:
        ValueError: too many names, or a count that is no whole number of 0 or more.
    """
    if job.report_counts is not None:
        job.report_counts(counts)
