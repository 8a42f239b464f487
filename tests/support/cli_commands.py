"""Every command of the command line, including those inside groups."""

from __future__ import annotations

from collections.abc import Iterator

import click

from knobctl.cli import main


def every_command() -> dict[tuple[str, ...], click.Command]:
    """Returns commands and groups by the words that name them: `("importance", "measure")`."""
    return dict(_commands(main, ()))


def _commands(group: click.Group, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))
