"""What runs where packed code arrives: makes the customer's own modules importable, then loads what refers to them.

Packed code names `load` as its own loader, so a node needs to know nothing of bundles. The modules travel as source
and are imported only when something asks for them. Runs in the sandbox child and nowhere else.
"""

import linecache
import pickle
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

Source = tuple[str, str, bool]
"""Where the module's file was, its text, whether it is a package."""


def load(modules: Mapping[str, Source], pickled: bytes, buffers: Sequence[Any] = ()) -> Any:
    """Unpickle after the modules have been made importable; a module sent before with another text is replaced."""
    _FINDER.add(modules)
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - the customer's own code, in the customer's own child


class _Finder(MetaPathFinder, InspectLoader):
    """Imports modules from what was sent, before any that may be installed here under the same name."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}

    def add(self, modules: Mapping[str, Source]) -> None:
        changed = [name for name, source in modules.items() if self._sources.get(name) != tuple(source)]
        for name in changed:
            self._sources[name] = (modules[name][0], modules[name][1], modules[name][2])
        for loaded in list(sys.modules):
            if any(loaded == name or loaded.startswith(f"{name}.") for name in changed):
                del sys.modules[loaded]
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname not in self._sources:
            return None
        origin, _, package = self._sources[fullname]
        spec = ModuleSpec(fullname, self, origin=origin, is_package=package)
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname][1]

    def is_package(self, fullname: str) -> bool:
        return self._sources[fullname][2]

    def get_code(self, fullname: str) -> CodeType:
        origin, text, _ = self._sources[fullname]
        linecache.cache[origin] = (len(text), None, text.splitlines(keepends=True), origin)
        return self.source_to_code(text, origin)


_FINDER = _Finder()
