"""The router's routes: OpenAI's under `/serve/{id}/v1`, any method under `/serve/{id}/call/{method}`."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from api.serving import openai
from api.serving.affinity import Prompt, prompt_of
from api.serving.endpoint import Endpoint
from api.serving.openai import Refused
from api.serving.registry import Registry
from fabric.wire.errors import (
    AuthError,
    BudgetExhausted,
    Error,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    PermissionDenied,
    PriceExceeded,
    RemoteError,
    RunFailed,
    ServiceError,
    Timeout,
)
from fabric.wire.ids import new_id
from fabric.wire.reasons import RETRY_CLASSES

_log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 16 << 20
MAX_OPEN_BYTES = 256 << 20
"""Of one customer's requests at the same time."""
INTERRUPTIONS = RETRY_CLASSES["interruption"]
WHOLE_TRIES = 4
"""How often a whole answer is asked for while replicas are lost under it; like `Retry`'s three more."""
_STATUS: tuple[tuple[type[Error], int], ...] = (
    (InvalidRequest, 400),
    (AuthError, 401),
    (PermissionDenied, 403),
    (InsufficientFunds, 402),
    (BudgetExhausted, 402),
    (PriceExceeded, 503),
    (NoCapacity, 503),
    (Timeout, 504),
    (RemoteError, 500),
    (RunFailed, 503),
    (ServiceError, 503),
)

Body = TypeVar("Body", bound=BaseModel)


def create_app(registry: Registry) -> FastAPI:
    """The router's application; `registry` begins and ends with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(registry.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await registry.close()

    app = FastAPI(title="Berkeley Compute serving", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(Refused, _answer_refused)
    app.add_exception_handler(Error, _answer_refused)
    app.add_exception_handler(HTTPException, _answer_refused)
    app.add_exception_handler(Exception, _answer_refused)
    routes = _Routes(registry)
    app.add_api_route("/healthz", routes.health, methods=["GET"])
    app.add_api_route("/serve/{endpoint}/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/serve/{endpoint}/v1/models/{model:path}", routes.model, methods=["GET"])
    app.add_api_route("/serve/{endpoint}/v1/chat/completions", routes.chat, methods=["POST"])
    app.add_api_route("/serve/{endpoint}/v1/completions", routes.completions, methods=["POST"])
    app.add_api_route("/serve/{endpoint}/v1/embeddings", routes.embeddings, methods=["POST"])
    app.add_api_route("/serve/{endpoint}/call/{method}", routes.call, methods=["POST"])
    app.add_api_route("/serve/{rest:path}", _unknown, methods=["GET", "POST", "PUT", "DELETE"])
    return app


async def _unknown(rest: str) -> None:
    raise Refused(404, f"there is no route /serve/{rest[:200]}", code="unknown_url")


async def _answer_refused(_: Request, refused: Exception) -> Response:
    refused = _refusal(refused)
    headers = {"Retry-After": "1"} if refused.status in (429, 503) else {}
    return JSONResponse(refused.body(), refused.status, headers)


class _Routes:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def health(self) -> dict[str, Any]:
        """Whether it hears the control plane."""
        return {"status": "ok" if self._registry.fresh else "stale", "endpoints": self._registry.count}

    async def models(self, endpoint: str, request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [_model(await self._endpoint(endpoint, request))]}

    async def model(self, endpoint: str, model: str, request: Request) -> dict[str, Any]:
        found = await self._endpoint(endpoint, request)
        _check_model(found, model)
        return _model(found)

    async def chat(self, endpoint: str, request: Request) -> Response:
        found, asked = await self._asked(endpoint, request, openai.ChatIn, "chat")
        messages = [message.plain() for message in asked.messages]
        writer = openai.Writer(new_id("chatcmpl"), asked.model, int(time.time()), chat=True)

        def ask() -> AsyncIterator[Any]:
            return found.stream("chat", prompt_of(messages), messages, **asked.sampling())

        return await _written(found, request, asked, writer, ask)

    async def completions(self, endpoint: str, request: Request) -> Response:
        found, asked = await self._asked(endpoint, request, openai.CompletionIn, "complete")
        writer = openai.Writer(new_id("cmpl"), asked.model, int(time.time()), chat=False)
        text = asked.text()

        def ask() -> AsyncIterator[Any]:
            return found.stream("complete", prompt_of(text), text, **asked.sampling())

        return await _written(found, request, asked, writer, ask)

    async def embeddings(self, endpoint: str, request: Request) -> Response:
        found, asked = await self._asked(endpoint, request, openai.EmbeddingIn, "embed")
        answer = await _or_refuse(_unless_gone(request, found.call("embed", asked.texts())))
        try:
            response = JSONResponse(openai.embeddings(answer, asked))
        except Exception as error:  # noqa: BLE001 - the object is the customer's, the node somebody else's
            raise Refused(500, f"what embed returned is no answer: {type(error).__name__}: {error}") from None
        found.tokens["prompt_tokens"] += int(answer.get("prompt_tokens", 0))
        return response

    async def call(self, endpoint: str, method: str, request: Request) -> Response:
        """`{"args": […], "kwargs": {…}, "stream": bool}` to a method of any object; values as JSON has them."""
        found = await self._endpoint(endpoint, request)
        if not found.has(method):
            raise Refused(
                404, f"{found.facts['name']} has no method {method!r}; it has: {', '.join(found.facts['methods'])}"
            )
        given = await _json(request)
        args, kwargs = given.get("args", []), given.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise Refused(400, "args is a list and kwargs an object", param="args", code="invalid_type")
        if given.get("stream") is True:
            pieces = found.stream(method, Prompt(), *args, **kwargs)
            first = await _or_refuse(_unless_gone(request, _if_taken(_first(pieces))))
            return StreamingResponse(
                _events(pieces, first, lambda piece: {"value": piece}), media_type="text/event-stream"
            )
        value = await _or_refuse(_unless_gone(request, _if_taken(found.call(method, *args, **kwargs))))
        try:
            return JSONResponse({"value": value})
        except (TypeError, ValueError) as error:
            raise Refused(500, f"the value of {method} cannot be written as JSON: {error}") from None

    async def _endpoint(self, name: str, request: Request) -> Endpoint:
        """The caller's endpoint; one of somebody else is one that does not exist."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Refused(401, "an API key is needed: Authorization: Bearer <key>", code="invalid_api_key")
        customer = await self._registry.customer_of(key)
        if customer is None:
            raise Refused(401, "this API key is not known here, or was revoked", code="invalid_api_key")
        found = await self._registry.find(name)
        if found is None or found.facts["customer"] != customer:
            raise Refused(404, f"this account has no endpoint {name}, or it was stopped", code="unknown_endpoint")
        if request.method == "POST" and (found.full or self._registry.open_bytes(customer) > MAX_OPEN_BYTES):
            raise Refused(429, "too many requests wait already; ask again in a moment", code="too_many_requests")
        return found

    async def _asked(self, name: str, request: Request, shape: type[Body], method: str) -> tuple[Endpoint, Body]:
        found = await self._endpoint(name, request)
        if not found.has(method):
            raise Refused(404, f"{found.facts['name']} has no method {method!r}", code="unsupported_operation")
        try:
            asked = shape.model_validate(await _json(request))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Refused(
                400, f"{where or 'body'}: {first['msg']}", param=where or None, code="invalid_value"
            ) from None
        _check_model(found, asked.model)  # type: ignore[attr-defined]  # every shape names its model
        return found, asked


def _check_model(endpoint: Endpoint, model: str) -> None:
    if model not in (endpoint.facts["name"], endpoint.id):
        raise Refused(
            404,
            f"the model {model!r} is not served here; {endpoint.facts['name']!r} is",
            param="model",
            code="model_not_found",
        )


def _model(endpoint: Endpoint) -> dict[str, Any]:
    created = endpoint.facts["created_at_ms"] // 1000
    return {"id": endpoint.facts["name"], "object": "model", "created": created, "owned_by": endpoint.facts["customer"]}


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()  # a growing `bytes` is copied with every chunk, which many large requests could make use of
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"a request has at most {MAX_BODY_BYTES} bytes", code="too_large")
    try:
        given = json.loads(body)
        if b"\\ud" in body.lower():
            json.dumps(given, ensure_ascii=False).encode()  # half a pair of surrogates is no text
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body is not a JSON object", code="invalid_json")
    return given


async def _written(
    endpoint: Endpoint, request: Request, asked: Any, writer: openai.Writer, ask: Callable[[], AsyncIterator[Any]]
) -> Response:
    """The whole answer, or a stream once its first piece is there: until then a fault is an HTTP status."""
    if not asked.stream:
        return JSONResponse(await _or_refuse(_unless_gone(request, _whole(endpoint, writer, ask))))
    counted = _counted(endpoint, ask())
    first = await _or_refuse(_unless_gone(request, _first(counted)))
    events = _events(counted, first, writer.chunk, writer.usage_chunk if asked.with_usage else None)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _counted(endpoint: Endpoint, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async with contextlib.aclosing(pieces) as each:  # type: ignore[type-var]  # they are generators
        async for piece in each:
            if piece.get("finish_reason"):
                for name in endpoint.tokens:
                    endpoint.tokens[name] += int(piece.get(name, 0))
            yield piece


async def _whole(
    endpoint: Endpoint, writer: openai.Writer, ask: Callable[[], AsyncIterator[Any]], tries: int = WHOLE_TRIES
) -> dict[str, Any]:
    """The whole answer; its reader has none of it yet, so one whose replica was lost half-way is asked for again."""
    text, end = "", {}
    try:
        async for piece in _counted(endpoint, ask()):
            text += piece.get("text", "")
            end = piece if piece.get("finish_reason") else end
    except RunFailed as lost:
        if tries <= 1 or lost.reason not in INTERRUPTIONS:
            raise
        return await _whole(endpoint, writer, ask, tries - 1)
    return writer.whole(text, end)


async def _first(pieces: AsyncIterator[Any]) -> Any:
    return await anext(pieces, None)


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """The answer, unless its reader hangs up first: then it is ended, so that nobody pays for it."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            raise Refused(499, "the client hung up")
        return await work
    finally:
        gone.cancel()
        work.cancel()


async def _gone(request: Request) -> None:
    while not await request.is_disconnected():  # noqa: ASYNC110 - that is how the framework says it
        await asyncio.sleep(0.2)


async def _events(
    pieces: AsyncIterator[Any],
    first: Any,
    shape: Callable[[Any], dict[str, Any]],
    usage: Callable[[Any], dict[str, Any]] | None = None,
) -> AsyncIterator[str]:
    """Server-sent events; a fault after the first is an event too, as the status is sent already."""
    piece, last = first, {}
    try:
        while piece is not None:
            last = piece
            yield _event(shape(piece))
            piece = await anext(pieces, None)
        if usage is not None:
            yield _event(usage(last))
        yield "data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - whatever ends the stream is told on it
        yield _event(_refusal(error).body())
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]  # they are generators


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _if_taken(answer: Awaitable[Any]) -> Any:
    """The answer of a method; refused where it was called with other arguments than it has."""
    try:
        return await answer
    except TypeError as error:
        takes = getattr(error, "takes", None)
        if takes is None:
            raise
        raise Refused(400, f"{error}; it takes {takes}", param="args", code="invalid_arguments") from None


async def _or_refuse(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost: what a replica raises becomes an answer
        raise _refusal(error) from None


def _refusal(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # the framework's own: no such route, or not by this method
        return Refused(error.status_code, error.detail)
    remote = isinstance(error, RemoteError)
    named = error.type_name.rpartition(".")[2] if isinstance(error, RemoteError) else ""
    status = 400 if named == "InvalidRequest" else next((s for kind, s in _STATUS if isinstance(error, kind)), 500)
    details = error.details if isinstance(error, Error) else {}
    message = error.message if remote and status == 400 else str(error)  # type: ignore[attr-defined]
    return Refused(status, message or type(error).__name__, code=str(details["code"]) if "code" in details else None)
