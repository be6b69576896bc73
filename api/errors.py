"""Errors as HTTP says them: one table from class to status, RFC 9457 problem documents, validation errors included.

fabric.wire.errors.Error          the tree that a person meets, see there
├── NotFound                      nothing of that name that this account may see
├── Conflict                      it exists already, or its state does not allow this
├── NotAcceptable                 in no form that was asked for
└── PayloadTooLarge               beyond a limit or a quota
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from api.database_faults import fault, holds_nul
from fabric.placement.grammar import GrammarError
from fabric.placement.request import RequestError
from fabric.wire.errors import (
    AuthError,
    BudgetExhausted,
    Error,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    PermissionDenied,
    PriceExceeded,
    RunFailed,
    ServiceError,
)
from fabric.wire.machines import IllegalTransition
from ledger.chain.errors import ChainError
from ledger.errors import BudgetExceeded, LedgerError, PoolTermsRefused
from ledger.errors import EpochNotOver as LedgerEpochNotOver
from ledger.errors import EpochOutOfOrder as LedgerEpochOutOfOrder
from ledger.errors import InsufficientFunds as LedgerInsufficientFunds

_log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"


class NotFound(Error):
    code = "not-found"


class Conflict(Error):
    code = "conflict"


class NotAcceptable(Error):
    code = "not-acceptable"


class PayloadTooLarge(Error):
    code = "payload-too-large"


STATUS: dict[type[Error], int] = {
    InvalidRequest: 422,
    AuthError: 401,
    PermissionDenied: 403,
    InsufficientFunds: 402,
    BudgetExhausted: 402,
    PriceExceeded: 409,
    NoCapacity: 409,
    RunFailed: 409,
    ServiceError: 503,
    NotFound: 404,
    Conflict: 409,
    PayloadTooLarge: 413,
    NotAcceptable: 406,
}

_TITLES = {
    401: "No valid credential",
    402: "Not enough money",
    403: "Not allowed",
    404: "Not found",
    406: "Not to be had in that form",
    409: "Not possible now",
    413: "Too large",
    422: "The request makes no sense",
    500: "A fault of the fabric",
    503: "Not available now",
}


def status_of(error: Error) -> int:
    """The status of the nearest class in the table."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def problem(status: int, code: str, detail: str, members: Mapping[str, Any] | None = None) -> JSONResponse:
    """An RFC 9457 document; `members` stand beside the standard ones. Amounts in DC become strings."""
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
    }
    for name, value in (members or {}).items():
        body.setdefault(name, str(value) if name.endswith("_dc") and value is not None else value)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def translate(error: Exception) -> Error | None:
    """The person's error for one of a core; None when it is none of theirs."""
    if isinstance(error, Error):
        return error
    return next((make(error) for cls, make in _TRANSLATIONS.items() if isinstance(error, cls)), None)


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem document."""
    for cls in (Error, GrammarError, RequestError, LedgerError, IllegalTransition):
        app.add_exception_handler(cls, _domain)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answer(error: Exception) -> JSONResponse:
    """The problem document of an error of ours."""
    known = translate(error)
    if known is None:
        _log.error("unexpected ledger error", error=repr(error))
        return problem(500, "service", "the ledger refused what the control plane asked; nothing was changed")
    members = dict(known.details)
    if isinstance(known, ServiceError):
        members["retryable"] = known.retryable
    if isinstance(known, RunFailed):
        members["reason"] = known.reason
    return problem(status_of(known), known.code, known.message, members)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"


async def _domain(_request: Request, error: Exception) -> JSONResponse:
    return answer(error)


async def _database(request: Request, error: Exception) -> JSONResponse:
    """The database itself failed: whoever runs it must look, and whoever asks may ask again."""
    assert isinstance(error, DBAPIError)
    if holds_nul(error):
        return problem(422, InvalidRequest.code, "text cannot hold the character NUL (U+0000)")
    says = fault(error)
    if says is None:
        return await _unexpected(request, error)
    _log.error("the database failed", says=says, error=str(error.orig))
    detail = f"the control plane's database {says}; nothing was changed, ask again then"
    return problem(503, ServiceError.code, detail, {"retryable": True})


async def _validation(request: Request, error: Exception) -> JSONResponse:
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    lines = [_line(request, one) for one in errors]
    members = {"errors": [{"where": _where(one), "message": line} for one, line in zip(errors, lines, strict=True)]}
    return problem(422, InvalidRequest.code, "; ".join(lines[:3]) or "the request is malformed", members)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {401: AuthError.code, 403: PermissionDenied.code, 404: NotFound.code}.get(error.status_code, "http")
    return problem(error.status_code, code, str(error.detail))


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    _log.error("unexpected error", exc_info=error)
    return problem(
        500, ServiceError.code, "an unexpected fault; it is in the control plane's log", {"retryable": False}
    )


def _of_grammar(error: GrammarError) -> Error:
    return InvalidRequest(f"gpu: {error}", text=error.text, position=error.position, legal=error.legal)


def _of_funds(error: LedgerInsufficientFunds) -> Error:
    return InsufficientFunds(str(error), needed_dc=error.needed_dc, available_dc=error.available_dc)


def _of_budget(error: BudgetExceeded) -> Error:
    return BudgetExhausted(str(error), needed_dc=error.needed_dc, left_dc=error.left_dc)


_TRANSLATIONS: dict[type[Exception], Callable[[Any], Error]] = {
    GrammarError: _of_grammar,
    RequestError: lambda error: InvalidRequest(str(error)),
    LedgerInsufficientFunds: _of_funds,
    BudgetExceeded: _of_budget,
    LedgerEpochNotOver: lambda error: Conflict(str(error)),
    LedgerEpochOutOfOrder: lambda error: Conflict(str(error)),
    PoolTermsRefused: lambda error: InvalidRequest(str(error)),
    ChainError: lambda error: ServiceError(str(error), retryable=True),
    IllegalTransition: lambda error: Conflict(str(error)),
}


def _where(one: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0])


def _line(request: Request, one: Mapping[str, Any]) -> str:
    where = _where(one)
    if one["type"] == "extra_forbidden":
        name = str(one["loc"][-1])
        return f"{where} is unknown; {did_you_mean(name, _members(request, one['loc']))}"
    return f"{where}: {one['msg']}"


def _members(request: Request, loc: tuple[Any, ...]) -> list[str]:
    """The known members of the object in which `loc` stands."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    for part in loc[1:-1]:
        fields = getattr(model, "model_fields", {})
        model = _model_in(fields[part].annotation) if part in fields else None
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The model inside `Model | None`."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((option for option in options if hasattr(option, "model_fields")), annotation)
