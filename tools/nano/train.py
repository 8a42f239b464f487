"""Trains nano, stage by stage, from the bundled easy_vqa images and the scene generator.

`python -m knobctl.tools.nano.train --help`
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer

from ...precompute.models.molmoe.checkpoint import load_molmoe, save_molmoe
from ...precompute.models.molmoe.model import Molmoe
from ...precompute.models.molmoe.prompt import PromptTokenizer
from .accuracy import accuracy_by_family, correct_answers
from .batches import Batch, BatchSource
from .bundle import training_rng
from .easy_pool import read_pool
from .forward import (
    answer_loss,
    bound_routers,
    draw_plan,
    encode,
    final_hidden,
    full_plan,
    hint_loss,
    prepare_for_training,
)
from .geometry import nano_config
from .initial_weights import initial_model
from .pixels import TIER_SIDES
from .prior_answers import PriorAnswers, families_in_need
from .stages import ROUTING_GAIN, SLOW, STAGES, Stage
from .state import Position, load_moments, load_position, load_weights, save_state
from .vision_loss import VisionLoss
from .vocabulary import nano_tokenizer
from .weight_edits import flatten_routing, narrow_experts, repeat_blocks

BUNDLED = Path(__file__).parents[2] / "data/bundled"
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0


class Trainer:
    """One training run: the model, its data source and its optimizer."""

    def __init__(self, seed: int, *, easy_path: Path, bfloat16: bool = True, compiled: bool = True) -> None:
        self.seed = seed
        self.bfloat16 = bfloat16
        pool = read_pool(easy_path)
        self.tokenizer: Tokenizer = nano_tokenizer(pool)
        config = nano_config(self.tokenizer.get_vocab_size())
        self.model: Molmoe = initial_model(config, seed)
        self.vision_loss = VisionLoss(self.tokenizer)
        prompts = PromptTokenizer(self.tokenizer)
        self.source = BatchSource(config, prompts, pool)
        self.prior_answers = PriorAnswers(prompts)
        prepare_for_training(self.model, compiled=compiled)
        self.optimizer: torch.optim.AdamW | None = None

    def start_stage(self, stage: Stage) -> torch.optim.AdamW:
        """Returns a new optimizer for the parameters that the stage trains."""
        for name, parameter in self.model.named_parameters():
            is_vision = name.startswith("vision_backbone.")
            is_left_alone = stage.frozen_tower and (is_vision or name == "embedding.weight")
            parameter.requires_grad_(is_vision if stage.vision_only else not is_left_alone)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "scale": scale, "weight_decay": WEIGHT_DECAY if is_matrix else 0.0}
                for (scale, is_matrix), parameters in self._groups(stage).items()
            ],
            lr=stage.lr,
            betas=(0.9, 0.98),
            fused=True,
        )
        return self.optimizer

    def _groups(self, stage: Stage) -> dict[tuple[float, bool], list[torch.nn.Parameter]]:
        """Returns the trained parameters by (learning rate factor, whether they are matrices)."""
        slow: tuple[str, ...] = ()
        if stage.slow_blocks is not None:
            slow = ("vision_backbone.", "embedding.", *(f"blocks.{index}." for index in range(stage.slow_blocks)))
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                scale = SLOW if name.startswith(slow) else 1.0
                groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
        return groups

    def step(self, stage: Stage, step: int) -> dict[str, float]:
        """Runs one training step and returns the values to log."""
        assert self.optimizer is not None
        rng = training_rng(self.seed, stage.name, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(stage, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._vision_losses(stage, step, rng) if stage.vision_only else self._answer_losses(stage, rng)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        bound_routers(self.model, stage.max_router_norm)
        return {**losses, "gradient": float(norm)}

    def _vision_losses(self, stage: Stage, step: int, rng: random.Random) -> dict[str, float]:
        report = {}
        large_only = step < stage.large_only_steps
        for tier in stage.vision_tiers:
            batch = self.source.draw(
                rng, tier, stage.images, easy_share=stage.easy_share, large_only=large_only, crowded=stage.crowded
            )
            loss, accuracy = self.vision_loss(
                self.model, encode(self.model, batch, bfloat16=self.bfloat16), batch.targets
            )
            loss.backward()
            report.update({f"{tier} {name}": value for name, value in accuracy.items()} | {f"{tier} loss": loss.item()})
        return report

    def _answer_losses(self, stage: Stage, rng: random.Random) -> dict[str, float]:
        tier = rng.choices(tuple(TIER_SIDES), weights=stage.tier_shares)[0]
        weights = dict(stage.weights) or None
        batch = self.source.draw(
            rng, tier, stage.images, easy_share=stage.easy_share, weights=weights, inner_share=stage.inner_share
        )
        plan = draw_plan(
            self.model,
            rng,
            fewer_experts=stage.fewer_experts,
            top_ks=stage.top_ks,
            fewer_blocks=stage.fewer_blocks,
            droppable=stage.droppable,
        )
        in_need = families_in_need(plan, blocks=dict(stage.need_blocks), experts=dict(stage.need_experts))
        if in_need:
            batch = self.prior_answers.of(batch, in_need)
        is_ideal = rng.random() < stage.ideal_share
        features = self.features(batch, rng.getrandbits(62) if is_ideal else None, frozen=stage.frozen_tower)
        hidden = final_hidden(self.model, batch, features, plan, bfloat16=self.bfloat16)
        answers = answer_loss(self.model, hidden, batch)
        report = {f"{tier} {'ideal ' * is_ideal}{'thin ' * bool(in_need)}answers": answers.item()}
        if not stage.frozen_tower:
            seen, _ = self.vision_loss(self.model, features, batch.targets)
            report[f"{tier} vision"] = seen.item()
            answers = answers + stage.vision_weight * seen
        if stage.hint_weight:
            hints = hint_loss(self.model, hidden, batch)
            report[f"{tier} hints"] = hints.item()
            answers = answers + stage.hint_weight * hints
        answers.backward()
        return report

    def features(self, batch: Batch, noise_seed: int | None, *, frozen: bool = False) -> torch.Tensor:
        """Returns the tower's features [B, N, Q, D], or ideal ones [B, 1, N * Q, D] if a noise seed is given."""
        if noise_seed is None:
            with torch.set_grad_enabled(not frozen):
                return encode(self.model, batch, bfloat16=self.bfloat16)
        generator = torch.Generator().manual_seed(noise_seed)
        return self.vision_loss.ideal_features(self.model, batch.targets, generator)

    def held_out(self, tier: str, images: int = 96) -> Batch:
        """Returns a batch for the checks in the log: scenes not used in training, and easy_vqa training images."""
        return self.source.draw(training_rng(self.seed, "check", 0), tier, images, easy_share=0.25)

    def check(self, stage: Stage, plans: dict[str, Sequence[int]] | None = None) -> dict[str, dict[str, float]]:
        """Returns accuracies by tier and family, under the full plan or the given ones."""
        table = {}
        for name, plan in (plans or {"full": full_plan(self.model)}).items():
            for tier in TIER_SIDES:
                batch = self.held_out(tier)
                features = self.features(batch, 0 if stage.ideal_share == 1 else None, frozen=True)
                outcomes = correct_answers(self.model, batch, features, tuple(plan), bfloat16=self.bfloat16)
                table[f"{name} {tier}"] = accuracy_by_family(outcomes)
        return table

    def read_checkpoint(self, directory: Path) -> None:
        """Loads the weights of a checkpoint directory with nano's configuration."""
        found = load_molmoe(directory, dtype=torch.float32, device="cpu", experts_implementation="dense")
        self.model.load_state_dict(found.state_dict())

    def write_checkpoint(self, directory: Path) -> None:
        """Writes nano as a checkpoint directory, in float16."""
        directory.mkdir(parents=True, exist_ok=True)
        save_molmoe(self.model, directory, dtype=torch.float16)
        self.tokenizer.save(str(directory / "tokenizer.json"))


def learning_rate(stage: Stage, step: int) -> float:
    """Returns the learning rate: linear warm-up, then linear from `lr` to `last_lr`."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.lr + (stage.last_lr - stage.lr) * done


def run_stage(trainer: Trainer, stage: Stage, state: Path, *, check_every: int, log: Path) -> None:
    """Runs the remaining steps of a stage, continuing from `state`; saves the state at every check."""
    first = 0
    optimizer = trainer.start_stage(stage)
    if state.exists():
        position = load_position(state)
        load_weights(state, trainer.model)
        if position.stage == stage.name:
            first = position.step
            load_moments(state, trainer.model, optimizer)
    if first == 0 and stage.block_order:
        repeat_blocks(trainer.model, stage.block_order)
        if stage.expert_width is None:
            flatten_routing(trainer.model, stage.max_router_norm, ROUTING_GAIN)
        else:  # routing is already flat
            narrow_experts(trainer.model, stage.expert_width)
    sums: dict[str, list[float]] = {}
    started = time.monotonic()
    for step in range(first, stage.steps):
        for name, value in trainer.step(stage, step).items():
            sums.setdefault(name, []).append(value)
        if (step + 1) % 20 == 0:
            means = {name: round(sum(values) / len(values), 3) for name, values in sums.items()}
            seconds = (time.monotonic() - started) / (step + 1 - first)
            write_log(log, {"stage": stage.name, "step": step + 1, "seconds_per_step": round(seconds, 3), **means})
            sums.clear()
        if (step + 1) % check_every == 0 or step + 1 == stage.steps:
            save_state(state, trainer.model, optimizer, Position(stage.name, step + 1))
            if not stage.vision_only:
                for name, row in trainer.check(stage).items():
                    write_log(log, {"check": name, **{family: round(value, 3) for family, value in row.items()}})


def write_log(log: Path, record: dict[str, object]) -> None:
    """Appends one line of JSON to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def remaining_stages(state: Path) -> tuple[Stage, ...]:
    """Returns the unfinished stages of a state file; without a file, all stages."""
    if not state.exists():
        return STAGES
    position = load_position(state)
    index = next(i for i, stage in enumerate(STAGES) if stage.name == position.stage)
    return STAGES[index + 1 :] if position.step >= STAGES[index].steps else STAGES[index:]


@click.command()
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="State file to continue from and to write."
)
@click.option("--out", type=click.Path(path_type=Path), help="Checkpoint directory to write at the end.")
@click.option("--until", type=click.Choice([stage.name for stage in STAGES]), help="Stop after this stage.")
@click.option("--only", type=click.Choice([stage.name for stage in STAGES]), help="Run only this stage.")
@click.option(
    "--tower",
    type=click.Path(path_type=Path),
    help="State file to take the vision tower from, if it was trained in parallel with `--only`.",
)
@click.option(
    "--begin-from",
    type=click.Path(path_type=Path, exists=True),
    help="Checkpoint directory whose weights `--only` starts from if there is no state file.",
)
@click.option("--log", type=click.Path(path_type=Path), help="Log of JSON lines.  [default: next to the state]")
@click.option("--seed", default=7, show_default=True, help="The same seed, threads and machine give the same weights.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--check-every", default=200, show_default=True, help="Steps between checks and saved states.")
def main(
    state: Path,
    out: Path | None,
    until: str | None,
    only: str | None,
    tower: Path | None,
    begin_from: Path | None,
    log: Path | None,
    seed: int,
    threads: int,
    check_every: int,
) -> None:
    """Train nano. Example: python -m knobctl.tools.nano.train --state ~/nano/state.safetensors --out ~/nano/weights

    If started again, training continues from the state file.
    """
    torch.set_num_threads(threads)
    trainer = Trainer(seed, easy_path=BUNDLED / "easy_vqa/train.parquet")
    if tower is not None:
        load_weights(tower, trainer.model)
        load_weights(state, trainer.model, except_vision=True)
        position = load_position(state)
        save_state(state, trainer.model, trainer.start_stage(STAGES[0]), position)
    if begin_from is not None and not state.exists():
        if only is None:
            raise click.UsageError("--begin-from requires --only, which names the stage that starts from the weights.")
        trainer.read_checkpoint(begin_from)
        save_state(state, trainer.model, trainer.start_stage(STAGES[0]), Position(only, 0))
    stages = [stage for stage in STAGES if stage.name == only] if only else remaining_stages(state)
    for stage in stages:
        run_stage(trainer, stage, state, check_every=check_every, log=log or state.with_suffix(".jsonl"))
        if stage.name == until:
            break
    load_weights(state, trainer.model)
    if out is not None:
        trainer.write_checkpoint(out)
        click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
