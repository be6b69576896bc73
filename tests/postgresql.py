"""A PostgreSQL server of a test's own. It listens in its folder only: no port that somebody else may take meanwhile."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def running_postgresql() -> Iterator[str]:
    """The SQLAlchemy URL of its database; the server is stopped at the end.

    Its folder is not one of pytest's: those are closed to other users, and it runs as one when the tests are root's.
    """
    with tempfile.TemporaryDirectory(prefix="fabric-pg-") as folder:
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_postgres:
            shutil.chown(folder, "postgres")
        data = ("-D", f"{folder}/data")
        control = [*as_postgres, str(BINARIES / "pg_ctl"), *data, "-w", "-l", f"{folder}/log"]
        _run([*as_postgres, str(BINARIES / "initdb"), *data, "-U", "postgres", "-A", "trust", "--no-sync"])
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=100"
        _run([*control, "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            stopped = subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, text=True)
            state = subprocess.run([*control, "status"], check=False, capture_output=True)
        assert state.returncode == 3, stopped.stderr  # none runs, whatever `stop` thought of it


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} said {done.stderr or done.stdout}"
