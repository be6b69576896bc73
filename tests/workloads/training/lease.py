"""A lease with two ranks and no fabric around it: trainings in turn, each in a process of its own.

Arguments: seconds of the collective timeout, and a JSON list of [loop, args, kwargs]. Writes what became of each as a
line of JSON. torch is imported once, and used in no process that forks ranks.
"""

import json
import os
import sys
import time
from dataclasses import asdict

from tests.workloads.training import loops
from workloads.training.outcome import RankLost
from workloads.training.plan import Plan
from workloads.training.ranks import run_lease


def train(plan, loop, args, kwargs):
    began = time.monotonic()
    try:
        answer = run_lease(getattr(loops, loop), args, kwargs, asdict(plan))
    except RankLost as error:
        answer = {"lost": str(error)}
    sys.stdout.write(json.dumps(answer | {"seconds": time.monotonic() - began}) + "\n")
    sys.stdout.flush()


def main(seconds, trainings):
    import workloads.training.session  # noqa: F401 - torch, for all of them

    plan = Plan(ranks_per_node=2, collective_s=float(seconds))
    for training in json.loads(trainings):
        if not (child := os.fork()):
            train(plan, *training)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
