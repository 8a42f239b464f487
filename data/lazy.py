"""Exports that cost nothing until they are used, so that a package's light modules can be imported alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, module_of: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a module-level `__getattr__` (PEP 562) that imports an exported name's module on first access.

    Args:
        module_of: the module, inside the package, that defines each exported name.
    """

    def find(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return find
