"""What a job can say while it runs. The sandbox child sets the hooks; outside a job they are None."""

from collections.abc import Callable

report_progress: Callable[[int, int | None], None] | None = None
"""Called by `fabric.progress(done, total)`; sends the numbers to the customer."""
