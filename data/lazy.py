"""Exports that are loaded on first access, so that a package's light modules can be imported without the heavy ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, home_of: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a module-level `__getattr__` (PEP 562) that imports an exported name's module on first access.

    Args:
        home_of: for each exported name the module, inside the package, that defines it; `module:name` where it is
            defined under another name.
    """

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, defined = home_of[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), defined or name)

    return find
