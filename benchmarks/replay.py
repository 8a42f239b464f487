"""Times replay training on a generated cache: `python benchmarks/replay.py` (see --help for options).

Inputs are projected once, so the time of a step depends on budgets and samples but not on d_model. Only the first lines
(generation, fitting the bases, projection) depend on d_model. A busy machine increases the times, so the load and the
CPU time of a small step are printed too.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.generated.population import GeneratedConfig, generate
from knobctl.replay.evaluation.build_report import table_and_oracle
from knobctl.replay.recipes import TUNED, TrainConfig
from knobctl.replay.training.data import TrainingData, prepare_training
from knobctl.replay.training.trainer import Trainer
from knobctl.tests.support.replay_inputs import tables_of

SMALL = replace(TUNED, epochs=100, min_steps=0, batch_size=8, lr=5e-4, ema_decay=0.999)
LARGE = replace(TUNED, epochs=150, min_steps=0, batch_size=2048, lr=1e-2)
TARGET_STEPS, TARGET_SAMPLES = 187_500, 15_000  # the system this replaces takes 25 to 30 s per step


def bundle_of(samples: int, d_model: int, budgets: int, tokens: Path) -> TrainingData:
    """Returns the projected inputs of a generated cache, whose tokens are memory-mapped as those of a real cache."""
    start = time.perf_counter()
    generated = generate(GeneratedConfig(samples, 1000, 0, d_model, budgets, seed=1), tokens)
    gigabytes = f"{generated.token_STPMD.nbytes / 1e9:.1f} GB of latency tokens, memory-mapped"
    report("cache generated", time.perf_counter() - start, gigabytes)
    tables = tables_of(generated)
    start, cpu_start = time.perf_counter(), time.process_time()
    bundle = prepare_training(tables, BudgetEncoder.from_seed(d_model, 0), TUNED)
    cpu_s = time.process_time() - cpu_start
    report("bases fitted and inputs projected, once per run", time.perf_counter() - start, f"cpu {cpu_s:.0f} s")
    return bundle


def report(what: str, seconds: float, more: str = "") -> None:
    click.echo(f"{what:<48} {seconds:9.2f} s   {more:<52} load {os.getloadavg()[0]:.1f}")


def first_samples(bundle: TrainingData, count: int) -> TrainingData:
    """Returns the bundle with fewer training samples, for a shorter timed epoch."""
    train = bundle.inputs["train"]
    fewer = replace(
        train,
        language_NF=train.language_NF[:count],
        token_NJMF=train.token_NJMF[:count],
        reward_NMJA=train.reward_NMJA[:count],
    )
    return replace(bundle, inputs={**bundle.inputs, "train": fewer})


def time_epoch(bundle: TrainingData, config: TrainConfig) -> tuple[float, float, int]:
    """Returns (wall seconds, CPU seconds, steps) of one epoch after a warm-up epoch."""
    trainer = Trainer(bundle, config)
    trainer.run_epoch()
    before, start, cpu_start = trainer.step, time.perf_counter(), time.process_time()
    trainer.run_epoch()
    return time.perf_counter() - start, time.process_time() - cpu_start, trainer.step - before


def train_for(bundle: TrainingData, config: TrainConfig, goal: float = math.inf) -> tuple[float, float, int]:
    """Returns (seconds of training without evaluation, best reward on val, epochs); stops at the goal."""
    trainer, spent = Trainer(bundle, config), 0.0
    while not trainer.done and float(trainer.best_reward_N.min()) < goal:
        start = time.perf_counter()
        trainer.run_epoch()
        spent += time.perf_counter() - start
        if trainer.epoch % trainer.eval_every == 0:
            trainer.evaluate()
    return spent, float(trainer.best_reward_N.min()), trainer.epoch


@click.command()
@click.option("--samples", default=TARGET_SAMPLES, show_default=True, help="Training samples.")
@click.option(
    "--d-model", default=2048, show_default=True, help="With 2048 and 16 budgets, tokens take 1 MB per sample."
)
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Directory for the token file.  [default: the system's]"
)
@click.option("--budgets", default=16, show_default=True)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    help="More threads do not speed up small steps, and slow them down on a busy machine.",
)
@click.option(
    "--full", is_flag=True, help="Also train 100 epochs with batch 8, and with batch 2048 to the same reward."
)
def main(samples: int, d_model: int, scratch: Path | None, budgets: int, threads: int, full: bool) -> None:
    """Time small steps, large batches, an epoch, and several seeds side by side."""
    torch.set_num_threads(threads)
    click.echo(
        f"{samples:,} samples, d_model {d_model}, {budgets} budgets, {threads} threads, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        bundle = bundle_of(samples, d_model, budgets, Path(directory) / "tokens.float16")
    short = first_samples(bundle, min(samples, 4000))
    seconds, cpu_s, steps = time_epoch(short, SMALL)
    per_step = seconds / steps
    minutes = per_step * TARGET_STEPS / 60
    projected = (
        f"{1e3 * per_step:.2f} ms per step (cpu {1e3 * cpu_s / steps:.2f}), {TARGET_STEPS:,} in {minutes:.1f} min"
    )
    report(f"batch 8, group 5: {steps} steps", seconds, projected)
    seconds, cpu_s, steps = time_epoch(short, replace(SMALL, seeds=(0, 1, 2)))
    report(
        f"the same, 3 seeds side by side: {steps} steps",
        seconds,
        f"{seconds / steps / per_step:.2f} x the step of one seed",
    )
    seconds, cpu_s, steps = time_epoch(bundle, TUNED)
    report(f"one epoch of {samples:,}, batch {TUNED.batch_size}", seconds, f"{1e3 * seconds / steps:.2f} ms per step")
    seconds, cpu_s, steps = time_epoch(bundle, LARGE)
    report(f"one epoch of {samples:,}, batch 2048", seconds, f"{1e3 * seconds / steps:.2f} ms per step")
    seconds, cpu_s, steps = time_epoch(bundle, replace(TUNED, estimator="exact"))
    report(f"one epoch of {samples:,}, exact, batch {TUNED.batch_size}", seconds)
    if full:
        table, oracle = table_and_oracle(bundle.tables, "val")
        click.echo(f"reward on val: budget-only table {table:.4f}, oracle {oracle:.4f}")
        seconds, goal, epochs = train_for(bundle, SMALL)
        report(f"batch 8, {epochs} epochs", seconds, f"reward on val {goal:.4f}")
        seconds, reward, epochs = train_for(bundle, LARGE, goal)
        report(f"batch 2048, {epochs} epochs", seconds, f"reward on val {reward:.4f}, goal {goal:.4f}")


if __name__ == "__main__":
    main()
