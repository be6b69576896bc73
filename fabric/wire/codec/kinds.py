"""The numbers of the wire format, one for each kind of value that msgpack does not know itself.

They are written into results that may lie in a store for days: never renumber, only append.
"""

from enum import IntEnum


class Kind(IntEnum):
    """The ext type code of a reference to an entry of that kind."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    BIG_INT = 4
    COMPLEX = 5
    LARGE_BYTES = 6
    DATE = 7
    TIME = 8
    DATETIME = 9
    TIMEDELTA = 10
    DECIMAL = 11
    UUID = 12
    ENUM = 13
    DATACLASS = 14
    NAMED_TUPLE = 15
    PYDANTIC = 16
    ARRAY = 17
    NUMPY_SCALAR = 18
    TENSOR = 19
    EXCEPTION = 20
    RECORD = 21
    ORDERED_DICT = 22
    TABLE = 23
