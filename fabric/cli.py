"""The `fabric` command: a table of commands by the module that has them, loaded when one is used.

It knows no command itself. An error of the product ends with its own exit code and one message, never a traceback.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from fabric.wire.errors import Error

USAGE = 2
INTERRUPTED = 130


class Entry(NamedTuple):
    """Where a command lives: `module` has a typer `app`, whose command of this name it is, or the whole group.

    `extra` is the part of the distribution that installs what it needs beyond the SDK.
    """

    module: str
    help: str
    group: bool = False
    extra: str = "local"


COMMANDS: dict[str, Entry] = {
    "demo": Entry("workloads.demo", "The whole economy on this machine, once, explained.", group=True, extra="demo"),
    "up": Entry("fabric.local.cli", "Keep the embedded fabric running on this machine."),
    "down": Entry("fabric.local.cli", "End the embedded fabric."),
    "status": Entry("fabric.local.cli", "What of the embedded fabric runs."),
    "whoami": Entry("fabric.client.cli", "The account, and what it has."),
    "offers": Entry("fabric.client.cli", "What could be bought now."),
    "run": Entry("fabric.client.cli", "Run a command, or a function of a file, on a GPU."),
    "ps": Entry("fabric.client.cli", "Runs, newest first."),
    "logs": Entry("fabric.client.cli", "A run's output."),
    "stop": Entry("fabric.client.cli", "Cancel a run."),
    "explain": Entry("fabric.client.cli", "Why a run is where it is."),
    "cost": Entry("fabric.client.cli", "What runs cost."),
    "bill": Entry("fabric.client.bill", "A run's leases: claimed, billed, and measured here."),
    "operators": Entry("fabric.client.bill", "Operators, and what their reputations are made of."),
    "receipt": Entry("fabric.client.cli", "A run's signed receipts."),
    "serve": Entry("workloads.command", "Serve a model behind an OpenAI-compatible URL.", extra="workloads"),
    "endpoints": Entry("fabric.client.serving_cli", "What is served; stop one.", group=True),
    "audit": Entry("fabric.client.cli", "Whether every rule of the books holds."),
    "ledger": Entry("ledger.cli", "What GPUs earned; epochs.", group=True),
    "slots": Entry("fabric.client.slots", "Time slots of GPUs: buy, split, merge, transfer.", group=True),
    "pool": Entry("fabric.operator.pools", "Pools of GPUs: terms and members.", group=True, extra="operator"),
    "chain": Entry("ledger.chain.cli", "The contracts: deploy them, look, settle epochs.", group=True, extra="chain"),
    "operator": Entry("fabric.operator.cli", "Run a cluster of GPUs for the fabric.", group=True, extra="operator"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    entry = COMMANDS.get(words[0])
    if entry is None:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean `fabric {near[0]}`?" if near else "`fabric --help` lists the commands"
        sys.stderr.write(f"fabric: there is no command {words[0]!r}; {hint}\n")
        return USAGE
    return _run(words[0], entry, words[1:])


def _run(name: str, entry: Entry, rest: list[str]) -> int:
    try:
        app: Any = import_module(entry.module).app
    except ModuleNotFoundError as missing:
        need = f"needs {missing.name}, which is not installed: pip install 'berkeley-compute[{entry.extra}]'"
        sys.stderr.write(f"fabric: `fabric {name}` {need}\n")
        return USAGE
    words, program = (rest, f"fabric {name}") if entry.group else ([name, *rest], "fabric")
    try:
        app(words, prog_name=program)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else USAGE
    except Error as error:
        sys.stderr.write(f"fabric: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.help}" for name, entry in COMMANDS.items()]
    return "\n".join(["fabric COMMAND …      (`fabric COMMAND --help` says more)", "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
