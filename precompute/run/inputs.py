"""The model and the samples of a run."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

from ...controllers.budget_encoder import BudgetEncoder
from ...data.datasets.registry import DATASETS
from ...data.datasets.sample_set import SampleSet, load_samples
from ...data.errors import DatasetError, KnobctlError
from ...data.progress import SILENT, Progress
from ...data.samples import Sample
from ...data.tasks import Task
from ..execution.knob_model import KnobModel, check_input
from ..models.loading import LoadedModel, load_model
from .config import PrecomputeConfig


@dataclass(frozen=True)
class Inputs:
    """The model with its knobs, and all samples of the run."""

    knobs: KnobModel  # without importance scores and budgets, which `fixed.py` adds
    sets: tuple[SampleSet, ...]

    @property
    def loaded(self) -> LoadedModel:
        return self.knobs.loaded

    @cached_property
    def samples(self) -> list[Sample]:
        """All samples, sorted by id."""
        return samples_of_sets(self.sets)

    def share(self, config: PrecomputeConfig) -> list[Sample]:
        """Returns the samples of the config's shard, in the order in which they are run."""
        return self.samples[config.shard.index :: config.shard.count]


def load_inputs(config: PrecomputeConfig, progress: Progress = SILENT, knobs: KnobModel | None = None) -> Inputs:
    """Loads the model, unless it is given, and the samples, and checks that they and the knob space fit together.

    Images are decoded and prompts checked once per run: the first shard does so for all, and other shards only read
    their own images. They check all if the draw depends on which are bad (`skip_bad`), or if they are on the hub,
    from where the check fetches them together.

    Raises:
        KnobctlError: a name, a file or a value is wrong.
    """
    knobs = knobs or load_knobs(config, progress)
    sets, unread = [], set()
    for name, source in config.dataset_sources.items():
        is_checked = config.shard.index == 0 or config.skip_bad or _is_remote(config, name, source)
        if not is_checked:
            unread.add(name)
        one = load_samples(
            name,
            root=config.data_root,
            source=source,
            images=config.images,
            source_split=config.source_split_of(name),
            columns=config.columns_of(name),
            limit=config.samples_of(name),
            seed=config.seed,
            metric=config.metrics.get(name),
            max_new_tokens=config.max_new_tokens.get(name, knobs.model.default_max_new_tokens),
            style=knobs.model.default_instruction if (own := config.instruction_of(name)) is None else own,
            skip_bad=config.skip_bad,
            check_images=is_checked,
            check_input=partial(check_input, knobs.model, knobs.space),
        )
        for warning in one.warnings:
            progress.note(f"{name}: {warning}")
        sets.append(one)
    inputs = with_sets(knobs, tuple(sets))
    for first, second in pairwise(inputs.samples):
        if first.sample_id == second.sample_id:
            raise DatasetError(f"sample {first.sample_id} occurs twice: leave out one of its sources.")
    check_shares(len(inputs.samples), config.shard.count)
    _read_images([sample for sample in inputs.share(config) if sample.dataset in unread])
    return inputs


def _is_remote(config: PrecomputeConfig, name: str, source: str | None) -> bool:
    """Returns whether a dataset is read from the hub or another URL."""
    if source is not None:
        return "://" in source
    spec = DATASETS.get(name)
    return config.data_root is None and spec is not None and not spec.bundled


def load_knobs(config: PrecomputeConfig, progress: Progress = SILENT) -> KnobModel:
    """Loads the model, with the knob space and the budget encoder that the run's seed determines."""
    loaded = load_model(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, progress=progress
    )
    space = config.space_for(loaded.model.default_knobs())
    return KnobModel(loaded, space=space, encoder=BudgetEncoder.from_seed(loaded.model.geometry.d_model, config.seed))


def with_sets(knobs: KnobModel, sets: tuple[SampleSet, ...]) -> Inputs:
    """Returns the inputs of a model and its samples; the model's tasks are those of the sets."""
    knobs.tasks = {one.name: Task(one.metric, one.max_new_tokens, one.style) for one in sets}
    return Inputs(knobs, sets)


def samples_of_sets(sets: tuple[SampleSet, ...]) -> list[Sample]:
    """Returns all samples, sorted by id: the order of work, however the samples are divided."""
    return sorted((sample for one in sets for sample in one.samples), key=lambda sample: sample.sample_id)


def check_shares(samples: int, count: int) -> None:
    """Raises KnobctlError if a shard would have no sample: a cache without rows cannot be merged."""
    if count > samples:
        raise KnobctlError(f"{samples} samples cannot be divided among {count} shards or ranks: use fewer.")


def dtype_name(loaded: LoadedModel) -> str:
    """Returns the name of the model's dtype, such as `float32`."""
    return str(loaded.model.dtype).removeprefix("torch.")


def _read_images(samples: list[Sample]) -> None:
    """Reads every image once, so that a missing file is reported now and not in the middle of the run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda sample: len(sample.image.read_bytes()), samples):
            pass
