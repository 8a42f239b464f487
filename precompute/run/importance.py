"""Importance scores: the accuracy lost when one block is left out, for every block; and `knobctl importance measure`.

Measured on training samples in the middle tier with the native top-k: mean and standard deviation over disjoint
subsets. The plans (the whole model, and the model without one block) go through the same tree as those of the sweep.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import ImportanceError
from ...data.importer import load_importance, save_importance
from ...data.metrics import Scorer
from ...data.plans import BlockPlan, ImportanceScores
from ...data.progress import SILENT, Progress
from ...data.samples import Sample
from ...devices import num_threads
from ..execution.answer_sweep import sweep_answers
from ..execution.batch_limit import BatchLimit
from ..execution.knob_model import KnobModel, check_importance
from ..execution.plan_tree import PlanTree
from .config import PrecomputeConfig
from .inputs import Inputs, dtype_name, load_inputs

DEFAULT_RUNS = 5


def run_importance(config: PrecomputeConfig, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Measures every block's importance as `precompute` would, and writes `out`, which `--importance` reads.

    Scores that an earlier run kept beside the model for the same samples are reused.

    Args:
        config: model, datasets, samples, seed, device and knob space are used; `config.out` is not touched.

    Returns:
        JSON-able: path, model, scores, std, runs and source, and the blocks from the least important.
    """
    inputs = load_inputs(config, progress)
    scores = find_importance(config, inputs, progress)
    save_importance(scores, out)
    ranked = sorted((score, block) for block, score in enumerate(scores.scores) if score is not None)
    return {
        "out": str(out),
        "model": inputs.loaded.name,
        **scores.to_dict(),
        "least_first": [block for _, block in ranked],
    }


def find_importance(config: PrecomputeConfig, inputs: Inputs, progress: Progress = SILENT) -> ImportanceScores:
    """Returns the scores of the file named by `--importance`, those kept beside the model, or newly measured ones.

    Raises:
        ImportanceError: a file's scores were measured on another model, or there are too few training samples.
    """
    scores = importance_before(config, inputs)
    if scores is not None:
        return scores
    drawn = importance_samples(config, inputs)
    with progress.steps("importance", len(drawn)) as advance:
        scores = measure_importance(inputs.knobs, drawn, threads=config.sweep_threads, on_sample=advance)
    kept = _kept_path(inputs, drawn)
    if kept is not None:
        try:
            save_importance(scores, kept)
        except ImportanceError as error:
            progress.note(f"the next run measures the importance scores again: {error}")
    return scores


def importance_before(config: PrecomputeConfig, inputs: Inputs) -> ImportanceScores | None:
    """Returns the scores of the file named by `--importance` or those kept beside the model; else None."""
    if config.importance is not None:
        scores = load_importance(config.importance, n_blocks=inputs.knobs.num_blocks)
        check_importance(scores, inputs.loaded.model.geometry)
        return scores
    kept = _kept_path(inputs, importance_samples(config, inputs))
    if kept is None or not kept.is_file():
        return None
    return load_importance(kept, n_blocks=inputs.knobs.num_blocks)


def importance_samples(config: PrecomputeConfig, inputs: Inputs) -> list[Sample]:
    """Returns the run's samples on which importance is measured."""
    return choose_importance_samples(
        inputs.samples, limit=config.importance_samples, runs=DEFAULT_RUNS, seed=config.seed
    )


def choose_importance_samples(samples: Sequence[Sample], *, limit: int, runs: int, seed: int) -> list[Sample]:
    """Returns up to `limit` training samples drawn by seed, equally many for each of `runs` subsets.

    Raises:
        ImportanceError: there are fewer training samples than subsets.
    """
    train = sorted((sample for sample in samples if sample.split == "train"), key=lambda sample: sample.sample_id)
    if len(train) < runs:
        raise ImportanceError(
            f"importance needs at least {runs} training samples, one for each of its {runs} disjoint subsets, and "
            f"there are {len(train)}: take more samples, or provide scores with --importance."
        )
    count = min(limit, len(train)) // runs * runs
    return random.Random(f"importance/{seed}").sample(train, max(count, runs))


def measure_importance(
    knobs: KnobModel,
    samples: Sequence[Sample],
    *,
    runs: int = DEFAULT_RUNS,
    threads: int = 1,
    on_sample: Callable[[], None] = lambda: None,
) -> ImportanceScores:
    """Returns every block's mean loss of accuracy over `runs` disjoint subsets of `samples`, and its deviation.

    Args:
        knobs: the middle tier of its space is used; its importance scores are not.
        samples: as `choose_importance_samples` draws them; subset i is every `runs`-th of them, from the i-th.
        on_sample: called after every sample.
    """
    num_blocks, whole = knobs.num_blocks, knobs.native
    plans = [whole, *((*whole[:block], 0, *whole[block + 1 :]) for block in range(num_blocks))]
    tier = knobs.space.tiers[len(knobs.space.tiers) // 2]
    accuracy_SB = np.empty((len(samples), len(plans)))
    for row, sample in enumerate(samples):
        accuracy_SB[row] = _accuracies(knobs, sample, tier, plans, threads)
        on_sample()
    loss_RB = np.stack([_loss(accuracy_SB[run::runs]) for run in range(runs)])
    std = loss_RB.std(axis=0, ddof=1) if runs > 1 else np.zeros(num_blocks)
    source = f"measured on {len(samples)} training samples, {tier} tier, top-k {max(whole)}"
    return ImportanceScores(
        tuple(float(score) for score in loss_RB.mean(axis=0)), tuple(float(value) for value in std), runs, source
    )


def _accuracies(
    knobs: KnobModel, sample: Sample, tier: str, plans: Sequence[BlockPlan], threads: int
) -> NDArray[np.float64]:
    _, state = knobs.prepare_tier(sample, tier)
    tree = PlanTree.of(plans, native=knobs.native, num_shared=state.num_shared)
    task = knobs.task(sample)
    with num_threads(threads):
        decoded = sweep_answers(
            knobs.model,
            state,
            tree,
            BatchLimit.of(knobs.model.device),
            max_new_tokens=task.max_new_tokens,
        )
    scorer = Scorer(task.metric, sample.answers)
    return np.array([scorer.score(knobs.text(one.token_ids)) for one in decoded])


def _loss(accuracy_SB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean accuracy of the whole model (column 0) minus that without each block."""
    mean_B = accuracy_SB.mean(axis=0)
    return mean_B[0] - mean_B[1:]


def _kept_path(inputs: Inputs, drawn: list[Sample]) -> Path | None:
    """Returns where measured scores are kept beside a model; None for a bundled one, which takes seconds to measure."""
    loaded = inputs.loaded
    if loaded.is_bundled:
        return None
    return loaded.directory / f"knobctl-importance-{importance_key(inputs, drawn)[:16]}.json"


def importance_key(inputs: Inputs, drawn: list[Sample]) -> str:
    """Returns a digest of everything that measured scores depend on."""
    content = [
        inputs.loaded.fingerprint,
        dtype_name(inputs.loaded),
        inputs.knobs.space.tier_ranges,
        [[sample.sample_id, sample.image_id, sample.question, list(sample.answers)] for sample in drawn],
        {name: asdict(task) for name, task in inputs.knobs.tasks.items()},
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
