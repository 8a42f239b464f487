"""`knobctl train`: trains controllers from a cache and writes checkpoints, log and report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...controllers.budget_encoder import BudgetEncoder, encoder_digest
from ...controllers.card import write_controllers_card
from ...controllers.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Controllers
from ...controllers.conditions import ModelIdentity
from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import open_cache
from ...data.cards import CARD_NAME, remove_generated_card
from ...data.errors import CheckpointError
from ...data.files.atomic import write_atomically
from ...data.files.lock import DirectoryLock
from ...data.progress import SILENT, Progress
from ...devices import find_device
from ..evaluation.build_report import table_and_oracle
from ..evaluation.card_results import training_results
from ..evaluation.figures import gap_closed
from ..evaluation.request_stats import latency_runs
from ..latency_fit import fit_expected_latency
from ..recipes import TUNED, TrainConfig
from ..tables import ReplayTables, budget_encoder_for
from .calibration import ReadRuns, calibrated
from .data import prepare_training, require_trainable
from .inputs import settings_seen
from .log import MetricsWriter, StepLog
from .state import STATE_NAME, data_digest, load_state, save_state
from .trackers import TENSORBOARD_NAME, TRACKIO_NAME, WANDB_NAME, Trackers
from .trainer import Trainer

REPORT_NAME = "train.json"
SAVE_EVERY_S = 20.0
OWN_NAMES = {
    CONFIG_NAME,
    WEIGHTS_NAME,
    REPORT_NAME,
    STATE_NAME,
    CARD_NAME,
    "log.csv",
    "log.jsonl",
    TENSORBOARD_NAME,
    WANDB_NAME,
    TRACKIO_NAME,
    "wandb",
}


@dataclass(frozen=True)
class SeedReport:
    """The result of one seed. Rewards are those of greedy choices, averaged over `val` and all budgets."""

    seed: int
    path: str
    best_epoch: int  # 0: no checkpoint beat the warm start
    val_reward: float
    val_gap_closed: float | None  # as `validate` reports it: 0 = budget-only table, 1 = oracle; None if they are equal


@dataclass(frozen=True)
class TrainReport:
    """The result of a training run. Checkpoints were selected by their reward on `val`: report quality on `test`."""

    cache: str
    recipe: str
    estimator: str
    seeds: tuple[SeedReport, ...]
    epochs: int
    steps: int
    training_samples: int
    val_table_reward: float
    val_oracle_reward: float
    parameters: dict[str, int]
    explained_variance: dict[str, list[float]]  # share of each basis target's variance, on held-out folds
    expected_latency: dict[str, Any]  # what it reads, and its relative errors on `val`
    seconds: dict[str, float]  # reading the cache, preparing (bases and projection), training
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


def train_controllers(
    cache_path: Path,
    out: Path,
    config: TrainConfig = TUNED,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    wandb_project: str | None = None,
    trackio_project: str | None = None,
    progress: Progress = SILENT,
) -> TrainReport:
    """Trains Stage1 and Stage2 from the cache and writes the checkpoint to `out` (several seeds: `out/seed-<seed>`).

    Args:
        resume: continue the interrupted run in `out`; the result is bit-equal to an uninterrupted run. An `out` without
            a run starts a new one.
        tensorboard: also write the log for TensorBoard, to `out/tensorboard`.
        wandb_project: also log to this Weights & Biases project.
        trackio_project: also log to this Trackio project.
        progress: receives the warnings, and a step for each epoch.

    Raises:
        KnobctlError: the cache cannot train controllers, `out` contains other files, or the run in `out` has other
            settings or another cache.
    """
    start = time.perf_counter()
    cache = open_cache(cache_path)
    for warning in accuracy_warnings(cache):
        progress.note(warning)
    tables = ReplayTables.from_cache(cache)
    require_trainable(tables, f"cache {cache_path}", allow_constant_accuracy=config.allow_constant_accuracy)
    encoder = budget_encoder_for(cache.budget_encoder_path, tables.d_model, seed=0)
    if cache.budget_encoder_path is None:
        progress.note(
            f"cache {cache_path} has no budget encoder: Stage1 gets one generated from seed 0, and `validate --live` "
            "is not possible"
        )
    return train_tables(
        tables,
        encoder,
        Path(out),
        config,
        where=cache.source,
        read_runs=partial(latency_runs, cache),
        resume=resume,
        trackers=Trackers(tensorboard, wandb_project, trackio_project),
        progress=progress,
        reading_s=time.perf_counter() - start,
    )


def train_tables(
    tables: ReplayTables,
    encoder: BudgetEncoder,
    out: Path,
    config: TrainConfig,
    *,
    where: str,
    read_runs: ReadRuns = lambda _sample_N: None,
    resume: bool = False,
    trackers: Trackers = Trackers(),  # noqa: B008  immutable
    progress: Progress = SILENT,
    reading_s: float = 0.0,
) -> TrainReport:
    """As `train_controllers`, from tables in memory that pass `require_trainable`.

    Args:
        where: the cache's name in the report.
        read_runs: returns the timed runs of samples, for the service levels.
        reading_s: seconds that reading the tables took, for the report.
    """
    find_device(config.device)
    trackers.require_packages()
    with _output_errors(out):
        _check_out(out)
        out.mkdir(parents=True, exist_ok=True)
    with _output_errors(out), DirectoryLock(out):
        identity = {
            **{f"config.{name}": value for name, value in config.to_dict().items()},
            "cache": tables.fingerprint,
            "data": data_digest(tables),
            "budget_encoder": encoder_digest(encoder),
            "threads": torch.get_num_threads(),
        }
        saved = load_state(out, identity) if resume else None
        if resume and saved is None:
            progress.note(f"{out} holds no training state yet: starting a new run")
        start = time.perf_counter()
        data = prepare_training(tables, encoder, config)
        for note in data.notes:
            progress.note(note)
        preparing_s = time.perf_counter() - start
        trainer = Trainer(data, config)
        if saved is not None:
            trainer.load_state(saved)
        start = time.perf_counter()
        with MetricsWriter(out, config.to_dict(), resume_step=trainer.step, trackers=trackers) as metrics:
            if saved is None:
                _remove_earlier_run(out)
            _train(trainer, metrics, lambda: save_state(out, identity, trainer.state()), progress)
            notes = tie_notes(metrics.tied_seeds)
        for note in notes:
            progress.note(note)
        seconds = {"reading": reading_s, "bases": preparing_s, "training": time.perf_counter() - start}
        report = _save(trainer, out, where, read_runs, {k: round(v, 2) for k, v in seconds.items()}, notes)
        write_atomically(out / REPORT_NAME, (report.to_json() + "\n").encode())
    for seed in report.seeds:
        if config.warm_start_steps and seed.best_epoch == 0:
            progress.note(
                f"seed {seed.seed}: no checkpoint beat the warm start on val ({report.training_samples} training "
                "samples): these controllers choose like a look-up table per dataset"
            )
        elif seed.best_epoch and seed.val_reward < report.val_table_reward:
            progress.note(
                f"seed {seed.seed}: reward {seed.val_reward:.4f} on val is below the budget-only table's "
                f"{report.val_table_reward:.4f}: do not use these controllers"
            )
    return report


def tie_notes(seeds: Sequence[int]) -> list[str]:
    """Returns a note for each of these seeds, whose groups of draws never differed in reward."""
    return [
        f"seed {seed}: the rewards of every group tied (frac_reward_zero_std is 1), so nothing was learned from them: "
        "check the reward weights, and with `knobctl inspect` that accuracy and latency depend on the setting"
        for seed in seeds
    ]


def _train(trainer: Trainer, metrics: MetricsWriter, save: Callable[[], None], progress: Progress) -> None:
    """Runs the remaining epochs; evaluates and saves the state at intervals."""
    config, saved_at = trainer.config, time.monotonic()

    def write(log: StepLog) -> None:
        for seed, line in zip(config.seeds, log.lines, strict=True):
            metrics.write(seed, line)

    with progress.steps("epochs", trainer.epochs, done=trainer.epoch) as advance:
        while not trainer.done:
            trainer.run_epoch(write)
            if trainer.evaluation_due:
                _evaluate(trainer, metrics)
            if trainer.done or time.monotonic() - saved_at > SAVE_EVERY_S:
                metrics.flush()
                save()
                saved_at = time.monotonic()
            advance()


def _evaluate(trainer: Trainer, metrics: MetricsWriter) -> None:
    tables = trainer.data.tables
    reward_N, choice = trainer.evaluate()
    for index, seed in enumerate(trainer.config.seeds):
        setting_NM = tables.space.setting_JA.ravel()[choice[index].numpy()]
        terms = tables.mean_terms(tables.indices("val"), setting_NM)
        line = {"epoch": trainer.epoch, "step": trainer.step, "val_reward": float(reward_N[index])}
        metrics.write(seed, {**line, **{f"val_{name}_term": value for name, value in terms.items()}})


def _save(
    trainer: Trainer, out: Path, where: str, read_runs: ReadRuns, seconds: dict[str, float], notes: Sequence[str]
) -> TrainReport:
    """Writes the checkpoint of every seed and returns the report."""
    data, config = trainer.data, trainer.config
    table, oracle = table_and_oracle(data.tables, "val")
    expected_latency = fit_expected_latency(data.tables)
    reports, counts = [], {}
    for index, seed in enumerate(config.seeds):
        path = out if len(config.seeds) == 1 else out / f"seed-{seed}"
        controllers = controllers_of(trainer, index)
        controllers.expected_latency = expected_latency
        controllers.calibration = calibrated(controllers, data.tables, read_runs)
        counts = controllers.parameter_counts()
        reward = float(trainer.best_reward_N[index])
        gap = gap_closed(reward - table, oracle - table)
        path.mkdir(parents=True, exist_ok=True)
        write_controllers_card(path, controllers, training_results(data.tables, reward, table, oracle))
        controllers.save_pretrained(path)
        reports.append(SeedReport(seed, str(path), int(trainer.best_epoch_N[index]), reward, gap))
    return TrainReport(
        cache=where,
        recipe=config.recipe,
        estimator=config.estimator,
        seeds=tuple(reports),
        epochs=trainer.epoch,
        steps=trainer.step,
        training_samples=len(data.inputs["train"]),
        val_table_reward=table,
        val_oracle_reward=oracle,
        parameters=counts,
        explained_variance=dict(data.explained),
        expected_latency=expected_latency.to_dict(),
        seconds=seconds,
        notes=(*data.notes, *notes),
    )


def controllers_of(trainer: Trainer, seed_index: int) -> Controllers:
    """Returns the best controllers of one seed."""
    from ... import __version__

    data, config = trainer.data, trainer.config
    tables = data.tables
    model = tables.model or ModelIdentity("unknown", tables.d_model, tables.n_blocks, tables.native_top_k)
    made = Controllers.untrained(tables.space, model, tuple(tables.budgets_ms_M.tolist()), data.encoder)
    made.stage1.language_basis.load_state_dict(data.language_basis.state_dict())
    made.stage1.budget_basis.load_state_dict(data.budget_basis.state_dict())
    made.stage2.token_basis.load_state_dict(data.token_basis.state_dict())
    if config.train_budget_encoder:
        made.stage1_budget_encoder = BudgetEncoder.from_seed(tables.d_model, 0)
    trainer.write_best(
        seed_index, made.stage1, made.stage2, made.stage1_budget_encoder if config.train_budget_encoder else None
    )
    allowed_J, allowed_JA = settings_seen(tables)
    made.stage1.allowed_J.copy_(allowed_J)
    # Rows of choices that Stage1 never makes are left unmasked, because the softmax of a fully masked row is undefined.
    made.stage2.allowed_JA.copy_(allowed_JA | ~allowed_J[:, None])
    made.conditions = tables.conditions
    made.cache_fingerprint = tables.fingerprint
    made.settings = {
        **config.to_dict(),
        "seed": config.seeds[seed_index],
        "best_epoch": int(trainer.best_epoch_N[seed_index]),
    }
    made.created_by = f"knobctl {__version__}"
    return made


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    """Turns an OSError from writing to the output directory into a CheckpointError."""
    try:
        yield
    except BrokenPipeError:  # from the terminal or pipe that notes are written to
        raise
    except OSError as cause:
        path = cause.filename or out  # a failed write does not name its file
        raise CheckpointError(
            f"{path} cannot be written: {cause.strerror or cause}. Free disk space or fix its permissions and run "
            "again with --resume, or choose another directory with --out"
        ) from cause


def _check_out(out: Path) -> None:
    """Raises CheckpointError for a directory with files that do not belong to a training run."""
    if out.is_symlink() and not out.exists():
        raise CheckpointError(f"{out} is a link to {out.readlink()}, which does not exist: create that directory")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file: choose a directory for the controllers")
    if not out.is_dir():
        return
    names = {path.name for path in out.iterdir()}
    foreign = sorted(n for n in names - OWN_NAMES if not n.startswith((".tmp-", "seed-", "writer.lock")))
    if foreign:
        raise CheckpointError(
            f"{out} contains other files ({', '.join(foreign[:3])}): choose an empty or new directory"
        )


def _remove_earlier_run(out: Path) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME, STATE_NAME):
        (out / name).unlink(missing_ok=True)
    remove_generated_card(out)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        for path in out.glob(f"seed-*/{name}"):  # otherwise the seeds of another run would look like part of this one
            path.unlink()
            remove_generated_card(path.parent)
