"""The command line: arguments in, one call, a report out. Heavy imports live inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import __version__
from .cli_options import (
    SEEDS_NOTE,
    ConsoleProgress,
    KnobctlGroup,
    dataset_options,
    emit,
    json_option,
    live_options,
    log,
    model_options,
    moved_dataset_option,
    progress,
    report_arguments,
    report_options,
    split_option,
    training_config,
    training_options,
)
from .cli_values import PATH, PATH_OR_NAME, numbers, pairs, shard, token_limits, whole_numbers
from .data.errors import KnobctlError


@click.group(cls=KnobctlGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="knobctl")
def main() -> None:
    """Choose image crops, experts per token and transformer blocks for each question under a latency budget.

    \b
    knobctl precompute --model nano --dataset easy_vqa --samples 200 --out runs/cache --device cpu
    knobctl train runs/cache --out runs/controllers
    knobctl validate runs/controllers --cache runs/cache --live --device cpu
    """


@main.command()
@click.option("--model", type=PATH_OR_NAME, help="`nano`, a checkpoint directory, or a hub id.")
@dataset_options
@click.option("--out", type=PATH, required=True, help="Directory of the cache; the same command goes on in it.")
@click.option("--from-results", type=PATH, help="Directory of recorded results, one JSON file per configuration.")
@click.option("--complete", is_flag=True, help="With --from-results and --model: run the settings the results lack.")
@click.option(
    "--latency",
    type=click.Choice(["measured", "imported"]),
    default="measured",
    help="With --from-results: whose times.",
)
@click.option("--strict", is_flag=True, help="With --from-results: any error in the files is fatal.")
@click.option("--latency-mode", default="blockwise", show_default=True, help="blockwise, or end_to_end (slow).")
@click.option("--runs", default=5, show_default=True, help="Timed runs of each latency.")
@click.option("--budgets", default="", help="ms, or shares of the full setting: 40,80,0.5x  [default: a grid of 16]")
@click.option("--importance", type=PATH, help="Importance scores of any known layout.  [default: measured]")
@click.option("--tiers", default="", help="low,medium,high or NAME=MIN-MAX crops.")
@click.option("--positions", default="", help="Insertion positions.  [default: 1,2,3,4,5]")
@click.option("--top-k", default="", help="Experts per token.  [default: 4,5,6,7,8]")
@click.option("--num-blocks", default="", help="Blocks run in all.  [default: 12,13,14,15,16]")
@click.option("--shard", default="0/1", show_default=True, help="i/n: this share of the samples; join with merge.")
@click.option("--like", type=PATH, help="Directory of shard 0, which the others take budgets and scores from.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the answer sweep.  [default: 1]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work.")
@click.option("--dry-run", is_flag=True, help="Time a few samples and say what the run will take; writes nothing.")
@model_options
@json_option
def precompute(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Run the frozen model once under every knob setting, into a cache.

    \b
    knobctl precompute --model nano --dataset easy_vqa --samples 100 --out runs/cache --device cpu
    knobctl precompute --from-results results/5run_2000samples --out runs/imported
    """
    if options["model"] is None:
        _import_results(as_json, dry_run, options)
        return
    config = _precompute_config(options)
    from .data.render import render_sections

    if dry_run:
        from .precompute.run.forecast import forecast

        emit(forecast(config), as_json, lambda record: render_sections("forecast", record))
        return
    from .precompute.scale.launch import precompute as run

    emit(run(config), as_json, lambda record: render_sections("cache", record))


def _precompute_config(options: dict[str, Any]) -> Any:
    from .data.knobs import KnobSpace
    from .precompute.run.config import PrecomputeConfig

    same = {"model", "datasets", "out", "samples", "revision", "device", "dtype", "seed", "latency_mode", "runs"}
    same |= {"importance", "data_root", "images", "skip_bad", "column", "source_split", "like", "threads", "workers"}
    same |= {"from_results", "complete", "strict"}
    return PrecomputeConfig(
        **{name: options[name] for name in sorted(same)},
        space=KnobSpace.from_options(options["tiers"], options["positions"], options["top_k"], options["num_blocks"]),
        budgets=tuple(item.strip() for item in options["budgets"].split(",") if item.strip()),
        metrics=pairs("--metric", options["metric"]),
        max_new_tokens=token_limits(options["max_new_tokens"]),
        shard=shard(options["shard"]),
        imported_latency=options["latency"] == "imported",
    )


def _import_results(as_json: bool, dry_run: bool, options: dict[str, Any]) -> None:
    if options["from_results"] is None:
        raise click.UsageError("name the model with --model (for instance nano), or results with --from-results.")
    if dry_run or options["complete"]:
        raise click.UsageError("--dry-run and --complete run the model: name it with --model.")
    without_effect = {"samples": None, "budgets": "", "shard": "0/1", "like": None, "threads": None, "workers": 1}
    for name, default in {**without_effect, "column": (), "source_split": ()}.items():
        if options[name] != default:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is about running the model: name it with --model, or leave it out."
            )
    from .data.importer import import_results
    from .data.render import render_import_report

    report = import_results(
        options["from_results"],
        options["out"],
        datasets=options["datasets"],
        strict=options["strict"],
        metric=pairs("--metric", options["metric"]),
        seed=options["seed"],
        progress=ConsoleProgress(),
    )
    emit(report.to_dict(), as_json, render_import_report)


@main.group()
def importance() -> None:
    """Importance scores: accuracy lost when one block is left out."""


@importance.command("measure")
@click.option("--model", type=PATH_OR_NAME, required=True, help="`nano`, a checkpoint directory, or a hub id.")
@dataset_options
@click.option("--out", type=PATH, required=True, help="JSON file to write, for `precompute --importance`.")
@model_options
@json_option
def importance_measure(as_json: bool, out: Path, **options: Any) -> None:
    """Measure the scores: 5 runs over disjoint subsets of the training split, middle tier, native top-k.

    knobctl importance measure --model nano --dataset easy_vqa --samples 300 --out runs/importance.json --device cpu
    """
    from .data.render import render_importance
    from .precompute.run.config import PrecomputeConfig
    from .precompute.run.importance_run import run_importance

    options["max_new_tokens"] = token_limits(options["max_new_tokens"])
    options["metrics"] = pairs("--metric", options.pop("metric"))
    emit(run_importance(PrecomputeConfig(out=out, **options), out), as_json, render_importance)


@importance.command("import")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="JSON file to write, for `precompute --importance`.")
@click.option("--method", help="Which of several methods in one file.")
@click.option("--reverse", is_flag=True, help="The file is upside down (median_rank): turn every sign.")
@click.option("--blocks", default=16, show_default=True, help="Blocks of the model.")
@json_option
def importance_import(
    files: tuple[Path, ...], out: Path, method: str | None, reverse: bool, blocks: int, as_json: bool
) -> None:
    """Read scores of another program, any layout, or the sensitivity_block_<i>.json files of one run.

    knobctl importance import merged.json --out runs/importance.json
    """
    from .data.importer import import_importance, save_importance
    from .data.render import render_importance

    scores = import_importance(files, method=method, reverse=reverse, n_blocks=blocks)
    save_importance(scores, out)
    emit(scores.to_dict(), as_json, render_importance)
    log(f"written to {out}")


@main.command()
@click.argument("cache", type=PATH)
@click.option("--verify", is_flag=True, help="Read every byte and compare it with the recorded digests.")
@json_option
def inspect(cache: Path, verify: bool, as_json: bool) -> None:
    """Show what CACHE holds: shape, provenance, knobs, accuracy and latency by knob, completeness.

    knobctl inspect runs/cache --verify
    """
    from .data.cache import describe_cache, verify_cache
    from .data.render import render_cache

    if verify:
        problems = verify_cache(cache)
        if problems:
            raise KnobctlError("\n".join(str(problem) for problem in problems))
        log(f"{cache}: every file is as it was written")
    emit(describe_cache(cache), as_json, render_cache)


@main.command()
@click.argument("cache", type=PATH)
@click.option("--metric", "metrics", multiple=True, required=True, metavar="[DATASET=]METRIC", help="The new metric.")
@click.option("--out", type=PATH, required=True, help="Directory of the new cache; the old one is not changed.")
@json_option
def rescore(cache: Path, metrics: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Recompute accuracy from stored answers, without the model.

    knobctl rescore runs/cache --metric vqa_simple --out runs/rescored
    """
    from .data.render import render_sections
    from .data.rescore import metrics_from_options
    from .data.rescore import rescore as run

    report = run(cache, metrics_from_options(metrics), out)
    for warning in report.warnings:
        log(warning)
    emit(report.to_dict(), as_json, lambda record: render_sections("rescored", record["datasets"]))


@main.command()
@click.argument("shards", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, required=True, help="Directory of the merged cache.")
@json_option
def merge(shards: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Join the SHARDS of one run into one cache.

    knobctl merge runs/shard-0 runs/shard-1 --out runs/cache
    """
    from .data.cache import describe_cache, merge_caches
    from .data.render import render_cache

    merge_caches(shards, out)
    emit(describe_cache(out), as_json, render_cache)


@main.command()
@click.argument("cache", type=PATH)
@click.option("--out", type=PATH, required=True, help="Checkpoint directory to write; one per seed below it.")
@click.option("--seed", type=int, help="Same cache and seed, same controllers.  [default: 42]")
@click.option("--seeds", default="", help=f"Several seeds, trained side by side: 0,1,2. {SEEDS_NOTE}")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, as if it had never been stopped.")
@training_options
@click.option("--log-interval", type=int, help="Steps between lines of the log.")
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard (pip install 'knobctl[logging]').")
@click.option("--wandb-project", help="Also log to this Weights & Biases project (knobctl[logging]).")
@json_option
def train(cache: Path, out: Path, threads: int, as_json: bool, **options: Any) -> None:
    """Train Stage1 and Stage2 with GRPO, by replay from CACHE.

    \b
    knobctl train runs/cache --out runs/controllers
    knobctl train runs/cache --out runs/exact --estimator exact --seeds 0,1,2
    """
    from .data.render import render_sections
    from .devices import num_threads
    from .replay.training.train import train_controllers

    seeds, seed = whole_numbers("--seeds", options["seeds"]), options["seed"]
    if seeds and seed is not None:
        raise click.UsageError("give --seed or --seeds, not both.")
    how = {name: options[name] for name in ("resume", "tensorboard", "wandb_project")}
    config = training_config(seeds or (None if seed is None else (seed,)), options)
    with num_threads(threads):
        report = train_controllers(cache, out, config, **how, progress=ConsoleProgress())
    emit(report.to_dict(), as_json, lambda record: render_sections(str(out), record))


@main.command()
@click.argument("controllers", type=PATH_OR_NAME)
@click.option("--cache", type=PATH, required=True, help="The cache to report on.")
@split_option
@report_options
@click.option("--guard", is_flag=True, help="Replace choices that should miss the budget; shown beside the plain ones.")
@click.option("--choices", type=PATH, help="Write every decision there, as Parquet.")
@live_options
@moved_dataset_option
@model_options
@json_option
def validate(controllers: str, cache: Path, as_json: bool, live: bool, **options: Any) -> None:
    """Report what CONTROLLERS are worth on a held-out split, beside baselines and the oracle.

    \b
    knobctl validate runs/controllers --cache runs/cache
    knobctl validate runs/controllers --cache runs/cache --live --device cpu
    """
    from .replay.evaluation.validate import validate_controllers
    from .replay.report.tables import render_report

    factory = None
    if live:
        from .devices import find_device
        from .precompute.run.live_from_cache import live_factory

        find_device(options["device"])  # before anything long is done
        names = ("model", "revision", "device", "dtype", "images", "sources", "runs")
        factory = live_factory(cache, **{name: options[name] for name in names})
    with progress("live") as advance:
        report = validate_controllers(
            controllers,
            cache,
            split=options["split"],
            guard=options["guard"],
            choices_out=options["choices"],
            **report_arguments(options),
            executor_factory=factory,
            live_samples=options["live_samples"],
            live_budgets_ms=numbers("--live-budgets", options["live_budgets"]),
            progress=advance,
        )
    emit(report.to_dict(), as_json, render_report)


@main.command()
@click.argument("cache", type=PATH)
@click.argument("controllers", nargs=-1, type=PATH_OR_NAME)
@split_option
@report_options
@json_option
def compare(cache: Path, controllers: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Put CONTROLLERS... and the baselines side by side on CACHE, with paired intervals.

    knobctl compare runs/cache runs/controllers runs/classic
    """
    from .replay.evaluation.compare import compare as run
    from .replay.report.tables import render_report

    report = run(cache, controllers, split=options["split"], **report_arguments(options))
    emit(report.to_dict(), as_json, render_report)


@main.command("cross-validate")
@click.argument("cache", type=PATH)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Each is tested once.")
@click.option("--fold-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the division into folds.")
@click.option("--seeds", default="0,1,2", show_default=True, help=f"Controllers of each fold. {SEEDS_NOTE}")
@report_options
@training_options
@json_option
def cross_validate(cache: Path, seeds: str, threads: int, as_json: bool, **options: Any) -> None:
    """Train on every fold's other images and report on all samples of CACHE, each tested by what has not seen it.

    A small held-out split may not tell policies apart; this tests on five times as many. It writes no controllers.

    knobctl cross-validate runs/cache --baseline table --baseline neighbours
    """
    from .devices import num_threads
    from .replay.report.tables import render_report
    from .replay.training.cross_validate import cross_validate as run

    config = training_config(whole_numbers("--seeds", seeds), options)
    with num_threads(threads):
        report = run(
            cache,
            config,
            folds=options["folds"],
            fold_seed=options["fold_seed"],
            **report_arguments(options),
            progress=ConsoleProgress(),
        )
    emit(report.to_dict(), as_json, render_report)


@main.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Directory of all that is made.")
@click.option("--samples", type=click.IntRange(20), default=130, show_default=True, help="Samples of each dataset.")
@click.option("--seed", default=42, show_default=True, help="Of everything that is drawn.")
@json_option
def demo(out: Path, samples: int, seed: int, as_json: bool) -> None:
    """Run the whole path on the bundled model, on the CPU: precompute, train, validate --live.

    knobctl demo --samples 50 --out runs/small-demo
    """
    from .data.render import render_record
    from .demo import run_demo
    from .replay.report.tables import render_report

    with progress("live") as advance:
        record = run_demo(out, samples=samples, seed=seed, log=log, progress=advance)
    emit(record, as_json, render_report)
    if not as_json:
        emit(record, False, lambda found: render_record("files", {**found["files"], "report": out / "report.json"}))
        emit(record, False, lambda found: render_record("seconds", found["seconds"]))


if __name__ == "__main__":  # `torchrun ... -m knobctl.cli precompute ...`
    main()
