"""What a control plane tells of its ledger: to anybody, to a holder's own account, and what its admin may ask of it.

It checks nothing; who asks does.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from fabric.wire.errors import InvalidRequest, ServiceError

PAGE = 1000
"""Rows that are asked for at once."""

_TIMEOUT_S = 60.0
_LEDGER = "/v1/ledger/"
_OWN = _LEDGER + "holders/"
"""Below it an account is needed; nobody's key goes where none is."""


def ledger_path(path: str, **given: Any) -> str:
    """The path of rows of the ledger, with the parameters that are given."""
    asked = {name: value for name, value in given.items() if value is not None} | {"limit": PAGE}
    return f"{_LEDGER}{path}?{httpx.QueryParams(asked)}"


def whole(url: str, path: str, rows: str) -> dict[str, Any]:
    """The answer with the rows of all its pages."""
    found = [page.json() for page in pages(url, path)]
    return found[-1] | {rows: [row for page in found for row in page[rows]]}


def pages(url: str, path: str) -> Iterator[httpx.Response]:
    """The answer, and those that its `Link` goes on with."""
    page = fetch(url, path)
    yield page
    while following := page.links.get("next"):
        page = fetch(url, httpx.URL(following["url"]).raw_path.decode())
        yield page


def get(url: str, path: str) -> Any:
    """The JSON at a path; errors as `fetch`."""
    return fetch(url, path).json()


def fetch(url: str, path: str) -> httpx.Response:
    """The answer to a GET; an empty ``url`` is this machine's own fabric.

    Raises:
        InvalidRequest: there is no such thing, no key for what needs one, or no fabric on this machine.
        ServiceError: the control plane does not answer, or failed.
    """
    return _ask("GET", url or _embedded_url(), path, _credential(url) if path.startswith(_OWN) else None)


def post(url: str, path: str) -> Any:
    """The JSON answer to a POST with the account's key; errors as `fetch`."""
    return _ask("POST", url or _embedded_url(), path, _credential(url)).json()


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


def _credential(url: str) -> dict[str, str]:
    """`FABRIC_API_KEY`; this machine's own key for its own fabric only."""
    key = os.environ.get("FABRIC_API_KEY", "")
    try:
        key = key or ("" if url else (_home() / "api.key").read_text().strip())
    except OSError:
        key = ""
    if not key:
        raise InvalidRequest("no key: set FABRIC_API_KEY to one of your account at that control plane")
    return {"Authorization": f"Bearer {key}"}


def _home() -> Path:
    return Path(os.environ.get("FABRIC_HOME") or Path.home() / ".fabric")
