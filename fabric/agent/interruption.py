"""The notice as the job sees it, inside the sandbox child: what was registered is called, in a thread of its own.

The node writes the deadline into the shared page; a thread looks there while there is somebody to call. Nothing of it
can be put off from here: the node ends the lease at the deadline, whatever the job does.
"""

import threading
import time
import traceback
from collections.abc import Callable

from fabric.agent.page import Page

LOOK_S = 0.005
"""How often the page is looked at while something is registered."""

Hook = Callable[[float], object]


class Interruption:
    """`begin` with each task; what an earlier task registered is forgotten then.

    Args:
        page: the node's.
        after_hooks: called once all hooks have returned, so that what they wrote is kept.
    """

    def __init__(self, page: Page, after_hooks: Callable[[], None] | None = None) -> None:
        self._page = page
        self._after_hooks = after_hooks
        self._lock = threading.Lock()
        self._hooks: list[Hook] = []
        self._called: list[Hook] = []
        self._looking = False

    def begin(self) -> None:
        """A task starts."""
        with self._lock:
            self._hooks, self._called = [], []

    def left_s(self) -> float | None:
        """Seconds until the lease ends; None without a notice."""
        deadline_ns = self._page.deadline_ns
        return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else None

    def register(self, hook: Hook) -> None:
        """Call it at the notice, or at once when there is one already."""
        with self._lock:
            self._hooks.append(hook)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="fabric-notice", daemon=True).start()

    def watch(self) -> None:
        """Keep what there is at the notice, also when nothing was registered."""
        self.register(_nothing)

    def _look(self) -> None:
        while True:
            if self._page.deadline_ns:
                self._call()
            with self._lock:
                if not self._hooks:
                    self._looking = False
                    return
            time.sleep(LOOK_S)

    def _call(self) -> None:
        with self._lock:
            due = [hook for hook in self._hooks if hook not in self._called]
            self._called.extend(due)
        for hook in due:
            try:
                hook(self.left_s() or 0.0)
            except Exception:  # noqa: BLE001 - a customer's hook may raise anything; the others are called all the same
                traceback.print_exc()
        if due and self._after_hooks is not None:
            self._after_hooks()


def _nothing(_left_s: float) -> None:
    """A hook for who only wants what comes after the hooks."""
