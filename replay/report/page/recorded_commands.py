"""The commands that make the numbers of a page again, from what the cache and the controllers record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from ....data.cache.manifest import RUN_NAME
from ....data.cache.reader import Cache
from ....data.cache.run_record import read_run
from ....data.datasets.registry import DATASETS
from ....data.errors import CacheError, KnobctlError
from ....data.files.json_fields import JsonFields
from ....data.knobs import KnobSpace
from ....data.paths import BUNDLED_PREFIX
from ...recipes import RECIPE_ONLY, RECIPES, TrainConfig
from ...reward import RewardWeights
from ..figures.source import ReportSource
from .provenance import controllers_of, shown_path

# Placeholders for files whose location is not recorded.
IMPORTANCE_FILE, DATASET_FILE = "IMPORTANCE_FILE", "DATASET_FILE"
NEW_CACHE = "runs/cache"
WITHOUT_OPTION = {
    "checks_per_tiling": 1,
    "importance_samples": 200,
}  # of a run: other values cannot be given as options


def commands(source: ReportSource, made_by: tuple[str, ...]) -> list[str]:
    """Returns the commands that make and check the cache, train the controllers and make the page, as far as known."""
    cache = shown_path(source.cache.source)
    trained = [
        _train_command(cache, shown_path(str(record["path"])), record.get("settings") or {})
        for record in controllers_of(source.report).values()
        if record.get("path") and record.get("trained_on_cache") == source.cache.fingerprint
    ]
    known = dict.fromkeys(command for command in trained if command)  # seeds of one run share its command
    # A cache of the package or of the hub is not written to.
    is_own = source.cache.source == str(source.cache.path)
    precompute = precompute_command(source.cache, cache if is_own else NEW_CACHE)
    return [*filter(None, [precompute]), shlex.join(["knobctl", "inspect", cache, "--verify"]), *known, *made_by]


def _train_command(cache: str, path: str, settings: Mapping[str, Any]) -> str | None:
    """Returns the command of a training run; None if its settings cannot be given as options."""
    names = {item.name for item in fields(TrainConfig)}
    try:
        config = TrainConfig.from_dict({name: value for name, value in settings.items() if name in names})
    except (KnobctlError, TypeError):
        return None
    recipe = RECIPES.get(config.recipe)
    if recipe is None:
        return None
    out = Path(path)
    seeds = ",".join(map(str, config.seeds))
    words = ["knobctl", "train", cache, "--out", str(out.parent if len(config.seeds) > 1 else out)]
    words += ["--recipe", config.recipe, *(["--seeds", seeds] if len(config.seeds) > 1 else ["--seed", seeds])]
    for item in fields(TrainConfig):
        value = getattr(config, item.name)
        if item.name in ("recipe", "seeds", "reward_weights") or value == getattr(recipe, item.name):
            continue
        if item.name in RECIPE_ONLY or value is None or value is False:
            return None
        option = f"--{item.name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    for weight in fields(RewardWeights):
        value = getattr(config.reward_weights, weight.name)
        if value != getattr(recipe.reward_weights, weight.name):
            words += [f"--reward-{weight.name}", str(value)]
    return shlex.join(words)


def precompute_command(cache: Cache, out: str) -> str | None:
    """Returns the command that made a cache.

    None if the cache does not record it, or if no single command makes it: imported or rescored results, one shard of
    a run, values that only Python can give.
    """
    manifest = cache.manifest
    try:
        recorded, shard = read_run(cache.path)
        run = JsonFields(recorded, str(cache.path / RUN_NAME), CacheError)
        request = run.fields("request")
        one_command = (
            shard.count == 1 and run.value("rescored", None) is None and request.value("results", None) is None
        )
        if not one_command or any(request.integer(name) != value for name, value in WITHOUT_OPTION.items()):
            return None
        datasets = _datasets(JsonFields({"datasets": manifest.datasets}, str(cache.path), CacheError), request)
        options = {
            "--model": [manifest.model_name],
            **_dataset_options(datasets),
            "--out": [out],
            "--seed": [str(request.integer("seed"))],
            "--device": [request.fields("device").text("type")],
            "--dtype": [request.fields("model").text("dtype")],
            **_knob_options(cache.space),
            "--budgets": [",".join(request.each("budgets", JsonFields.text))],
            "--latency-mode": [request.text("latency_mode")],
            "--runs": [str(request.integer("runs"))],
            "--importance": [] if request.value("importance", None) is None else [IMPORTANCE_FILE],
        }
    except CacheError:  # another program made the cache, and recorded other things or nothing
        return None
    words = [word for option, values in options.items() for value in values if value for word in (option, value)]
    return shlex.join(
        ["knobctl", "precompute", *words, *(["--skip-bad"] if any(one.skipped for one in datasets) else [])]
    )


class _Dataset(NamedTuple):
    """What a cache records about one dataset."""

    name: str
    source: str | None  # None: not recorded, as in a published cache
    images: str | None
    skipped: int  # rows left out
    samples: int
    style: str | None
    metric: str
    max_new_tokens: int
    columns: Mapping[str, Any]
    source_split: str | None

    @property
    def option(self) -> str:
        """The value of `--dataset`."""
        if self.source is None:
            return self.name if self.name in DATASETS else f"{self.name}={DATASET_FILE}"
        return self.name if self.source == f"{BUNDLED_PREFIX}{self.name}" else f"{self.name}={shown_path(self.source)}"

    @property
    def own_images(self) -> str | None:
        """The folder of its images, if that is neither inside the source nor the folder of a source that is a file."""
        if self.images is None or self.source is None:
            return None
        images, source = Path(self.images), Path(self.source)
        return None if images.is_relative_to(source) or images == source.parent else self.images


def _datasets(manifest: JsonFields, request: JsonFields) -> list[_Dataset]:
    """Reads the datasets: where they are from the manifest, what was asked for from the run's request."""
    recorded, requested = manifest.fields("datasets"), request.fields("datasets")
    found = []
    for name in request.record("datasets"):
        place, asked = recorded.fields(name), requested.fields(name)
        skipped = place.optional("skipped", JsonFields.fields)
        found.append(
            _Dataset(
                name,
                place.optional("source", JsonFields.text),
                place.optional("images", JsonFields.text),
                0 if skipped is None else skipped.integer("count", 0),
                asked.integer("samples"),
                asked.optional("style", JsonFields.text),
                asked.text("metric"),
                asked.integer("max_new_tokens"),
                asked.optional("columns", JsonFields.record) or {},
                asked.optional("source_split", JsonFields.text),
            )
        )
    return found


def _dataset_options(datasets: Sequence[_Dataset]) -> dict[str, list[str]]:
    """Returns the options that depend on the datasets, each with its values, without those that are a default."""
    options: dict[str, list[str]] = {
        "--dataset": [one.option for one in datasets],
        "--samples": [",".join(f"{one.name}={one.samples}" for one in datasets)],
        "--prompt": [],
        "--metric": [],
        "--max-new-tokens": [],
        "--column": [f"{one.name}.{field}={column}" for one in datasets for field, column in one.columns.items()],
        "--source-split": [],
        "--images": _images_option(datasets),
    }
    for one in datasets:
        spec = DATASETS.get(one.name)
        if spec is None or one.style != spec.style:
            options["--prompt"].append(f"{one.name}={one.style or ''}")
        if spec is None or one.metric != spec.metric:
            options["--metric"].append(f"{one.name}={one.metric}")
        if spec is None or one.max_new_tokens != spec.max_new_tokens:
            options["--max-new-tokens"].append(f"{one.name}={one.max_new_tokens}")
        if one.source_split is not None and (spec is None or one.source_split != spec.source_split):
            options["--source-split"].append(f"{one.name}={one.source_split}")
    return options


def _images_option(datasets: Sequence[_Dataset]) -> list[str]:
    """Returns the folder of all images, if it has to be named. Raises CacheError if the datasets' folders differ."""
    folders = {one.images for one in datasets if one.images is not None}
    if not any(one.own_images for one in datasets):
        return []
    if len(folders) > 1:
        raise CacheError("the option --images names one folder for all datasets")
    return [shown_path(folder) for folder in folders]


def _knob_options(space: KnobSpace) -> dict[str, list[str]]:
    """Returns the options of a knob space that is not the default one."""
    if space == KnobSpace():
        return {}
    ranges = space.tier_ranges or ()
    tiers = [f"{tier}={low}-{high}" for tier, (low, high) in zip(space.tiers, ranges, strict=False)]
    return {
        option: [",".join(map(str, values))]
        for option, values in (
            ("--tiers", tiers or space.tiers),
            ("--positions", space.insertion_positions),
            ("--top-k", space.top_k),
            ("--num-blocks", space.num_blocks),
        )
    }
