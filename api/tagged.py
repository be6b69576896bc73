"""Answers that carry an ETag, so that asking again for what has not changed costs no transfer."""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class TaggedRoute(APIRoute):
    """A route whose whole answers to GET are tagged by their bytes; 304 where `If-None-Match` has the tag."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def tagged(request: Request) -> Response:
            response = await handle(request)
            if request.method != "GET" or response.status_code != 200 or not getattr(response, "body", b""):
                return response
            tag = _tag(response)
            private = "authorization" in request.headers
            kept = {"ETag": tag, "Cache-Control": "private, no-cache" if private else "no-cache"}
            if _knows(request.headers.get("if-none-match", ""), tag):
                names = ("vary", "link")
                return Response(
                    status_code=304, headers=kept | {n: response.headers[n] for n in names if n in response.headers}
                )
            response.headers.update(kept)
            return response

        return tagged


def _tag(response: Response) -> str:
    """Two forms of one answer are two things."""
    kind = response.headers.get("content-type", "").encode()
    digest = hashlib.sha256(kind + bytes(1) + bytes(response.body)).hexdigest()
    return f'"{digest[:32]}"'


def _knows(header: str, tag: str) -> bool:
    known = [one.strip().removeprefix("W/") for one in header.split(",")]
    return tag in known or "*" in known
