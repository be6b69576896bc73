"""How long a request's body may be: counted while it arrives, so that nobody fills the memory. Blobs have their own."""

import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import PayloadTooLarge, answer

MAX_BODY_BYTES = 16 << 20
"""Of a JSON request: 256 runs told of at once, with their messages, fit several times."""

_STREAMED = ("/v1/blobs/", "/v1/agent/blobs/")


class BodyLimit:
    """Answers 413 when more of a body comes than is allowed; what the application makes of the part is not sent."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_STREAMED):
            await self._app(scope, receive, send)
            return
        left = self._max
        error = PayloadTooLarge(f"a request may have {self._max} bytes; this one has more", max_bytes=self._max)

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise error
            return message

        async def unless_refused(message: Message) -> None:
            if left >= 0:
                await send(message)

        with contextlib.suppress(PayloadTooLarge):
            await self._app(scope, counted, unless_refused)
        if left < 0:
            await answer(error)(scope, receive, send)
