"""Values of command-line options: paths, NAME=VALUE pairs, lists of numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from .data.paths import expand_home


class HomePath(click.Path):
    """A path, with `~` expanded: a shell leaves it as it is in `--out=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand_home(os.fspath(value)), param, ctx)


class HomeText(click.ParamType):
    """A path among other things: a model, controllers or, after the `=`, a dataset (NAME=PATH). `~` is expanded."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        name, equals, path = value.partition("=")
        return f"{name}={expand_home(path)}" if equals and not name.startswith("~") else expand_home(value)


PATH = HomePath(path_type=Path)
PATH_OR_NAME = HomeText()


class SampleCounts(click.ParamType):
    """N, for each dataset, or NAME=N for some of them: `200`, `easy_vqa=100,small_print=400`."""

    name = "N|NAME=N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # converted before
        if "=" not in value:
            return self._count(value, param, ctx)
        named = pairs("--samples", tuple(item.strip() for item in value.split(",")))
        return {name: self._count(number, param, ctx) for name, number in named.items()}

    def _count(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            self.fail(f"{text!r} is not a number of samples", param, ctx)
        return int(text)


def pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Returns NAME=VALUE options as a mapping."""
    found = {}
    for item in values:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def numbers(option: str, text: str) -> list[float] | None:
    try:
        found = [float(item) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of ms, such as 40,80", param_hint=option) from error
    if not all(0 < number < math.inf for number in found):
        raise click.BadParameter(f"{text!r}: each must be above 0 and finite", param_hint=option)
    return found or None


def shard(option: str) -> Any:
    from .data.cache.run_record import Shard

    index, _, count = option.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"{option!r} is not i/n, such as 0/4", param_hint="--shard")
    return Shard(int(index), int(count))


def token_limits(values: tuple[str, ...]) -> dict[str, int]:
    limits = pairs("--max-new-tokens", values)
    for name, limit in limits.items():
        if not (limit.isdecimal() and int(limit) > 0):
            raise click.BadParameter(f"{name}={limit}: not a number of tokens", param_hint="--max-new-tokens")
    return {name: int(limit) for name, limit in limits.items()}


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Returns a comma-separated option as whole numbers."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not all(item.isascii() and item.isdecimal() for item in items):
        raise click.BadParameter(f"{text!r} is not a list of whole numbers, such as 0,1,2", param_hint=option)
    return tuple(int(item) for item in items)
