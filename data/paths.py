"""Paths: those that users write, with `~` or as a name that may be a directory or a hub repository; bundled files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import KnobctlError

BUNDLED_ROOT = Path(__file__).resolve().parent / "bundled"  # the model, the datasets and the cache in the package
BUNDLED_PREFIX = "bundled:"  # names of these files that hold wherever the package is installed

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def expand_home(path: str) -> str:
    """Returns `path` with a leading `~` or `~user` expanded, which a shell does not do in `--out=~/x`.

    Raises KnobctlError when there is no such home directory.
    """
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise KnobctlError(
            f"{path}: there is no such home directory; for a file whose name begins with ~, write ./{path}."
        )
    return expanded


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name` of a hub repository; a directory may have it too."""
    return _HUB_ID.fullmatch(name) is not None


def existing_directory(name: str, what: str, *, error: type[KnobctlError]) -> Path | None:
    """Returns the directory called `name`, or None when `name` can only be a repository of the hub.

    An existing directory takes precedence. Otherwise `name` is a hub id if it has the form `owner/name` and no file or
    directory called `owner` exists.

    Args:
        name: A path or a hub id.
        what: What the directory should hold, for messages.
        error: What to raise for any other name, which is a mistyped path.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise error(f"{name} is a file: give the directory with {what}.")
    if not is_hub_id(name):
        raise error(f"there is no directory {name} with {what}, and it is not a hub id (owner/name): check the path.")
    owner = path.parts[0]
    if Path(owner).exists():
        raise error(
            f"there is no directory {name} with {what}: check the path. (The hub is not searched, because {owner} "
            "exists here.)"
        )
    return None
