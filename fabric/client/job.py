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
