"""Where strangers' code runs: starts a child process that can use the GPUs of its lease and reach nothing else.

Owns the isolation: namespaces, file system, system calls, limits, environment. Does not own what the child says
(frames), how it is billed, or which uid and devices a lease has. `ChildSpec` in, `Child` out.
"""

from fabric.agent.sandbox.bubblewrap import Bubblewrap
from fabric.agent.sandbox.child import Child, Isolation
from fabric.agent.sandbox.plain import Plain
from fabric.agent.sandbox.spec import Bind, ChildSpec, Limits, SandboxError

__all__ = ["Bind", "Bubblewrap", "Child", "ChildSpec", "Isolation", "Limits", "Plain", "SandboxError"]
