"""`knobctl train`: a cache in, controllers out. Ties the parts together and knows where files lie."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...controllers.budget_encoder import BudgetEncoder, encoder_digest
from ...controllers.checkpoint import CONFIG_NAME, WEIGHTS_NAME, Controllers, ModelIdentity
from ...data.cache.accuracy import accuracy_warnings
from ...data.cache.reader import open_cache
from ...data.errors import CheckpointError
from ...data.files.atomic import write_atomically
from ...data.files.lock import DirectoryLock
from ...devices import find_device
from ..evaluation.build_report import table_and_oracle
from ..evaluation.figures import gap_closed
from ..recipes import TUNED, TrainConfig
from ..tables import ReplayTables, budget_encoder_for
from .data import make_bundle, require_trainable
from .inputs import settings_seen
from .log import MetricsWriter, StepLog
from .resume import STATE_NAME, data_digest, load_state, save_state
from .trackers import BOARD_NAME, RUN_NAME, require_packages
from .trainer import Trainer

REPORT_NAME = "train.json"
SAVE_EVERY_S = 20.0
OWN_NAMES = {CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME, STATE_NAME, "log.csv", "log.jsonl", BOARD_NAME, RUN_NAME, "wandb"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class SeedReport:
    """What one seed came to. Rewards are greedy means over `val` and all budgets."""

    seed: int
    path: str
    best_epoch: int  # 0: the warm start was kept
    val_reward: float
    val_gap_closed: float | None  # as `validate` reports it: 0 = budget-only table, 1 = oracle; None if these are equal


@dataclass(frozen=True)
class TrainReport:
    """What `train` did, JSON-able. Rewards on `val` selected the checkpoints: report quality on `test` (validate)."""

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
    explained_variance: dict[str, list[float]]  # of each basis target, on folds left out
    seconds: dict[str, float]  # reading, fitting the bases and projecting, training
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
    say: Say | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainReport:
    """Trains Stage1 and Stage2 from the cache and writes the checkpoint to `out` (several seeds: `out/seed-<seed>`).

    Args:
        resume: go on with the run in `out`, bit-equal to one that was never stopped; a fresh `out` starts anew.
        say: gets notes for the user, one line each. progress: gets (epochs done, epochs in all).

    Raises:
        KnobctlError: the cache cannot train controllers, `out` holds something else, or resuming does not fit.
    """
    start = time.perf_counter()
    say = say or (lambda _line: None)
    cache = open_cache(Path(cache_path))
    for warning in accuracy_warnings(cache):
        say(warning)
    tables = ReplayTables.from_cache(cache)
    require_trainable(tables, f"cache {cache_path}", allow_constant_accuracy=config.allow_constant_accuracy)
    encoder = budget_encoder_for(cache.budget_encoder_path, tables.d_model, seed=0)
    if cache.budget_encoder_path is None:
        say(f"cache {cache_path} has no budget encoder: one is made from seed 0 for Stage1, and live is refused")
    return train_tables(
        tables,
        encoder,
        Path(out),
        config,
        where=str(cache_path),
        resume=resume,
        tensorboard=tensorboard,
        wandb_project=wandb_project,
        say=say,
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
    resume: bool = False,
    tensorboard: bool = False,
    wandb_project: str | None = None,
    say: Say = lambda _line: None,
    progress: Callable[[int, int], None] | None = None,
    reading_s: float = 0.0,
) -> TrainReport:
    """As `train_controllers`, from tables already in memory."""
    find_device(config.device)
    require_packages(tensorboard=tensorboard, wandb_project=wandb_project)
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
            say(f"{out} holds no training state yet: training starts anew")
        start = time.perf_counter()
        bundle = make_bundle(tables, encoder, config, where)
        for note in bundle.notes:
            say(note)
        fitting_s = time.perf_counter() - start
        trainer = Trainer(bundle, config)
        if saved is not None:
            trainer.load_state(saved)
        start = time.perf_counter()
        with MetricsWriter(
            out, config.to_dict(), resume_step=trainer.step, tensorboard=tensorboard, wandb_project=wandb_project
        ) as metrics:
            if saved is None:
                _remove_earlier_run(out)
            _train(trainer, metrics, lambda: save_state(out, identity, trainer.state()), progress)
            notes = tie_notes(metrics.tied_seeds)
        for note in notes:
            say(note)
        seconds = {"reading": reading_s, "bases": fitting_s, "training": time.perf_counter() - start}
        report = _finish(trainer, out, where, {k: round(v, 2) for k, v in seconds.items()}, notes)
        write_atomically(out / REPORT_NAME, (report.to_json() + "\n").encode())
    for seed in report.seeds:
        if config.warm_start_steps and seed.best_epoch == 0:
            say(
                f"seed {seed.seed}: nothing learned on {report.training_samples} samples earned more on val than "
                "the start: these controllers choose like a look-up table per dataset"
            )
    worse = [seed for seed in report.seeds if seed.val_reward < report.val_table_reward and seed.best_epoch]
    for seed in worse:
        say(
            f"seed {seed.seed}: reward {seed.val_reward:.4f} on val is below the budget-only table's "
            f"{report.val_table_reward:.4f}: these controllers are not worth using"
        )
    return report


def tie_notes(seeds: Sequence[int]) -> list[str]:
    """Says for which seeds no group of draws ever differed in reward."""
    return [
        f"seed {seed}: all groups tied throughout (frac_reward_zero_std is 1), so nothing was learned from rewards: "
        "look at the reward weights and at whether accuracy and latency depend on the setting (`knobctl inspect`)"
        for seed in seeds
    ]


def _train(
    trainer: Trainer, metrics: MetricsWriter, save: Callable[[], None], progress: Callable[[int, int], None] | None
) -> None:
    """Runs epochs until done, evaluating and saving the state on the way."""
    config, saved_at = trainer.config, time.monotonic()

    def write(log: StepLog) -> None:
        for seed, line in zip(config.seeds, log.lines, strict=True):
            metrics.write(seed, line)

    while not trainer.done:
        trainer.run_epoch(write)
        if trainer.evaluation_due:
            _evaluate(trainer, metrics)
        if trainer.done or time.monotonic() - saved_at > SAVE_EVERY_S:
            metrics.flush()
            save()
            saved_at = time.monotonic()
        if progress is not None:
            progress(trainer.epoch, trainer.epochs)


def _evaluate(trainer: Trainer, metrics: MetricsWriter) -> None:
    tables = trainer.bundle.tables
    reward_N, choice = trainer.evaluate()
    for index, seed in enumerate(trainer.config.seeds):
        setting_NM = tables.space.setting_JA.ravel()[choice[index].numpy()]
        terms = tables.mean_terms(tables.indices("val"), setting_NM)
        line = {"epoch": trainer.epoch, "step": trainer.step, "val_reward": float(reward_N[index])}
        metrics.write(seed, {**line, **{f"val_{name}_term": value for name, value in terms.items()}})


def _finish(trainer: Trainer, out: Path, where: str, seconds: dict[str, float], notes: Sequence[str]) -> TrainReport:
    """Writes every seed's checkpoint and returns the report."""
    bundle, config = trainer.bundle, trainer.config
    table, oracle = table_and_oracle(bundle.tables, "val")
    reports, counts = [], {}
    for index, seed in enumerate(config.seeds):
        path = out if len(config.seeds) == 1 else out / f"seed-{seed}"
        controllers = controllers_of(trainer, index)
        controllers.save_pretrained(path)
        counts = controllers.parameter_counts()
        reward = float(trainer.best_reward_N[index])
        gap = gap_closed(reward - table, oracle - table)
        reports.append(SeedReport(seed, str(path), int(trainer.best_epoch_N[index]), reward, gap))
    return TrainReport(
        cache=where,
        recipe=config.recipe,
        estimator=config.estimator,
        seeds=tuple(reports),
        epochs=trainer.epoch,
        steps=trainer.step,
        training_samples=len(bundle.inputs["train"]),
        val_table_reward=table,
        val_oracle_reward=oracle,
        parameters=counts,
        explained_variance=dict(bundle.explained),
        seconds=seconds,
        notes=(*bundle.notes, *notes),
    )


def controllers_of(trainer: Trainer, seed_index: int) -> Controllers:
    """Returns one seed's best controllers, ready to choose or to save."""
    from ... import __version__

    bundle, config = trainer.bundle, trainer.config
    tables = bundle.tables
    model = ModelIdentity(
        tables.model_name or "unknown", tables.d_model, tables.n_blocks, tables.native_top_k, tables.model_fingerprint
    )
    made = Controllers.untrained(tables.space, model, tuple(tables.budgets_ms_M.tolist()), bundle.encoder)
    made.stage1.language_basis.load_state_dict(bundle.language_basis.state_dict())
    made.stage1.budget_basis.load_state_dict(bundle.budget_basis.state_dict())
    made.stage2.token_basis.load_state_dict(bundle.token_basis.state_dict())
    if config.train_budget_encoder:
        made.stage1_budget_encoder = BudgetEncoder.from_seed(tables.d_model, 0)
    trainer.write_best(
        seed_index, made.stage1, made.stage2, made.stage1_budget_encoder if config.train_budget_encoder else None
    )
    allowed_J, allowed_JA = settings_seen(tables)
    made.stage1.allowed_J.copy_(allowed_J)
    # A pair that no sample has is never chosen by Stage1; an open mask there keeps its softmax defined.
    made.stage2.allowed_JA.copy_(allowed_JA | ~allowed_J[:, None])
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
    """Turns what the system says of the output directory into one line."""
    try:
        yield
    except BrokenPipeError:  # of a terminal or pipe that notes go to
        raise
    except OSError as cause:
        path = cause.filename or out  # a failed write does not name its file
        raise CheckpointError(
            f"{path} cannot be written: {cause.strerror or cause}. Make room there and let it be written, then run "
            "again with --resume; or name another directory with --out"
        ) from cause


def _check_out(out: Path) -> None:
    """Refuses to write among files that are not a training run's."""
    if out.is_symlink() and not out.exists():
        raise CheckpointError(f"{out} is a link to {out.readlink()}, which does not exist: make that directory")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file: name a directory for the controllers")
    if not out.is_dir():
        return
    names = {path.name for path in out.iterdir()}
    foreign = sorted(n for n in names - OWN_NAMES if not n.startswith((".tmp-", "seed-", "writer.lock")))
    if foreign:
        raise CheckpointError(f"{out} holds something else ({', '.join(foreign[:3])}): name an empty or new directory")


def _remove_earlier_run(out: Path) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME, STATE_NAME):
        (out / name).unlink(missing_ok=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        for path in out.glob(f"seed-*/{name}"):  # another run's seeds would pass for this one's
            path.unlink()
