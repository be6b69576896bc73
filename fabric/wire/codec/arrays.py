"""NumPy arrays and scalars, and torch tensors: both ways. Neither library is imported before a value needs it.

Arrays of Python objects are refused. A tensor travels as its numbers: it arrives on the CPU, without gradient.
Received arrays are writable; they share memory with the received buffer when that is writable and aligned.
"""

import importlib
import math
import re
import sys
from typing import Any

from fabric.wire.codec.errors import CodecError
from fabric.wire.codec.hints import Unfit
from fabric.wire.codec.kinds import Kind

_SIMPLE_DTYPE = re.compile(r"[<>|=][biufcmMSUV]\d+(\[\d*[a-zA-Z]+(/\d+)?\])?")
_TORCH_DTYPES = frozenset(
    (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
        *("complex32", "complex64", "complex128"),
    )
)


def describe(value: Any) -> tuple[Kind, list[Any], Any] | None:
    """Kind, fields and buffer of an array, scalar or tensor; None when the value is none of them.

    Raises:
        Unfit: object dtype, a subclass of an array, or a tensor without plain storage.
    """
    np, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if np is not None and isinstance(value, np.ndarray):
        return _describe_array(np, value)
    if np is not None and isinstance(value, np.generic):
        return Kind.NUMPY_SCALAR, [_dtype_fields(np, value.dtype, value), value.tobytes()], None
    if torch is not None and isinstance(value, torch.Tensor):
        return _describe_tensor(torch, value)
    return None


def rebuild_array(fields: Any, buffer: memoryview) -> Any:
    """The array of [dtype, shape, order]; ``buffer`` must be exactly its bytes."""
    dtype_fields, shape, order = fields
    np = _library("numpy")
    dtype = _dtype(np, dtype_fields)
    _check_size(shape, dtype.itemsize, buffer)
    if order not in ("C", "F"):
        raise CodecError(f"an array's order is C or F, not {order!r}")
    if not buffer.nbytes:
        return np.empty(shape, dtype, order)
    array = np.frombuffer(buffer, dtype).reshape(shape, order=order)
    return array if array.flags.writeable and array.flags.aligned else array.copy(order)


def rebuild_numpy_scalar(fields: Any) -> Any:
    """The scalar of [dtype, its bytes]."""
    dtype_fields, raw = fields
    np = _library("numpy")
    dtype = _dtype(np, dtype_fields)
    _check_size([], dtype.itemsize, memoryview(raw))
    return np.frombuffer(raw, dtype)[0] if raw else np.empty((), dtype)[()]


def rebuild_tensor(fields: Any, buffer: memoryview) -> Any:
    """The CPU tensor of [dtype, shape]."""
    name, shape = fields
    torch = _library("torch")
    if name not in _TORCH_DTYPES or not hasattr(torch, name):
        raise CodecError(f"no torch dtype {name!r} here")
    dtype = getattr(torch, name)
    _check_size(shape, dtype.itemsize, buffer)
    if not buffer.nbytes:
        return torch.empty(shape, dtype=dtype)
    owned = bytearray(buffer) if buffer.readonly else buffer
    return torch.frombuffer(owned, dtype=torch.uint8).view(dtype).reshape(shape)


def _describe_array(np: Any, array: Any) -> tuple[Kind, list[Any], Any]:
    if type(array) not in (np.ndarray, np.memmap):
        raise Unfit(array, hint="return numpy.asarray(…) of it")
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    flat = np.ascontiguousarray(array.T if order == "F" else array).reshape(-1)
    fields = [_dtype_fields(np, array.dtype, array), list(array.shape), order]
    return Kind.ARRAY, fields, flat.view(np.uint8).data if flat.nbytes else b""


def _dtype_fields(np: Any, dtype: Any, value: Any) -> Any:
    """A dtype as NumPy's own file format writes it: a string, or a list of fields."""
    if dtype.hasobject:
        raise Unfit(value, hint="it has object dtype: convert it with .astype(…), or return .tolist()")
    described = np.lib.format.dtype_to_descr(dtype)
    if isinstance(described, str) and not _SIMPLE_DTYPE.fullmatch(described):
        raise Unfit(value, hint=f"its dtype {dtype} is not one of NumPy's own")
    return _listed(described)


def _listed(described: Any) -> Any:
    return [_listed(inner) for inner in described] if isinstance(described, list | tuple) else described


def _dtype(np: Any, fields: Any) -> Any:
    return np.lib.format.descr_to_dtype(_described(fields))


def _described(fields: Any) -> Any:
    """The form NumPy wants, with each string checked before NumPy parses it: lists of (name, dtype[, shape])."""
    if isinstance(fields, str):
        if not _SIMPLE_DTYPE.fullmatch(fields):
            raise CodecError(f"{fields!r} is not a dtype")
        return fields
    if fields and isinstance(fields[0], list):
        return [_described_field(*field) for field in fields]
    inner, shape = fields
    return _described(inner), tuple(shape)


def _described_field(name: Any, dtype: Any, shape: Any = None) -> tuple[Any, ...]:
    title = tuple(name) if isinstance(name, list) else name
    return (title, _described(dtype)) if shape is None else (title, _described(dtype), tuple(shape))


def _describe_tensor(torch: Any, tensor: Any) -> tuple[Kind, list[Any], Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise Unfit(tensor, hint="it is a subclass of torch.Tensor: return plain tensors")
    if tensor.layout != torch.strided or name not in _TORCH_DTYPES or tensor.is_meta:
        raise Unfit(tensor, hint="only dense tensors travel: return .to_dense(), or dequantised")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    buffer = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return Kind.TENSOR, [name, list(tensor.shape)], buffer


def _check_size(shape: Any, itemsize: int, buffer: memoryview) -> None:
    if any(type(n) is not int or n < 0 for n in shape):
        raise CodecError(f"{shape!r} is not a shape")
    needed = math.prod(shape) * itemsize
    if needed != buffer.nbytes:
        raise CodecError(f"an array of {needed:,} bytes in a buffer of {buffer.nbytes:,}")


def _library(name: str) -> Any:
    """NumPy or torch, imported when first needed: the SDK installs without both."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CodecError(f"the value needs {name}, which is not installed here: pip install {name}") from None
