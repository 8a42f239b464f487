"""Importance scores: the accuracy lost when one block is left out, for every block.

Measured on training samples in the middle tier with the native top-k, over disjoint subsets: their mean and standard
deviation. The plans (the whole model, and the model without one block) go through the same tree as the sweep's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...controllers.budget_encoder import BudgetEncoder
from ...data.errors import ImportanceError
from ...data.knobs import KnobSpace
from ...data.metrics import Scorer
from ...data.plans import BlockPlan, ImportanceScores
from ...data.samples import Sample
from ...devices import num_threads
from ..execution.answer_sweep import sweep_answers
from ..execution.batch_limit import BatchLimit
from ..execution.knob_model import KnobModel, Task
from ..execution.plan_tree import PlanTree
from ..models.loading import LoadedModel

DEFAULT_RUNS = 5
DEFAULT_SAMPLES = 200

OnSample = Callable[[], None]


def choose_importance_samples(samples: Sequence[Sample], *, limit: int, runs: int, seed: int) -> list[Sample]:
    """Returns up to `limit` training samples, drawn by seed, as many for each of `runs` subsets.

    Raises:
        ImportanceError: fewer training samples than subsets.
    """
    train = sorted((sample for sample in samples if sample.split == "train"), key=lambda sample: sample.sample_id)
    if len(train) < runs:
        raise ImportanceError(
            f"importance needs at least {runs} training samples, one for each of its {runs} disjoint subsets, and "
            f"there are {len(train)}: take more samples, or give scores with --importance."
        )
    count = min(limit, len(train)) // runs * runs
    return random.Random(f"importance/{seed}").sample(train, max(count, runs))


def measure_importance(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    tasks: Mapping[str, Task],
    *,
    space: KnobSpace,
    runs: int = DEFAULT_RUNS,
    threads: int = 1,
    on_sample: OnSample = lambda: None,
) -> ImportanceScores:
    """Returns every block's mean loss of accuracy over `runs` disjoint subsets of `samples`, and its deviation.

    Args:
        samples: as `choose_importance_samples` draws them; subset i has every `runs`-th of them, from the i-th.
        space: its middle tier is used.
        on_sample: called after every sample.
    """
    n_blocks, native = loaded.model.config.num_blocks, loaded.model.config.native_top_k
    whole: BlockPlan = (native,) * n_blocks
    plans = [whole, *((*whole[:block], 0, *whole[block + 1 :]) for block in range(n_blocks))]
    knobs = _plain_knobs(loaded, space, tasks)
    tier = space.tiers[len(space.tiers) // 2]
    accuracy_SB = np.stack([_accuracies(knobs, sample, tier, plans, threads, on_sample) for sample in samples])
    loss_RB = np.stack([_loss(accuracy_SB[run::runs]) for run in range(runs)])
    std = loss_RB.std(axis=0, ddof=1) if runs > 1 else np.zeros(n_blocks)
    source = f"measured on {len(samples)} training samples, {tier} tier, top-k {native}"
    return ImportanceScores(
        tuple(float(score) for score in loss_RB.mean(axis=0)), tuple(float(value) for value in std), runs, source
    )


def _plain_knobs(loaded: LoadedModel, space: KnobSpace, tasks: Mapping[str, Task]) -> KnobModel:
    """The model with scores that are never asked for and no budgets."""
    flat = ImportanceScores((0.0,) * loaded.model.config.num_blocks)
    encoder = BudgetEncoder.from_seed(loaded.model.config.d_model, 0)
    return KnobModel(loaded, space=space, importance=flat, encoder=encoder, tasks=tasks, budgets_ms=(1.0,))


def _accuracies(
    knobs: KnobModel, sample: Sample, tier: str, plans: Sequence[BlockPlan], threads: int, on_sample: OnSample
) -> NDArray[np.float64]:
    rgb = knobs.pixels(sample)
    prepared = knobs.prepare(sample, rgb, knobs.tiling(rgb, tier))
    _, state = knobs.token_pass(prepared)
    tree = PlanTree.of(plans, native_top_k=knobs.native_top_k, num_shared=state.num_shared)
    task = knobs.task(sample)
    with num_threads(threads):
        decoded = sweep_answers(
            knobs.model,
            state,
            tree,
            BatchLimit.of(knobs.model.device),
            max_new_tokens=task.max_new_tokens,
            end_id=knobs.end_id,
        )
    scorer = Scorer(task.metric, sample.answers)
    on_sample()
    return np.array([scorer.score(knobs.text(one.token_ids)) for one in decoded])


def _loss(accuracy_SB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean accuracy of the whole model (column 0) less that without each block."""
    mean_B = accuracy_SB.mean(axis=0)
    return mean_B[0] - mean_B[1:]


def scores_path(loaded: LoadedModel, key: str) -> Path | None:
    """Returns where measured scores lie beside a model, or None for a bundled one, whose scores take seconds."""
    return None if loaded.is_bundled else loaded.directory / f"knobctl-importance-{key[:16]}.json"
