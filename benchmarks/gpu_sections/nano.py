"""The bundled model on the device: precompute of generated samples, then training on the measured outcomes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median

import numpy as np
from molmoe import rises
from tables import Row

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.budgets import normalise_budgets
from knobctl.data.datasets.images import InlineImage
from knobctl.data.datasets.registry import DATASETS
from knobctl.data.generated.population import GeneratedConfig, generate
from knobctl.data.knobs import KnobSetting, KnobSpace
from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.run.sample import MeasureConfig, SampleResult, SampleRunner
from knobctl.precompute.run.work_counts import Ledger
from knobctl.replay.recipes import TUNED, TrainConfig
from knobctl.replay.tables import ReplayTables
from knobctl.replay.training.data import TrainingData, prepare_training
from knobctl.replay.training.trainer import Trainer
from knobctl.tests.support.replay_inputs import tables_of
from knobctl.tools.nano.small_print import SMALL_PRINT_SEED, small_print_rows
from precompute import PUBLISHED_ORDER

from .worker import Work

SMALL_SPACE = KnobSpace(("low", "medium"), (1, 3), (4, 8), (12, 16))
SPLITS = ("train", "train", "train", "val")  # assigned in turn, so that four samples contain both


def nano_samples(count: int) -> list[Sample]:
    """Returns questions of small_print, generated in memory because the bundled file needs a Parquet reader."""
    rows = islice(small_print_rows(SMALL_PRINT_SEED, count), count)
    return [
        Sample(
            f"small_print/{row['question_id']}",
            "small_print",
            SPLITS[index % len(SPLITS)],
            row["question"],
            tuple(row["answers"]),
            row["image_id"],
            InlineImage(row["image"]["path"], row["image"]["bytes"]),
        )
        for index, row in enumerate(rows)
    ]


def nano_knobs(work: Work, dtype: str = "auto", budgets_ms: tuple[float, float] = (5.0, 160.0)) -> KnobModel:
    """Returns the bundled model with its knobs and a budget grid between the two given budgets."""
    loaded = load_model("nano", device=str(work.device), dtype=dtype)
    spec = DATASETS["small_print"]
    return KnobModel(
        loaded,
        space=SMALL_SPACE if work.is_small else KnobSpace(),
        importance=PUBLISHED_ORDER,
        encoder=BudgetEncoder.from_seed(loaded.model.geometry.d_model, 0),
        tasks={spec.name: Task(spec.metric, spec.max_new_tokens, spec.style)},
        budgets_ms=normalise_budgets(np.geomspace(*budgets_ms, 4 if work.is_small else 16)),
    )


def precompute_and_train(work: Work) -> Iterator[Row]:
    """Yields rows on precompute with latencies, on training with its outcomes, and on steps with generated data."""
    whole_s = work.time_left_s()
    first, *samples = nano_samples(4 if work.is_small else 200)
    measure = MeasureConfig(runs=1 if work.is_small else 5)
    # The first sample warms up the device, and its latencies determine the budgets.
    pilot_ms = [
        row.latency_ms for row in SampleRunner(nano_knobs(work), measure, Ledger()).run(first).outcomes.values()
    ]
    knobs, ledger = nano_knobs(work, budgets_ms=(min(pilot_ms), max(pilot_ms))), Ledger(work.device)
    runner = SampleRunner(knobs, measure, ledger)
    results, seconds = [], []
    for sample in samples:
        start = time.perf_counter()
        results.append(runner.run(sample))
        seconds.append(time.perf_counter() - start)
        if work.time_left_s() < 0.5 * whole_s and len(results) >= len(SPLITS):
            break
    yield "precompute", _precompute_row(knobs, results, seconds, ledger)
    yield from _latency_rows(knobs, results)
    config = replace(TUNED, device=str(work.device), **({"min_steps": 60} if work.is_small else {}))
    bundle = prepare_training(measured_tables(knobs, results), knobs.encoder, config)
    yield "train", _train_row(f"{len(results)} samples of nano", bundle, config)
    count, d_model = (100, 32) if work.is_small else (4000, 256)
    large = prepare_training(generated_tables(count, d_model), BudgetEncoder.from_seed(d_model, 0), TUNED)
    for device in dict.fromkeys((str(work.device), "cpu")):
        for batch_size in (256, 2048):
            timed = replace(TUNED, device=device, batch_size=batch_size, warm_start_steps=0)
            yield "steps", _step_row(f"{count:,} generated samples", large, timed)


def _precompute_row(
    knobs: KnobModel, results: Sequence[SampleResult], seconds: Sequence[float], ledger: Ledger
) -> dict[str, object]:
    accuracy = [row.accuracy for result in results for row in result.outcomes.values()]
    checks = [check for result in results for check in result.checks]
    errors = [abs(check.blockwise_ms[-1] / check.end_to_end_ms[-1] - 1) for check in checks]
    return {
        "samples": len(results),
        "settings": len(knobs.space.settings),
        "s per sample": f"{median(seconds):.2f}",
        **{f"{kind}, s": f"{ledger.seconds[kind] / len(results):.2f}" for kind in ("token_pass", "sweep", "timing")},
        "mean accuracy": f"{np.mean(accuracy):.3f}",
        "error of the sum over blocks": f"{100 * median(errors):.1f} %",
    }


def _latency_rows(knobs: KnobModel, results: Sequence[SampleResult]) -> Iterator[Row]:
    """Yields whether the median latency rises with each knob while the other knobs are at their highest values."""
    latency_ms = {
        setting: median(rows)
        for setting in knobs.space.settings
        if (rows := [one.outcomes[setting].latency_ms for one in results if setting in one.outcomes])
    }
    space = knobs.space
    top = KnobSetting(space.tiers[-1], space.insertion_positions[-1], space.top_k[-1], space.num_blocks[-1])
    knobs_values = {
        "tier": space.tiers,
        "insertion_position": space.insertion_positions,
        "top_k": space.top_k,
        "num_blocks": space.num_blocks,
    }
    for knob, values in knobs_values.items():
        others = replace(top, top_k=space.top_k[0]) if knob == "insertion_position" else top
        yield rises(f"{knob}: nano's request", [latency_ms[replace(others, **{knob: value})] for value in values])


def measured_tables(knobs: KnobModel, results: Sequence[SampleResult]) -> ReplayTables:
    """Returns the tables that a cache of these samples would give."""
    space = knobs.space
    token_STPMD = np.stack([np.stack([result.token_PMD[tier] for tier in space.tiers]) for result in results])
    splits = np.array([result.sample.split for result in results])
    return ReplayTables(
        space=space,
        n_blocks=knobs.num_blocks,
        native_top_k=knobs.model.geometry.largest_top_k,
        sample_ids=tuple(result.sample.sample_id for result in results),
        cluster_S=np.arange(len(results)),
        datasets=("small_print",) * len(results),
        split_indices={split: np.flatnonzero(splits == split) for split in ("train", "val")},
        budgets_ms_M=np.array(knobs.budgets_ms, dtype=np.float32),
        accuracy_SX=np.array(
            [[row.accuracy for row in result.outcomes.values()] for result in results], dtype=np.float32
        ),
        latency_ms_SX=np.array(
            [[row.latency_ms for row in result.outcomes.values()] for result in results], dtype=np.float32
        ),
        language_feature_SD=np.stack([result.language_feature_D for result in results]),
        token_STPMD=token_STPMD,
        token_present_STPM=np.ones(token_STPMD.shape[:4], dtype=bool),
    )


def generated_tables(samples: int, d_model: int) -> ReplayTables:
    return tables_of(generate(GeneratedConfig(samples, samples // 8, 0, d_model, seed=1)))


def _train_row(what: str, bundle: TrainingData, config: TrainConfig) -> dict[str, object]:
    """Trains to the end as `train` does, including evaluations."""
    start = time.perf_counter()
    trainer = Trainer(bundle, config)
    while not trainer.done:
        trainer.run_epoch()
        if trainer.evaluation_due:
            trainer.evaluate()
    return {
        "trained on": what,
        "device": config.device,
        "steps": trainer.step,
        "s": f"{time.perf_counter() - start:.1f}",
        "reward on val: warm start": f"{float(trainer.start_reward_N[0]):.4f}",
        "trained": f"{float(trainer.best_reward_N[0]):.4f}",
    }


def _step_row(what: str, bundle: TrainingData, config: TrainConfig) -> dict[str, object]:
    """Times the steps of two epochs after a warm-up epoch."""
    trainer = Trainer(bundle, config)
    trainer.run_epoch()
    float(trainer.stage1.flat.sum())  # waits for the device
    start, before = time.perf_counter(), trainer.step
    for _ in range(2):
        trainer.run_epoch()
    float(trainer.stage1.flat.sum())
    seconds, steps = time.perf_counter() - start, trainer.step - before
    return {
        "steps on": what,
        "device": config.device,
        "batch": config.batch_size,
        "ms per step": f"{1e3 * seconds / steps:.2f}",
    }
