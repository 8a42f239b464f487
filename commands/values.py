"""Types of option values: paths, NAME=VALUE pairs, lists of numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..data.cache.shard import Shard
from ..data.paths import expand_home

Callback = Callable[[click.Context, click.Parameter, Any], Any]


class HomePath(click.Path):
    """A path. Expands `~`, which a shell leaves unchanged in `--out=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand_home(os.fspath(value)), param, ctx)


class HomeText(click.ParamType):
    """Text that may be a path: a model, controllers or, after the `=`, a dataset (NAME=PATH). Expands `~`."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        name, equals, path = value.partition("=")
        return f"{name}={expand_home(path)}" if equals and not name.startswith("~") else expand_home(value)


PATH = HomePath(path_type=Path)
PATH_OR_NAME = HomeText()


class SampleCounts(click.ParamType):
    """N for each dataset, or NAME=N for some of them: `200`, `easy_vqa=100,small_print=400`."""

    name = "N|NAME=N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # already converted
        if "=" not in value:
            return self._count(value, param, ctx)
        named = pairs("--samples", tuple(item.strip() for item in value.split(",")))
        return {name: self._count(number, param, ctx) for name, number in named.items()}

    def _count(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            self.fail(f"{text!r} is not a number of samples", param, ctx)
        return int(text)


class ShardValue(click.ParamType):
    """`i/n`. Raises CacheError, which exits with 1, for an index that is out of range."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        if isinstance(value, Shard):
            return value
        index, _, count = value.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            self.fail(f"{value!r} is not i/n, such as 0/4", param, ctx)
        return Shard(int(index), int(count))


class CommaSeparated(click.ParamType):
    """A comma-separated list, without its empty items."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        return self.parse([item.strip() for item in value.split(",") if item.strip()], value, param, ctx)

    def parse(
        self, items: list[str], text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...] | None:
        del text, param, ctx
        return tuple(items)


class Milliseconds(CommaSeparated):
    """Positive finite numbers of ms; None for an empty list."""

    def parse(
        self, items: list[str], text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | None:
        try:
            found = tuple(float(item) for item in items)
        except ValueError:
            self.fail(f"{text!r} is not a list of ms, such as 40,80", param, ctx)
        if not all(0 < number < math.inf for number in found):
            self.fail(f"{text!r}: each must be above 0 and finite", param, ctx)
        return found or None


class WholeNumbers(CommaSeparated):
    """Numbers without sign or fraction."""

    def parse(
        self, items: list[str], text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if not all(item.isascii() and item.isdecimal() for item in items):
            self.fail(f"{text!r} is not a list of whole numbers, such as 0,1,2", param, ctx)
        return tuple(int(item) for item in items)


def pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Returns NAME=VALUE options as a mapping."""
    found = {}
    for item in values:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def merged_pairs(kind: type) -> Callback:
    """Returns a callback that merges a repeated NAME=VALUE option into a mapping; `kind` is str, Path or int."""

    def merge(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
        found = pairs(param.opts[0], values)
        for name, value in found.items():
            if kind is int and not (value.isascii() and value.isdecimal() and int(value) > 0):
                raise click.BadParameter(f"{name}={value}: must be a whole number above 0", param_hint=param.opts[0])
        return {name: kind(value) for name, value in found.items()}

    return merge
