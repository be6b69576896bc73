"""Packing: what travels by value, as source, by name, and what is refused. Arrival is tested in a new process."""

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from fabric.client.pack import MAX_CODE_BYTES, pack_arguments, pack_function
from fabric.wire.errors import InvalidRequest

UNPACK = (
    "import pickle,sys;"
    "code,args=pickle.load(sys.stdin.buffer);"
    "f=pickle.loads(code);a,k=pickle.loads(args[0],buffers=args[1:]);"
    "print(repr(f(*a,**k)))"
)


def arrives(function, *args, **kwargs):
    """What the function returns in another process that has nothing of ours but the distribution."""
    packed = pack_function(function)
    pieces = [bytes(piece) for piece in pack_arguments(args, kwargs, packed.modules)]
    sent = pickle.dumps((packed.code, pieces))
    done = subprocess.run([sys.executable, "-P", "-c", UNPACK], input=sent, capture_output=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder of the user's own modules on `sys.path`, as next to a script."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_closure_travels_with_what_it_closes_over():
    factor = 3
    assert arrives(lambda x: x * factor, 14) == "42"


def test_a_class_of_the_script_travels():
    class Scale:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return x * self.factor

    assert arrives(Scale(2), 21) == "42"


def test_own_modules_travel_with_their_submodules_and_what_they_import(own_folder):
    (own_folder / "shapes_pkg").mkdir()
    (own_folder / "shapes_pkg" / "__init__.py").write_text("from .area import area\n")
    (own_folder / "shapes_pkg" / "area.py").write_text("import helper_mod\ndef area(x): return helper_mod.square(x)\n")
    (own_folder / "helper_mod.py").write_text(
        "import threading\nLOCK = threading.Lock()\ndef square(x): return x * x\n"
    )
    import shapes_pkg

    assert pack_function(shapes_pkg.area).modules == {"shapes_pkg", "shapes_pkg.area", "helper_mod"}
    assert arrives(shapes_pkg.area, 5) == "25"
    assert (
        arrives(lambda x: shapes_pkg.area.area(x) if hasattr(shapes_pkg.area, "area") else shapes_pkg.area(x), 5)
        == "25"
    )


def test_a_module_that_is_imported_inside_the_function_travels(own_folder):
    (own_folder / "late_mod.py").write_text("def f(): return 'late'\n")

    def call():
        from late_mod import f

        return f()

    assert arrives(call) == "'late'"


def test_a_module_that_was_edited_since_travels_as_it_is_now_with_what_it_imports_now(own_folder):
    edited = own_folder / "edited_mod.py"
    edited.write_text("def f(): return 'first'\n")

    def call():
        from edited_mod import f

        return f()

    assert arrives(call) == "'first'"
    (own_folder / "edited_helper.py").write_text("WORD = 'second'\n")
    edited.write_text("from edited_helper import WORD\ndef f(): return WORD\n")
    assert pack_function(call).modules == {"edited_mod", "edited_helper"}
    assert arrives(call) == "'second'"


def test_modules_that_import_each_other_travel(own_folder):
    (own_folder / "ring_a.py").write_text("import ring_b\ndef a(): return ring_b.b()\n")
    (own_folder / "ring_b.py").write_text("import ring_a\ndef b(): return ring_a.__name__\n")
    import ring_a

    assert arrives(ring_a.a) == "'ring_a'"


def test_a_module_that_only_an_argument_needs_travels_with_the_argument(own_folder):
    (own_folder / "points_mod.py").write_text(
        "class Point:\n    def __init__(s, x): s.x = x\n    def __repr__(s): return f'P{s.x}'\n"
    )
    import points_mod

    assert arrives(lambda p: p, points_mod.Point(7)) == "P7"


def test_installed_modules_travel_by_name():
    assert pack_function(np.mean).modules == frozenset()
    assert len(pack_function(np.mean).code) < 200


def test_arrays_travel_out_of_band():
    pieces = pack_arguments((np.zeros(100_000),), {})
    assert len(pieces) == 2
    assert pieces[1].nbytes == 800_000
    assert arrives(lambda a: float(a.sum()), np.ones(1000)) == "1000.0"


def test_keyword_arguments_travel():
    assert arrives(lambda x, y=0: x + y, 40, y=2) == "42"


@pytest.fixture
def usual_depth():
    """Python's own recursion limit; libraries that other tests imported raise it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("usual_depth")
def test_what_cannot_be_pickled_is_named():
    settings = {"model": {"lock": threading.Lock()}}

    def train():
        return settings

    with pytest.raises(
        InvalidRequest, match=r"settings\['model'\]\['lock'\], which .*train refers to, .* _thread.lock"
    ):
        pack_function(train)
    with pytest.raises(InvalidRequest, match=r"argument 2\[0\] cannot be pickled: it is a _thread.lock"):
        pack_arguments((1, [threading.Lock()]), {})
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match=r"argument 1\[0\]\[0\].*….* cannot be pickled"):
        pack_arguments([deep], {})
    with pytest.raises(InvalidRequest, match="argument 'guard' cannot be pickled"):
        pack_arguments((), {"guard": threading.Lock()})


def test_something_that_is_no_function_is_refused():
    with pytest.raises(InvalidRequest, match="must be a function, not a int"):
        pack_function(42)


def test_a_function_that_carries_large_data_is_refused():
    data = b"x" * (MAX_CODE_BYTES + 1)
    with pytest.raises(InvalidRequest, match="pass them as arguments"):
        pack_function(lambda: data)


def test_an_extension_module_of_the_users_own_is_refused(own_folder):
    from importlib.machinery import EXTENSION_SUFFIXES

    (own_folder / f"fast_mod{EXTENSION_SUFFIXES[0]}").write_bytes(b"")

    def call():
        import fast_mod

        return fast_mod

    with pytest.raises(InvalidRequest, match="extension module"):
        pack_function(call)
