"""`python -P -m fabric.local START`: the guard, and below it the supervisor. Started by `fabric.local.start` only."""

import os
import sys

from fabric.local.guard import guard
from fabric.local.settings import LocalSettings

if __name__ == "__main__":
    sys.exit(guard(LocalSettings.from_environ(os.environ), sys.argv[1]))
