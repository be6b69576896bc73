"""No isolation: for operators who run only their own code. The child has the node's files, network and user.

It gets the clean environment and ends with the node's process, and that is all: no limits, no private /tmp, no hidden
devices. A process that it leaves behind outlives it.
"""

import os
import shutil

from fabric.agent.sandbox.child import Child
from fabric.agent.sandbox.launcher import Launcher, ends
from fabric.agent.sandbox.spec import ChildSpec, SandboxError, environment


class Plain:
    """``isolation: none``."""

    name = "none"

    def __init__(self) -> None:
        self._launcher = Launcher()
        self._setpriv = shutil.which("setpriv")

    def launch(self, spec: ChildSpec) -> Child:
        return self._launcher.call(lambda: self._start(spec))

    def close(self) -> None:
        self._launcher.close()

    def _start(self, spec: ChildSpec) -> Child:
        if self._setpriv is None:
            raise SandboxError("the program `setpriv` is missing; install the package util-linux")
        with ends() as made:
            dies_with_us = [self._setpriv, "--pdeathsig", "KILL", "--"]
            process = made.start([*dies_with_us, *spec.argv, str(made.theirs.fileno())], env=environment(spec))
            return Child(
                pid=process.pid,
                pidfd=os.pidfd_open(process.pid),
                socket=made.ours,
                stdout_fd=made.stdout_fd,
                stderr_fd=made.stderr_fd,
                process=process,
                launcher=self._launcher,
            )
