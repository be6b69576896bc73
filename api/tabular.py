"""One answer in the form that was asked for: JSON, or its rows alone as CSV or Parquet, for whoever analyses.

`?format=` wins over `Accept`. Rows are the same in all forms: amounts and times as integers of the smallest unit; in
Parquet amounts are decimals without fraction, because wei do not fit 64 bits. The next page of rows is in `Link`.
"""

import csv
import importlib.util
import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, PlainSerializer
from pydantic.fields import FieldInfo

from api.errors import NotAcceptable

_CSV, _PARQUET, _JSON = "text/csv", "application/vnd.apache.parquet", "application/json"
_AMOUNT_DIGITS = 38
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    """How rows can be had."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


_BY_TYPE = {
    _JSON: Format.JSON,
    "*/*": Format.JSON,
    "application/*": Format.JSON,
    _CSV: Format.CSV,
    "text/*": Format.CSV,
    _PARQUET: Format.PARQUET,
}

FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {_CSV: {}, _PARQUET: {}}, "description": "JSON, or its rows alone"},
    304: {"description": "As `If-None-Match` knows it"},
    406: {"description": "In no form that `Accept` names"},
}
"""For `responses` of routes that answer so."""


def _wanted(request: Request, form: Annotated[Format | None, Query(alias="format")] = None) -> Format:
    found = form or accepted(request.headers.get("accept", "*/*"))
    if found is None:
        raise NotAcceptable(
            f"Accept: {request.headers['accept']} names no form of this; there are {_JSON}, {_CSV} and {_PARQUET}, "
            "or ?format=json, csv or parquet"
        )
    if found is Format.PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise NotAcceptable(
            "Parquet needs pyarrow on the control plane: pip install 'berkeley-compute[tables]' there, or ask for csv"
        )
    return found


FormatDep = Annotated[Format, Depends(_wanted)]


def accepted(header: str) -> Format | None:
    """The form that an Accept header likes best, the first of equals; None when it takes none of ours."""
    likes: list[tuple[float, int, Format]] = []
    for at, part in enumerate(header.lower().split(",")):
        name, *options = (piece.strip() for piece in part.split(";"))
        weight = next((_weight(option[2:]) for option in options if option.startswith("q=")), 1.0)
        if name in _BY_TYPE and weight > 0:
            likes.append((-weight, at, _BY_TYPE[name]))
    return min(likes)[2] if likes else None


def answer(
    request: Request, form: Format, whole: BaseModel, row: type[BaseModel], rows: Sequence[BaseModel]
) -> Response:
    """``whole`` as JSON, or its ``rows``; its `next`, where it has one, is the cursor of the next page."""
    cursor = getattr(whole, "next", None)
    headers = {"Vary": "Accept"}
    if cursor is not None:
        headers["Link"] = f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'
    if form is Format.JSON:
        return Response(whole.model_dump_json(), media_type=_JSON, headers=headers)
    body, kind = (_csv(row, rows), _CSV) if form is Format.CSV else (_parquet(row, rows), _PARQUET)
    return Response(body, media_type=kind, headers=headers)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _csv(row: type[BaseModel], rows: Sequence[BaseModel]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(row.model_fields)
    writer.writerows([[_cell(getattr(one, name)) for name in row.model_fields] for one in rows])
    return out.getvalue().encode()


def _cell(value: Any) -> Any:
    """Names are other people's: a spreadsheet must not run one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _parquet(row: type[BaseModel], rows: Sequence[BaseModel]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "amount": pa.decimal128(_AMOUNT_DIGITS, 0),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "str": pa.string(),
    }
    schema = pa.schema([(name, kinds[_kind(field)]) for name, field in row.model_fields.items()])
    columns = {name: [getattr(one, name) for one in rows] for name in row.model_fields}
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in columns}, schema)
    out = io.BytesIO()
    parquet.write_table(table, out)
    return out.getvalue()


def _kind(field: FieldInfo) -> str:
    if any(isinstance(mark, PlainSerializer) for mark in field.metadata) or "PlainSerializer" in str(field.annotation):
        return "amount"
    names = str(field.annotation)
    return next(name for name in ("bool", "int", "str") if name in names)
