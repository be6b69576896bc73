"""The few questions that the supervisor asks its control plane. Any failure is a "not now"."""

import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 2.0


class ControlPlaneProbe:
    """Speaks with the control plane at `url` on loopback, as its customer."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._api_key = api_key
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ready(self) -> bool:
        return self._ask("GET", "/readyz") is not None

    def has_offers(self, gpus: int = 1) -> bool:
        """Whether an agent offers something, and so many GPUs of it, free or not, that all its nodes are there."""
        answer = self._ask("GET", "/v1/offers?tier=on_demand" if gpus > 1 else "/v1/offers")
        offers = (answer or {}).get("offers", ())
        return bool(offers) and sum(offer["count_total"] for offer in offers) >= gpus

    def serves(self) -> bool:
        """Whether an endpoint is to be served, with or without its maker's process."""
        answer = self._ask("GET", "/v1/endpoints")
        return bool(answer and answer.get("endpoints"))

    def end_session(self, session: str) -> None:
        """Release what a process that is gone still holds; its silence does it too, later."""
        self._ask("POST", f"/v1/sessions/{session}/end")

    def _ask(self, method: str, path: str) -> dict[str, Any] | None:
        body = b"{}" if method == "POST" else None
        headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers, method=method)  # noqa: S310 - our own URL
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read() or b"{}")
        except (OSError, ValueError, urllib.error.URLError):
            return None
