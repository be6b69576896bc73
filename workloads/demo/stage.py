"""The demo's own fabric and chain, in a state folder of their own, removed at the end unless it is kept."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import fabric
from workloads.demo.chain import Chain
from workloads.demo.command_line import run_fabric

EPOCH_S = 15
_SHORTENED = {"FABRIC_FINALITY_S": "1", "FABRIC_EPOCH_S": str(EPOCH_S)}
"""Ten minutes and a day in the product; the demo has less patience."""

_CLOSE_S = 60


class Stage:
    """Starts chain and fabric on entering; `home` is the state folder. The chain ends with the demo, kept or not."""

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self.home = Path(tempfile.mkdtemp(prefix="fabric-demo-"))
        self._api: httpx.Client | None = None
        self._chain: Chain | None = None

    @property
    def chain(self) -> Chain:
        assert self._chain is not None
        return self._chain

    def __enter__(self) -> "Stage":
        for key in ("FABRIC_URL", "FABRIC_API_KEY"):
            os.environ.pop(key, None)
        os.environ.update(_SHORTENED, FABRIC_HOME=str(self.home))
        try:
            self._chain = Chain(self.home, epoch_s=EPOCH_S)
            run_fabric("up", environ=self._chain.environ("settler"))
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
        if not self._keep or kind is not None:
            run_fabric("down", check=False)
        if self._chain is not None:
            self._chain.close()
        if self._keep and kind is None:
            return
        shutil.rmtree(self.home, ignore_errors=True)

    def say(self, text: str) -> None:
        """One line of what happens, to stderr."""
        sys.stderr.write(f"demo: {text}\n")
        sys.stderr.flush()

    def get(self, path: str, **parameters: Any) -> Any:
        """An answer of the HTTP API, as anybody with this account's key would get it."""
        assert self._api is not None
        return _answer(self._api.get(path, params=parameters))

    def put(self, path: str, body: Mapping[str, Any]) -> None:
        """Ask for a change."""
        assert self._api is not None
        _answer(self._api.put(path, json=body))

    def close_epochs(self) -> Mapping[str, Any]:
        """Wait until all usage so far is final and its epochs are closed."""
        assert self._api is not None
        return _answer(self._api.post("/v1/ledger/epochs/close", params={"wait_s": _CLOSE_S}))


def _answer(response: httpx.Response) -> Any:
    if response.is_success:
        return response.json()
    raise fabric.ServiceError(f"{response.request.method} {response.url.path}: {response.status_code} {response.text}")
