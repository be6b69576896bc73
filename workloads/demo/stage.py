"""The demo's own fabric: an embedded one in a state folder of its own, removed at the end unless it is kept."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

_SHORTENED = {"FABRIC_FINALITY_S": "1", "FABRIC_EPOCH_S": "15"}
"""Ten minutes and a day in the product; the demo has less patience."""

_CLOSE_S = 60


class Stage:
    """Starts the fabric on entering; `home` is its state folder."""

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self.home = Path(tempfile.mkdtemp(prefix="fabric-demo-"))
        self._api: httpx.Client | None = None

    def __enter__(self) -> "Stage":
        for key in ("FABRIC_URL", "FABRIC_API_KEY"):
            os.environ.pop(key, None)
        os.environ.update(_SHORTENED, FABRIC_HOME=str(self.home))
        try:
            self._fabric("up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        facts = json.loads((self.home / "fabric.json").read_text())
        key = (self.home / "api.key").read_text().strip()
        self._api = httpx.Client(
            base_url=facts["url"], headers={"Authorization": f"Bearer {key}"}, timeout=_CLOSE_S + 10
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._api is not None:
            self._api.close()
        if self._keep and kind is None:
            return
        self._fabric("down", check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def say(self, text: str) -> None:
        """One line of what happens, to stderr."""
        sys.stderr.write(f"demo: {text}\n")
        sys.stderr.flush()

    def get(self, path: str, **parameters: Any) -> Any:
        """An answer of the HTTP API, as anybody with this account's key would get it."""
        assert self._api is not None
        return self._api.get(path, params=parameters).raise_for_status().json()

    def close_epochs(self) -> Mapping[str, Any]:
        """Wait until all usage so far is final and its epochs are closed."""
        assert self._api is not None
        answer = self._api.post("/v1/ledger/epochs/close", params={"wait_s": _CLOSE_S})
        return answer.raise_for_status().json()

    def _fabric(self, *words: str, check: bool = True) -> None:
        command = [sys.executable, "-P", "-m", "fabric.cli", *words]
        subprocess.run(command, check=check, stdout=sys.stderr)
