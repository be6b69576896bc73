"""The control plane as the SDK calls it: one coroutine per request, typed errors, retries where a repeat is harmless.

It knows paths and members of `docs/protocol.md`, and nothing of what they are used for.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any
from urllib.parse import quote, urljoin

import httpx

from fabric.wire.errors import InvalidRequest, ServiceError, from_problem

LONG_POLL_S = 25
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
RETRY_DELAYS_S = (0.1, 0.3, 1.0)
"""Before the second, third, … try of a request that did not get through."""
AWAY_DELAYS_S = (0.5, 1.0, 2.0, 5.0)
"""Between such requests, where one is made until the control plane answers; the last one from then on."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Where a place answers pings: its gateway, and through the relay; each "" where it does not."""

    gateway: str
    relay: str


def away_delays_s() -> Iterator[float]:
    """How long to wait before asking again a control plane that did not answer, again and again."""
    return chain(AWAY_DELAYS_S, repeat(AWAY_DELAYS_S[-1]))


class ControlPlane:
    """A control plane at `url`, as the account of `api_key`. Belongs to one event loop; all calls may be repeated.

    Attributes:
        ended: it is known to have ended for good, so that nobody needs to wait for it. `is_over` is asked about that
            when it fails.
    """

    def __init__(self, url: str, api_key: str | None, is_over: Callable[[], bool] = lambda: False) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} is not the URL of a control plane; it must start with http:// or https://")
        self.url = url.rstrip("/")
        self.api_key = api_key or ""
        self.ended = False
        self._is_over = is_over
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def renew(self, api_key: str) -> None:
        """Go on with another key of the same account."""
        self.api_key = api_key
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    async def create_run(self, request: Mapping[str, Any], idempotency_key: str) -> dict[str, Any]:
        headers = {"Idempotency-Key": idempotency_key}
        return await self._json("POST", "/v1/runs", json=dict(request), headers=headers)

    async def run(self, run: str, *, wait_s: float = 0, since: str = "") -> dict[str, Any]:
        params: dict[str, Any] = {"wait_s": int(wait_s), "since": since} if wait_s else {}
        return await self._json("GET", f"/v1/runs/{_part(run)}", params=params, wait_s=wait_s)

    async def runs(self, *, state: str = "", limit: int = 50, cursor: str = "") -> dict[str, Any]:
        params = {"state": state, "limit": limit, "cursor": cursor}
        return await self._json("GET", "/v1/runs", params={k: v for k, v in params.items() if v})

    async def route(self, run: str, *, wait_s: float = 0) -> dict[str, Any]:
        params = {"wait_s": int(wait_s)} if wait_s else {}
        answer = await self._json("GET", f"/v1/runs/{_part(run)}/route", params=params, wait_s=wait_s)
        for route in answer["routes"]:
            if route.get("relay"):
                route["relay"] = "ws" + urljoin(self.url + "/", route["relay"].lstrip("/")).removeprefix("http")
        return answer

    async def more_leases(self, run: str, count: int, exclude_nodes: Sequence[str]) -> dict[str, Any]:
        body = {"count": count, "exclude_nodes": list(exclude_nodes)}
        return await self._json("POST", f"/v1/runs/{_part(run)}/leases", json=body)

    async def finish(self, run: str, state: str, reason: str, message: str) -> dict[str, Any]:
        body = {"state": state, "reason": reason, "message": message}
        return await self._json("POST", f"/v1/runs/{_part(run)}/finish", json=body)

    async def cancel(self, run: str) -> dict[str, Any]:
        return await self._json("POST", f"/v1/runs/{_part(run)}/cancel")

    async def receipt(self, run: str) -> dict[str, Any]:
        return await self._json("GET", f"/v1/runs/{_part(run)}/receipt")

    async def release(self, lease: str, generation: int, reason: str) -> dict[str, Any]:
        body = {"generation": generation, "reason": reason}
        return await self._json("POST", f"/v1/leases/{_part(lease)}/release", json=body)

    async def heartbeat(self, session: str) -> None:
        await self._json("POST", f"/v1/sessions/{_part(session)}/heartbeat")

    async def report_times(self, session: str, times: Sequence[Mapping[str, Any]]) -> None:
        await self._json("POST", f"/v1/sessions/{_part(session)}/times", json={"times": list(times)})

    async def register_runs(self, session: str, runs: Sequence[Mapping[str, Any]]) -> None:
        await self._json("POST", f"/v1/sessions/{_part(session)}/runs", json={"runs": list(runs)})

    async def rtts(self, session: str, rtts: Mapping[str, int], request: Mapping[str, Any]) -> dict[str, Probe]:
        """Tell what was measured; the places that are worth measuring next for this run."""
        told = [{"place": place, "rtt_us": rtt_us} for place, rtt_us in rtts.items()]
        body = {"rtts": told, "request": dict(request)}
        answer = await self._json("POST", f"/v1/sessions/{_part(session)}/rtts", json=body)
        return {
            one["place"]: Probe(
                one["gateway"], urljoin(self.url + "/", one["relay"].lstrip("/")) if one.get("relay") else ""
            )
            for one in answer["probe"]
        }

    async def end_session(self, session: str) -> None:
        await self._json("POST", f"/v1/sessions/{_part(session)}/end")

    async def offers(self, gpu: Sequence[str], *, gpu_any: bool, **wishes: Any) -> list[dict[str, Any]]:
        """What could be bought now; `wishes` are further parameters, those that are empty are left out."""
        params: list[tuple[str, str | int | float | bool | None]] = [("gpu", spec) for spec in gpu]
        params += [("any", "true")] * gpu_any
        for name, wish in wishes.items():
            params += [(name, one) for one in (wish if isinstance(wish, tuple) else (wish,)) if one not in ("", None)]
        return (await self._json("GET", "/v1/offers", params=params))["offers"]

    async def account(self) -> dict[str, Any]:
        return await self._json("GET", "/v1/account")

    async def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._json("PUT", path, json=dict(body))

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return await self._json("POST", path, json=dict(body or {}))

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """Any other resource that is only read."""
        return await self._json("GET", path, params=params)

    async def put_blob(self, digest: str, content: bytes) -> None:
        """Store opaque bytes under their SHA-256; nothing is sent when they are there."""
        path = f"/v1/blobs/{_part(digest)}"
        try:
            await self._send("HEAD", path)
        except InvalidRequest:  # there is no such blob
            await self._send("PUT", path, content=content)

    async def blob(self, digest: str) -> bytes:
        return (await self._send("GET", f"/v1/blobs/{_part(digest)}")).content

    async def logs(self, run: str, *, follow: bool) -> AsyncIterator[dict[str, Any]]:
        """A run's lines as they come: `task`, `stream`, `at_ms`, `text`.

        Raises:
            ServiceError: the connection broke; the run goes on.
        """
        try:
            async for line in self._lines(run, follow=follow):
                yield line
        except httpx.TransportError as error:
            raise ServiceError(f"the lines of {run} broke off: {type(error).__name__}; the run goes on") from None

    async def _lines(self, run: str, *, follow: bool) -> AsyncIterator[dict[str, Any]]:
        path = f"/v1/runs/{_part(run)}/logs"
        params = {"follow": "true"} if follow else {}
        timeout = httpx.Timeout(30.0, read=None)
        async with self._http.stream("GET", path, params=params, timeout=timeout) as response:
            if response.status_code != 200:
                await response.aread()
                raise _problem(response)
            event = ""
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:") and event != "end":
                    yield json.loads(line[5:])
                elif not line:
                    if event == "end":
                        return
                    event = ""

    async def _json(self, method: str, path: str, *, wait_s: float = 0, **options: Any) -> dict[str, Any]:
        if wait_s:
            options["timeout"] = httpx.Timeout(30.0 + wait_s, connect=5.0)
        return (await self._send(method, path, **options)).json()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for delay in (*RETRY_DELAYS_S, None):
            if self._http.is_closed:
                raise ServiceError(f"the session with {self.url} is over")
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                failure = self._unless_ended(self._unreachable(error))
            else:
                if response.is_success:
                    return response
                failure = self._unless_ended(_problem(response))
            if delay is None or not (isinstance(failure, ServiceError) and failure.retryable):
                raise failure
            await asyncio.sleep(delay)
        raise AssertionError

    def _unreachable(self, error: httpx.TransportError) -> ServiceError:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return ServiceError(
            f"the control plane at {self.url} cannot be reached ({told}); is FABRIC_URL right and is it running?",
            retryable=True,
        )

    def _unless_ended(self, failure: Exception) -> Exception:
        """What failed, or that there is nobody any more."""
        if isinstance(failure, ServiceError):
            self.ended = self.ended or self._is_over()
            if self.ended:
                return ServiceError(f"the embedded fabric at {self.url} was stopped; the next call starts it again")
        return failure


def _problem(response: httpx.Response) -> Exception:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": f"the control plane answered {response.status_code}: {response.text[:200]!r}"}
    return from_problem(problem, response.status_code)


def _part(identifier: str) -> str:
    return quote(identifier, safe="")
