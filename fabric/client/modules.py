"""Which modules are the user's own and must travel, found from what packed code refers to. Imports none of them.

A module is the user's own when an import finds it as a Python file outside the standard library, outside every
site-packages folder and outside this distribution. A module that was loaded but that no path leads to (a notebook, a
test collected by its file name) does not travel as source: its functions and classes travel by value instead.
"""

import ast
import dis
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import decode_source
from pathlib import Path
from types import CodeType, ModuleType

from fabric.client.arrival import Source
from fabric.wire.errors import InvalidRequest

OUR_PACKAGES = frozenset({"fabric", "ledger", "api", "workloads"})


def own_modules(names: Iterable[str]) -> dict[str, Source]:
    """The user's own modules among `names` and everything of the user's that they import, with parents, by name.

    Raises:
        InvalidRequest: one of them is an extension module, or its text cannot be read.
    """
    asked = frozenset(names), tuple(sys.path)
    known = _walked.get(asked)
    if known is None or any(_changed_ns(source[0]) != at for source, at in known.values()):
        if len(_walked) >= _WALKS_KEPT:
            _walked.clear()
        known = _walked[asked] = _walk(asked[0])
    return {name: source for name, (source, _) in known.items()}


_Dated = tuple[Source, int | None]
"""A module's source, and when its file had last changed before it was read (ns; None: no file)."""
_WALKS_KEPT = 256
_walked: dict[tuple[frozenset[str], tuple[str, ...]], dict[str, _Dated]] = {}
"""What was found before: a warm call of a function in a module only looks whether a file changed."""


def _changed_ns(origin: str) -> int | None:
    try:
        return Path(origin).stat().st_mtime_ns
    except OSError:
        return None


def _walk(names: Iterable[str]) -> dict[str, _Dated]:
    found: dict[str, _Dated] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name == "__main__" or name.partition(".")[0] in sys.stdlib_module_names:
            continue
        dated = _own_source(name)
        if dated is not None:
            (_, text, package), _ = found[name] = dated
            waiting += _with_parents(name)
            waiting += _imports(name, text, package)
    return found


def is_findable(module_name: str) -> bool:
    """Whether an `import` by that name leads somewhere here (installed, built in, or the user's own)."""
    root = module_name.partition(".")[0]
    if root in sys.builtin_module_names or root in sys.stdlib_module_names:
        return True
    return _resolve(module_name) is not None


def imports_of_code(code: CodeType) -> frozenset[str]:
    """Modules that a function imports inside its body, nested functions included; `from a import b` may mean `a.b`."""
    return frozenset(_imports_of_code(code))


@lru_cache(maxsize=4096)
def _imports_of_code(code: CodeType) -> tuple[str, ...]:
    names: list[str] = []
    module = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            module = instruction.argval
            names.append(module)
        elif instruction.opname == "IMPORT_FROM" and module:
            names.append(f"{module}.{instruction.argval}")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _imports_of_code(constant)
    return tuple(names)


def _own_source(name: str) -> _Dated | None:
    found = _resolve(name)
    if found is None:
        return None
    spec, places = found
    package = spec.submodule_search_locations is not None
    if spec.origin is None or not spec.has_location:
        own = package and all(_is_own(Path(place)) and not _is_ours(Path(place)) for place in places)
        return ((f"<{name}>", "", True), None) if own else None
    origin = spec.origin
    if not _travels(origin):
        return None
    if origin.endswith(tuple(EXTENSION_SUFFIXES)):
        raise InvalidRequest(
            f"the function needs {name}, an extension module ({origin}); only Python source can travel"
        )
    changed_ns = Path(origin).stat().st_mtime_ns
    return (origin, _text(name, origin, changed_ns), package), changed_ns


@lru_cache(maxsize=4096)
def _travels(origin: str) -> bool:
    path = Path(origin)
    return _is_own(path) and not _is_ours(path)


@lru_cache(maxsize=4096)
def _text(name: str, path: str, _at_ns: int) -> str:
    try:
        return decode_source(Path(path).read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the function needs {name}, but {path} cannot be read: {error}") from None


def _resolve(name: str) -> tuple[ModuleSpec, tuple[str, ...]] | None:
    """The spec an import would find on `sys.path`, parents not imported, and where its submodules lie."""
    path: tuple[str, ...] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        spec = _find(full, path, tuple(sys.path))
        if spec is None:
            return None
        path = _places(full, spec, path)
    return None if spec is None else (spec, path or ())


def _places(full: str, spec: ModuleSpec, path: Iterable[str] | None) -> tuple[str, ...]:
    """Where a package's modules lie; a namespace package's own list cannot be read before its parent is imported."""
    if spec.origin is not None or spec.submodule_search_locations is None:
        return tuple(spec.submodule_search_locations or ())
    tail = full.rpartition(".")[2]
    return tuple(str(place) for base in (sys.path if path is None else path) if (place := Path(base) / tail).is_dir())


@lru_cache(maxsize=4096)
def _find(full: str, path: tuple[str, ...] | None, _sys_path: tuple[str, ...]) -> ModuleSpec | None:
    loaded = sys.modules.get(full)
    if path is None and isinstance(loaded, ModuleType) and loaded.__spec__ is not None and loaded.__spec__.has_location:
        return loaded.__spec__ if _search(full, None) is not None else None
    return _search(full, path)


def _search(full: str, path: tuple[str, ...] | None) -> ModuleSpec | None:
    """What the interpreter's own finders would find, those of editable installs included."""
    places = None if path is None else list(path)
    found = (finder.find_spec(full, places) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in found if spec is not None), None)


def _is_ours(path: Path) -> bool:
    """Whether it is part of this distribution, which is installed on every node, also when it runs from a checkout."""
    return any(path.is_relative_to(_our_root() / package) for package in OUR_PACKAGES)


@cache
def _our_root() -> Path:
    return Path(__file__).parents[2]


def _is_own(path: Path) -> bool:
    return "site-packages" not in path.parts and "dist-packages" not in path.parts and not _below_installed(path)


def _below_installed(path: Path) -> bool:
    return any(path.is_relative_to(prefix) for prefix in _installed_prefixes())


@cache
def _installed_prefixes() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    prefixes = {sysconfig.get_path(name) for name in names} | {site.getusersitepackages()}
    return tuple(Path(prefix) for prefix in prefixes if prefix)


def _with_parents(name: str) -> Iterator[str]:
    parent = name.rpartition(".")[0]
    while parent:
        yield parent
        parent = parent.rpartition(".")[0]


@lru_cache(maxsize=4096)
def _imports(name: str, text: str, package: bool) -> tuple[str, ...]:
    """Names that a module's text imports anywhere; a name after `from` may be a module too."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InvalidRequest(f"the function needs {name}, which is no Python: {error}") from None
    home = name if package else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, home)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names if base)]
    return tuple(n for n in names if n)


def _absolute(module: str, level: int, home: str) -> str:
    if not level:
        return module
    parts = home.split(".")
    kept = parts[: len(parts) - (level - 1)]
    return ".".join([*kept, module]) if module else ".".join(kept)
