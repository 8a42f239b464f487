"""`knobctl train` and `cross-validate`: controllers trained by replay from a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ..console import ConsoleProgress, emit, log
from ..replay.recipes import RECIPE_ONLY, TrainConfig, recipe
from ..replay.reward import RewardWeights
from .config_options import config_options
from .options import command_line, details_option, json_option, report_options
from .values import PATH, WholeNumbers

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SEEDS_NOTE = "A seed trained beside others may differ in the last digits from the same seed trained alone."
OWN_OPTIONS = {"recipe", "seeds", "reward_weights"}  # not generated from their fields


def training_options(without: frozenset[str] = frozenset()) -> Callable[[Decorated], Decorated]:
    """Returns a decorator that adds the recipe, the settings that may differ from it, and the weights of the reward."""

    def decorate(command: Decorated) -> Decorated:
        command = config_options(RewardWeights, defaults=False, prefix="reward_")(command)
        command = click.option(
            "--threads",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="CPU threads. More help only if other cores are idle.",
        )(command)
        command = config_options(TrainConfig, without=RECIPE_ONLY | OWN_OPTIONS | without, defaults=False)(command)
        return click.option(
            "--recipe",
            default="tuned",
            show_default=True,
            help="tuned, or classic: the original's values. Options without a default keep the recipe's value.",
        )(command)

    return decorate


def _train_config(options: dict[str, Any]) -> TrainConfig:
    """Returns the recipe with the settings that were given; removes the options of the reward from `options`."""
    weights = {item.name: options.pop(f"reward_{item.name}") for item in fields(RewardWeights)}
    given = {name: value for name, value in weights.items() if value is not None}
    return recipe(options.pop("recipe"), reward_weights=RewardWeights(**given) if given else None, **options)


@click.command()
@click.argument("cache", type=PATH)
@click.option("--out", type=PATH, required=True, help="Checkpoint directory to write; one per seed below it.")
@click.option("--seed", type=int, help="Seed; the same cache and seed give the same controllers.  [default: 42]")
@click.option("--seeds", type=WholeNumbers(), help=f"Several seeds, trained side by side: 0,1,2. {SEEDS_NOTE}")
@click.option("--resume", is_flag=True, help="Continue the run in --out with the result of an uninterrupted run.")
@training_options()
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard (pip install 'knobctl[logging]').")
@click.option("--wandb-project", help="Also log to this Weights & Biases project (knobctl[logging]).")
@click.option("--trackio-project", help="Also log to this Trackio project, in local files (knobctl[logging]).")
@json_option
def train(
    cache: Path,
    out: Path,
    seed: int | None,
    seeds: tuple[int, ...] | None,
    resume: bool,
    tensorboard: bool,
    wandb_project: str | None,
    trackio_project: str | None,
    threads: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train Stage1 and Stage2 with GRPO, by replay from CACHE.

    \b
    knobctl train runs/cache --out runs/controllers
    knobctl train runs/cache --out runs/exact --estimator exact --seeds 0,1,2
    """
    if seeds and seed is not None:
        raise click.UsageError("give --seed or --seeds, not both.")
    config = _train_config({**options, "seeds": seeds or (None if seed is None else (seed,))})
    from ..devices import num_threads
    from ..replay.training.train import train_controllers
    from .render import render_record

    with num_threads(threads):
        report = train_controllers(
            cache,
            out,
            config,
            resume=resume,
            tensorboard=tensorboard,
            wandb_project=wandb_project,
            trackio_project=trackio_project,
            progress=ConsoleProgress(),
        )
    emit(report.to_dict(), as_json, lambda record: render_record(str(out), record))


@click.command("cross-validate")
@click.argument("cache", type=PATH)
@click.option(
    "--folds", type=click.IntRange(2), default=5, show_default=True, help="Number of folds; each is tested once."
)
@click.option(
    "--fold-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the division into folds."
)
@click.option(
    "--seeds",
    type=WholeNumbers(),
    default="0,1,2",
    show_default=True,
    help=f"Seeds of the controllers trained on each fold. {SEEDS_NOTE}",
)
@report_options
@training_options(without=frozenset({"log_interval"}))  # it writes no log
@click.option(
    "--report",
    "page",
    type=PATH,
    help="Also write the page of `knobctl report` to this file (needs pip install 'knobctl[report]').",
)
@details_option
@json_option
def cross_validate(
    cache: Path,
    folds: int,
    fold_seed: int,
    budgets_ms: tuple[float, ...] | None,
    baselines: tuple[str, ...] | None,
    with_ablations: bool,
    resamples: int,
    seed: int,
    threads: int,
    page: Path | None,
    details: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on the other folds of CACHE and report on each fold: every sample is tested once, as unseen.

    A small held-out split may not distinguish policies; this tests on five times as many samples. Writes no
    controllers.

    knobctl cross-validate runs/cache --baseline table --baseline neighbours
    """
    config = _train_config(options)
    if page is not None:
        from ..replay.report.drawing.style import require_matplotlib

        require_matplotlib()  # before training
    from ..devices import num_threads
    from ..replay.report.summary import render_summary
    from ..replay.report.tables import render_report
    from ..replay.training.cross_validate import cross_validate as run

    with num_threads(threads):
        report = run(
            cache,
            config,
            folds=folds,
            fold_seed=fold_seed,
            budgets_ms=budgets_ms,
            baselines=baselines,
            with_ablations=with_ablations,
            resamples=resamples,
            seed=seed,
            progress=ConsoleProgress(),
        )
    if page is not None:
        from ..replay.report.page.write import write_report

        write_report(cache, out=page, report=report, made_by=command_line())
    emit(report.to_dict(), as_json, render_report if details else render_summary)
    if page is not None:
        log(f"page: {page} ({page.stat().st_size / 1e6:.2f} MB), to open in a browser")
