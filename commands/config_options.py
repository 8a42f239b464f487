"""Options generated from the fields of a config dataclass, so that each setting is described in one place.

A field becomes an option when its metadata has `help`. The parameter has the field's name, so a command can build
`Config(**options)`. The annotation gives the type: bool is a flag, a tuple or a mapping an option that may be repeated.
Further metadata:

    option   name of the option where it differs from the field's
    metavar  how the help text writes the option's value
    choices  valid values, or a mapping from what the user types to the field's value
    without value  value of an option that is given without one
    type     key of `NAMED_TYPES`, where the annotation alone does not determine how text is parsed
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from ..data.cache.shard import Shard
from .values import PATH, PATH_OR_NAME, CommaSeparated, SampleCounts, ShardValue, merged_pairs

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

NAMED_TYPES: dict[str, click.ParamType] = {
    "path or name": PATH_OR_NAME,
    "list": CommaSeparated(),
    "count": click.IntRange(1),
}
TYPES: dict[tuple[Any, ...], click.ParamType] = {
    (str,): click.STRING,
    (int,): click.INT,
    (float,): click.FLOAT,
    (Path,): PATH,
    (Shard,): ShardValue(),
    (int, Mapping[str, int]): SampleCounts(),
}


def config_options(
    config: type,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    optional: Collection[str] = (),
    defaults: bool = True,
    prefix: str = "",
) -> Callable[[Decorated], Decorated]:
    """Returns a decorator that adds the options of a config's fields to a command, in the order of the fields.

    Args:
        only: names of the fields to offer; None offers every field that has a help text.
        without: names of fields that this command does not offer.
        optional: names of fields without a default that the user may leave out; the command checks them.
        defaults: False leaves an option that is not given at None, for configs that start from a recipe.
        prefix: begins the name of every option and parameter, as in `reward_` for `--reward-alpha`.
    """
    hints = get_type_hints(config)
    offered = [item for item in fields(config) if "help" in item.metadata and item.name not in without]
    chosen = [item for item in offered if only is None or item.name in only]
    decorators = [_option(item, hints[item.name], item.name not in optional, defaults, prefix) for item in chosen]

    def decorate(command: Decorated) -> Decorated:
        for add in reversed(decorators):
            command = add(command)
        return command

    return decorate


def default_of(item: Field[Any]) -> Any:
    """Returns a field's default; MISSING if it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def _option(
    item: Field[Any], hint: Any, required: bool, defaults: bool, prefix: str
) -> Callable[[Decorated], Decorated]:
    kinds = tuple(kind for kind in _members(hint) if kind is not NoneType)
    metadata, origin = item.metadata, get_origin(kinds[0])
    default = default_of(item) if defaults else None
    found: dict[str, Any] = {"help": metadata["help"], "metavar": metadata.get("metavar")}
    if "without value" in metadata:
        found |= {"is_flag": False, "flag_value": metadata["without value"]}
    choices = metadata.get("choices")
    if isinstance(choices, Mapping):
        found |= {"type": click.Choice(list(choices)), "callback": lambda _ctx, _param, value: choices.get(value)}
        default = next((typed for typed, value in choices.items() if value == default), None)
    elif choices is not None:
        found["type"] = click.Choice(choices)
    elif kinds == (bool,):
        found["is_flag"] = True
    elif origin is Mapping and len(kinds) == 1:
        found |= {"multiple": True, "callback": merged_pairs(get_args(kinds[0])[1])}
        default = None
    elif "type" in metadata:
        found["type"] = NAMED_TYPES[metadata["type"]]
        found["multiple"] = origin is tuple and metadata["type"] != "list"
    elif origin is tuple:
        found |= {"type": TYPES[(get_args(kinds[0])[0],)], "multiple": True}
    else:
        found["type"] = TYPES[kinds]
    if default is MISSING:
        found["required"] = required and not found.get("multiple")
    else:
        found |= {"default": default, "show_default": default not in (None, (), False, "")}
    name = prefix + metadata.get("option", item.name)
    return click.option("--" + name.replace("_", "-"), prefix + item.name, **found)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
