"""What a control plane publishes of its ledger, fetched without an account; and what its admin may ask of it.

It checks nothing; who asks does.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx

from fabric.wire.errors import InvalidRequest, ServiceError

_TIMEOUT_S = 60.0


def get(url: str, path: str) -> Any:
    """The JSON at a path; errors as `fetch`."""
    return fetch(url, path).json()


def fetch(url: str, path: str) -> httpx.Response:
    """The answer to a GET; an empty ``url`` is this machine's own fabric.

    Raises:
        InvalidRequest: there is no such thing, or no fabric on this machine.
        ServiceError: the control plane does not answer, or failed.
    """
    return _ask("GET", url or _embedded_url(), path)


def post(url: str, path: str) -> Any:
    """The JSON answer to a POST with `FABRIC_API_KEY`, else with this machine's own key; errors as `fetch`."""
    key = os.environ.get("FABRIC_API_KEY") or _embedded_key()
    return _ask("POST", url or _embedded_url(), path, {"Authorization": f"Bearer {key}"}).json()


def _ask(method: str, base: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    try:
        answer = httpx.request(method, base.rstrip("/") + path, headers=headers, timeout=_TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServiceError(f"{base} does not answer ({error}); is the control plane running?") from None
    if answer.is_success:
        return answer
    raise (InvalidRequest if answer.is_client_error else ServiceError)(_problem(answer))


def _problem(answer: httpx.Response) -> str:
    """The message of a problem document, else the status."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}"


def _embedded_url() -> str:
    """Where this machine's own fabric says that it listens."""
    home = _home()
    try:
        status = json.loads((home / "fabric.json").read_text())
    except (OSError, ValueError):
        status = {}
    if status.get("state") == "ready" and status.get("url"):
        return str(status["url"])
    raise InvalidRequest("no fabric runs on this machine; start it with `fabric up`, or set FABRIC_URL or --url")


def _embedded_key() -> str:
    try:
        return (_home() / "api.key").read_text().strip()
    except OSError:
        raise InvalidRequest("no key: set FABRIC_API_KEY to an admin's key of that control plane") from None


def _home() -> Path:
    return Path(os.environ.get("FABRIC_HOME") or Path.home() / ".fabric")
