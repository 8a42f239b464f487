"""Paths: those that users write, with `~` or as a name that may be a directory or a hub repository; bundled files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import KnobctlError

BUNDLED_ROOT = Path(__file__).resolve().parent / "bundled"  # the model and the datasets in the package

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def expand_home(path: str) -> str:
    """Returns `path` with a leading `~` or `~user` replaced by the home directory. A shell leaves it in `--out=~/x`."""
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise KnobctlError(f"{path}: there is no such home directory; a name that begins with ~ is written ./{path}.")
    return expanded


def is_hub_id(name: str) -> bool:
    """Tells whether a name has the form `owner/name` of a hub repository; a directory may have it too."""
    return _HUB_ID.fullmatch(name) is not None


def existing_directory(name: str, what: str, *, error: type[KnobctlError]) -> Path | None:
    """Returns the directory that `name` means, or None where it can only be a repository of the hub.

    A directory that exists is taken. Else `name` is a hub id if it has the form `owner/name` and nothing called `owner`
    exists here. Raises `error` for any other name: it is a mistyped path. `what` says what the directory should hold.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise error(f"{name} is a file: name the directory with {what}.")
    if not is_hub_id(name):
        raise error(f"there is no directory {name} with {what}, and it is no hub id (owner/name): check the path.")
    owner = path.parts[0]
    if Path(owner).exists():
        raise error(
            f"there is no directory {name} with {what}: check the path. (It is not looked for on the hub, because "
            f"{owner} exists here.)"
        )
    return None
