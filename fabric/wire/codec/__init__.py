"""Results without pickles: values to bytes and back, so that nothing a worker sends can run code where it arrives.

A value becomes a header (msgpack) and raw buffers (the memory of arrays). Carried are None, bool, int of any size,
float, complex, str, bytes, list, tuple, dict, OrderedDict, set, frozenset, the datetime family, Decimal, UUID, Enum
members, the fields of dataclasses, NamedTuples and pydantic models, exceptions, NumPy arrays and scalars without object
dtype, dense torch tensors, Arrow tables, batches and arrays, pandas frames and series, and `Record`. `bytearray` and
`memoryview` arrive as `bytes`; subclasses of builtins are refused; one object in two places arrives as two. The codec
neither signs nor encrypts, and it does not carry functions: those go up as pickles, into the sandbox.
"""

from fabric.wire.codec.decode import decode, decode_exception
from fabric.wire.codec.encode import Encoded, encode, encode_exception
from fabric.wire.codec.errors import CodecError, NotTransportable
from fabric.wire.codec.scan import DEFAULT_LIMITS, Limits
from fabric.wire.codec.sources import FunctionTypes, NoTypes, TypeSource

__all__ = [
    "DEFAULT_LIMITS",
    "CodecError",
    "Encoded",
    "FunctionTypes",
    "Limits",
    "NoTypes",
    "NotTransportable",
    "TypeSource",
    "decode",
    "decode_exception",
    "encode",
    "encode_exception",
]
