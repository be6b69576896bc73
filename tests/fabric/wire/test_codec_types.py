"""Classes: rebuilt only where the caller's own names allow it, and without running any of their code."""

import enum
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pydantic
import pytest

from fabric.wire.codec import FunctionTypes, NotTransportable, NoTypes, decode, encode
from fabric.wire.record import Record


class Color(enum.Enum):
    RED = 1
    GREEN = ("g", 2)


class Mode(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Level(enum.IntEnum):
    LOW = 1


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Any = 0

    def __post_init__(self):
        if self.x == 13:
            raise AssertionError("must not run again")


@dataclass
class Lazy:
    x: int
    later: int = field(init=False)


@dataclass
class Guarded:
    x: int

    def __new__(cls, *arguments):
        if not arguments:
            raise AssertionError("must not run again")
        return super().__new__(cls)


class Lookalike:
    _fields = ("left", "right")


class Bits(enum.Flag):
    A = 1
    B = 2

    @classmethod
    def _missing_(cls, value):
        return super()._missing_(value)


class Pair(NamedTuple):
    left: Any
    right: Any


class Model(pydantic.BaseModel):
    name: str
    points: list[Point] = []

    def model_post_init(self, context):
        if self.name == "set later":
            raise AssertionError("must not run again")


class Private(pydantic.BaseModel):
    a: int
    _seen: int = pydantic.PrivateAttr(0)


class Open(pydantic.BaseModel, extra="allow"):
    a: int


class Outer:
    @dataclass
    class Inner:
        x: int


def function(): ...


OWN = FunctionTypes(function)


def there_and_back(value, types=OWN):
    return decode(*encode(value), types=types)


POINT = object.__new__(Point)
object.__setattr__(POINT, "x", 13)
object.__setattr__(POINT, "y", [1, (2,)])


@pytest.mark.parametrize(
    "value",
    [
        *(Color.RED, Color.GREEN, Mode.READ, Mode.READ | Mode.WRITE, Mode(0), Level.LOW, Pair(1, {2})),
        *(POINT, Guarded(1), Outer.Inner(1), Model(name="a", points=[Point(1)]), Open.model_validate({"a": 1, "b": 2})),
    ],
)
def test_an_instance_of_the_functions_module_comes_back_as_itself(value):
    back = there_and_back([value])[0]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "record"),
    [
        (Color.GREEN, Record(__name__, "Color", {"name": "GREEN", "value": ("g", 2)})),
        (POINT, Record(__name__, "Point", {"x": 13, "y": [1, (2,)]})),
        (Pair(1, 2), Record(__name__, "Pair", {"left": 1, "right": 2})),
        (Outer.Inner(1), Record(__name__, "Outer.Inner", {"x": 1})),
        (Model(name="a"), Record(__name__, "Model", {"name": "a", "points": []})),
    ],
)
def test_an_instance_of_an_unknown_class_becomes_a_record(value, record):
    assert there_and_back([value], NoTypes()) == [record]


def test_a_model_is_rebuilt_without_its_hooks_and_keeps_what_was_set():
    model = Model(name="a")
    model.name = "set later"
    back = there_and_back(model)
    assert back == model
    assert back.model_fields_set == {"name"}
    assert back.model_dump() == {"name": "set later", "points": []}


def test_a_private_attribute_does_not_travel_but_can_be_set_again():
    model = Private(a=1)
    model._seen = 5
    back = there_and_back(model)
    assert not hasattr(back, "_seen")
    back._seen = 6
    assert back._seen == 6


def test_a_field_that_was_never_set_stays_unset():
    assert not hasattr(there_and_back(Lazy(1)), "later")


def test_a_class_that_has_changed_its_fields_becomes_a_record():
    encoded = encode(Point(1, 2))
    header = encoded.header.replace(b"\xa1y", b"\xa1z")
    assert decode(header, [], types=OWN) == Record(__name__, "Point", {"x": 1, "z": 2})


def test_a_model_that_has_changed_its_fields_becomes_a_record():
    header = encode(Model(name="a")).header.replace(b"\xa4name", b"\xa4none")
    assert decode(header, [], types=OWN) == Record(__name__, "Model", {"none": "a", "points": []})


def test_a_combined_flag_is_not_looked_up_by_the_users_own_code():
    assert there_and_back(Bits.A) is Bits.A
    assert there_and_back(Bits.A | Bits.B) == Record(__name__, "Bits", {"name": "A|B", "value": 3})


@dataclass
class Hidden:
    x: int


@dataclass
class Line:
    hidden: Hidden


def make_local():
    @dataclass
    class Local:
        lines: list[Line]

    return Local


Local = make_local()


class _Elsewhere:
    """A function whose module has none of the classes in its namespace."""

    @staticmethod
    def make():
        namespace = {"__name__": "elsewhere"}
        exec("def f(): ...", namespace)
        return namespace["f"]


@pytest.mark.parametrize("how", ["annotation", "returns"])
def test_classes_reachable_from_annotations_and_returns_are_rebuilt(how):
    elsewhere = _Elsewhere.make()
    value = Local([Line(Hidden(1))])
    assert isinstance(there_and_back(value, FunctionTypes(elsewhere)), Record)
    if how == "annotation":
        elsewhere.__annotations__["return"] = dict[str, Local | None]
        types = FunctionTypes(elsewhere)
    else:
        types = FunctionTypes(elsewhere, returns=list[Local])
    assert there_and_back(value, types) == value


def test_annotations_that_cannot_be_resolved_are_no_error():
    elsewhere = _Elsewhere.make()
    elsewhere.__annotations__["return"] = "NoSuchName"
    assert isinstance(there_and_back(Point(1), FunctionTypes(elsewhere)), Record)


@pytest.mark.parametrize("kind_of", [Color.RED, Point(1), Pair(1, 2), Model(name="a")])
@pytest.mark.parametrize("target", ["Color", "Pair", "Point", "Model", "Outer", "Lookalike", "subprocess.Popen"])
def test_a_name_of_a_class_of_another_kind_gives_no_instance_of_it(kind_of, target):
    namespace = globals()
    header = encode(kind_of).header
    own = type(kind_of).__qualname__
    forged = header.replace(bytes([0xA0 + len(own)]) + own.encode(), bytes([0xA0 + len(target)]) + target.encode())
    back = decode(forged, [], types=OWN)
    assert isinstance(back, Record) or type(back) is namespace.get(target)
    assert isinstance(back, Record) == (target != own)


def test_a_dataclass_that_extends_a_builtin_is_refused():
    @dataclass
    class Bag(dict):
        x: int = 0

    with pytest.raises(NotTransportable, match="would lose its contents"):
        encode(Bag())


def test_a_cycle_through_instances_is_named():
    line = Line(None)
    line.hidden = [line, line]
    with pytest.raises(NotTransportable, match=r"^result\.hidden\[0\]: Line contains itself"):
        encode(line)


def test_the_path_goes_through_fields():
    with pytest.raises(NotTransportable, match=r"^result\[0\]\.name\[\"f\"\]: function is not"):
        encode([Model.model_construct(name={"f": function})])


def test_the_codec_imports_no_heavy_library_and_nothing_that_the_data_names():
    script = (
        "import sys; from fabric.wire.codec import *; from fabric.wire.codec.errors import CodecError\n"
        f"decode({encode(Point(1)).header!r}, [], types=NoTypes())\n"
        "assert not {'numpy', 'torch', 'pydantic', 'pandas', 'pickle'} & sys.modules.keys(), sys.modules.keys()\n"
        f"assert {__name__!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
