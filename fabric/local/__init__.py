"""The embedded fabric: control plane, agent and a Ray of this machine, as processes that outlive nobody who needs them.

`ensure` finds it or starts it; a guard and a supervisor (`python -P -m fabric.local`) run it. Nothing here imports the
parts it starts, nor Ray.
"""

from fabric.local.start import Embedded, ensure

__all__ = ["Embedded", "ensure"]
