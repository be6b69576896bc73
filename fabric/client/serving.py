"""`fabric.serve`: an object behind one URL, with as many replicas as its load needs, until it is stopped.

The object travels as an actor's does; the serving router has the replicas, so that this process may end.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from fabric.client import session as sessions
from fabric.client.actors import equipped, pack_actor
from fabric.client.office import here
from fabric.client.options import read_options
from fabric.client.session import Session
from fabric.wire.actor import Actor, methods_of
from fabric.wire.amounts import dc_to_usd
from fabric.wire.errors import InvalidRequest
from fabric.wire.ids import new_id
from fabric.wire.retry import Retry

DEFAULT_REPLICAS = (0, 1)
DEFAULT_AT_ONCE = 32
RETRY = Retry(on=("interruption", "error"), max=3)
"""A request whose replica ended goes to another one, unless part of its answer was sent; an exception is an answer."""


def serve(
    obj: Any, /, *, replicas: Any = DEFAULT_REPLICAS, max_concurrency: int = DEFAULT_AT_ONCE, **keywords: Any
) -> "Service":
    """Serve an object, or objects of a class made without arguments, behind one URL.

    Args:
        obj: travels whole; its method `start()`, if it has one, is called once in each replica. With the methods `chat`
            and `complete`, or `embed`, it answers OpenAI's routes; every public method can be called by HTTP.
        replicas: (least, most), or one number for both; 0 least: none while nobody asks.
        max_concurrency: requests that a replica works on at once.
        keywords: as for `fabric.submit`; `name` is the model's, `budget` bounds all replicas together over the whole
            life of the endpoint, `timeout` is each request's.

    Raises:
        InvalidRequest: before anything is sent.
    """
    options = read_options("serve", {"retry": RETRY, **keywords, "max_concurrency": max_concurrency})
    least, most = _replicas(replicas)
    made = Actor(obj) if isinstance(obj, type) else Actor(obj, whole=True)
    cls = obj if isinstance(obj, type) else type(obj)
    methods = methods_of(cls)
    if not methods:
        raise InvalidRequest(
            f"fabric.serve needs an object with public methods, such as `chat` and `complete`, or `embed`; "
            f"a {cls.__qualname__} has none"
        )
    model = getattr(obj, "model", None)
    name = options.name or (model if isinstance(model, str) and model else cls.__qualname__)
    packed = pack_actor(equipped(made, options), name, options.max_concurrency)
    current = sessions.current()
    current.call(current.plane.put_blob(hashlib.sha256(packed.code).hexdigest(), packed.code))
    endpoint = new_id("ep")
    request = {
        "id": endpoint,
        "kind": "serve",
        "session": current.id,
        **here(),
        **replace(options, name=name).request(),
    }
    body = {
        "id": endpoint,
        "name": name,
        "request": {**request, "leases": 1, "tasks": 0, "tags": {**request["tags"], "endpoint": endpoint}},
        "code": packed.digest.hex(),
        "methods": methods,
        "min_replicas": least,
        "max_replicas": most,
        "at_once": options.max_concurrency,
    }
    return Service(current, current.call(current.plane.post("/v1/endpoints", body)))


def endpoints(*, stopped: bool = False) -> list["Service"]:
    """The account's endpoints, newest first; with `stopped` also those that are over."""
    current = sessions.current()
    answer = current.call(current.plane.get("/v1/endpoints", all=str(stopped).lower()))
    return [Service(current, facts) for facts in answer["endpoints"]]


def find(endpoint: str) -> "Service":
    """An endpoint of this account by its id, stopped or not.

    Raises:
        InvalidRequest: there is none.
    """
    current = sessions.current()
    return Service(current, current.call(current.plane.get(f"/v1/endpoints/{quote(endpoint, safe='')}")))


class Service:
    """An endpoint. It goes on without this process, until `stop`."""

    def __init__(self, session: Session, facts: Mapping[str, Any]) -> None:
        self.id: str = facts["id"]
        self.name: str = facts["name"]
        self.url: str = facts["url"]
        self._session = session

    def __repr__(self) -> str:
        return f"<fabric.Service {self.name} at {self.url}>"

    @property
    def api_key(self) -> str:
        """This account's key, which its URL asks for."""
        return self._session.plane.api_key

    @property
    def status(self) -> dict[str, Any]:
        """`state`, and the router's newest report: replicas, requests, tokens, the last fault."""
        facts = self._facts()
        return {"state": facts["state"], **facts["report"], "runs": facts["runs"]}

    @property
    def spent(self) -> Decimal:
        """USD charged and held so far."""
        return dc_to_usd(int(self._facts()["spent_dc"]))

    def stop(self) -> None:
        """End it and release its replicas. Twice is once."""
        self._session.call(self._session.plane.post(f"/v1/endpoints/{self.id}/stop"))

    def _facts(self) -> dict[str, Any]:
        return self._session.call(self._session.plane.get(f"/v1/endpoints/{self.id}"))


def _replicas(given: Any) -> tuple[int, int]:
    pair = list(given) if isinstance(given, tuple | list) else [given, given]
    fine = len(pair) == 2 and all(type(n) is int for n in pair)
    if not fine or not 0 <= pair[0] <= pair[1] <= 256 or pair[1] < 1:
        raise InvalidRequest(f"replicas={given!r} is not (least, most) with 0 ≤ least ≤ most, 1 ≤ most ≤ 256")
    return pair[0], pair[1]
