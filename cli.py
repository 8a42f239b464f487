"""The command `knobctl`. Each command is one function in `commands/`, loaded when it runs or shows its help."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from . import __version__
from .commands.options import COMMAND_LINE
from .console import ResultStream
from .data.errors import KnobctlError

# Command -> module in `commands/` that defines a function of the same name, with `_` for `-`.
COMMANDS = {
    "precompute": "precompute",
    "importance": "importance",
    "inspect": "caches",
    "rescore": "caches",
    "merge": "caches",
    "train": "training",
    "cross-validate": "training",
    "validate": "reports",
    "compare": "reports",
    "push": "sharing",
    "report": "report",
    "check-model": "models",
    "answer": "answer",
    "serve": "serve",
    "demo": "demo",
}


class KnobctlGroup(click.Group):
    """Prints errors that a user can fix as one line and exits with 1; malformed options exit with 2, as in click."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__package__}.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = list(args)  # parsing empties the list
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[COMMAND_LINE] = words
        return context

    def main(self, *args: Any, **extra: Any) -> Any:
        ResultStream.install()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KnobctlError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=KnobctlGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="knobctl")
def main() -> None:
    """Choose image crops, experts per token and transformer blocks for each question under a latency budget.

    \b
    knobctl precompute --model nano --dataset easy_vqa --samples 200 --out runs/cache --device cpu
    knobctl train runs/cache --out runs/controllers
    knobctl validate runs/controllers --cache runs/cache --live --device cpu
    knobctl answer runs/controllers --image photo.png --question "Is there a circle?" --task easy_vqa \\
      --budget-ms 24
    """


if __name__ == "__main__":  # `torchrun ... -m knobctl.cli precompute ...`
    main()
