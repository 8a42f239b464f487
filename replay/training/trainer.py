"""The training loop for N seeds at a time: epochs of steps, moving average of the weights, selection by greedy reward.

It reads and writes no files; `state()` and `load_state()` exchange everything that the next epoch depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ...controllers.budget_encoder import BudgetEncoder
from ...controllers.mlp import Mlp
from ...controllers.stage1 import Stage1
from ...controllers.stage2 import Stage2
from ..recipes import TrainConfig
from .data import TrainingData
from .grpo import group_advantages
from .inputs import ReplayInputs
from .log import StepLog
from .losses import exact_loss, grpo_loss
from .policy import Batch, Draws, StackedPolicy, gather_reward
from .stacked_mlp import StackedMlp
from .warm_start import average_samples, learn_table


class Trainer:
    """Parameters, optimizer, generators, moving averages and best weights so far of every seed."""

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.data = data
        self.inputs: dict[str, ReplayInputs] = {k: v.to(self.device) for k, v in data.inputs.items()}
        networks = [_initial_networks(data, seed) for seed in config.seeds]
        self.stage1 = StackedMlp([pair[0] for pair in networks], self.device)
        self.stage2 = StackedMlp([pair[1] for pair in networks], self.device)
        self.policy = StackedPolicy(self.stage1, self.stage2)
        self.encoder: BudgetEncoder | None = None
        if config.train_budget_encoder:
            self.encoder = BudgetEncoder.from_seed(data.encoder.d_model, 0)
            self.encoder.load_state_dict(data.encoder.state_dict())
            self.encoder.to(self.device).requires_grad_(True)
            self.budget_basis = data.budget_basis.to(self.device)
            self.budgets_ms_M = torch.from_numpy(data.tables.budgets_ms_M).to(self.device)
        self.lr = config.lr_for(len(self.inputs["train"]))
        self._warm_start()
        self.optimizer = self._optimizer()
        self._unclipped_norm_N: Tensor | None = None  # of the last step's gradients before clipping
        self.initial = [tensor.detach().clone() for tensor in self._trained()]
        self.ema = [tensor.detach().clone() for tensor in self._trained()]
        self.best = [tensor.detach().clone() for tensor in self._trained()]
        seeds = len(config.seeds)
        self.best_reward_N = torch.full((seeds,), -math.inf, dtype=torch.float64)
        self.best_epoch_N = torch.zeros(seeds, dtype=torch.int64)
        self.stale_N = torch.zeros(seeds, dtype=torch.int64)  # evaluations without improvement
        self.generators = [torch.Generator().manual_seed(seed) for seed in config.seeds]
        self.epoch = 0
        self.step = 0
        samples = len(self.inputs["train"])
        self.epochs = config.epochs_for(samples)
        self.eval_every = max(1, self.epochs // config.evaluations)
        self.total_steps = self.epochs * math.ceil(samples / config.batch_size)
        self.start_reward_N = torch.full((seeds,), -math.inf, dtype=torch.float64)  # on val, of the warm start
        self.top_reward_NV: Tensor | None = None  # per sample of val, at the evaluation with the highest mean
        if config.warm_start_steps:
            self.evaluate()
            self.stale_N.zero_()  # the start is the reference of later evaluations, not one of them

    def _warm_start(self) -> None:
        """Fits every seed to the same look-up table per dataset, from the seed's own initial weights."""
        config, train, tables = self.config, self.inputs["train"], self.data.tables
        if config.warm_start_steps:
            exists_JA = torch.from_numpy(tables.space.setting_JA >= 0).to(self.device)
            dataset_N = torch.from_numpy(tables.dataset_S[tables.indices("train")]).to(self.device)
            learn_table(
                self.policy,
                self._optimizer(),
                average_samples(train, exists_JA, dataset_N),
                steps=config.warm_start_steps,
                entropy_bonus=config.entropy_bonus_start,
            )

    def _trained(self) -> list[Tensor]:
        """Returns the trained tensors: both flat ones, [N, parameters], and the encoder's parameters if trained."""
        encoder = [] if self.encoder is None else list(self.encoder.parameters())
        return [self.stage1.flat, self.stage2.flat, *encoder]

    def _optimizer(self) -> torch.optim.Adam:
        config = self.config
        flat1, flat2, *encoder = self._trained()
        return torch.optim.Adam(
            [
                {"params": [flat1, *encoder], "lr": self.lr * config.stage1_lr_ratio},
                {"params": [flat2], "lr": self.lr},
            ],
            weight_decay=config.weight_decay,
            decoupled_weight_decay=config.decoupled_weight_decay,
            fused=True,
        )

    @property
    def stopped_N(self) -> Tensor:
        """Returns which seeds have run out of patience; their best weights no longer change."""
        patience = self.config.patience
        return torch.zeros_like(self.stale_N, dtype=torch.bool) if patience is None else self.stale_N >= patience

    @property
    def done(self) -> bool:
        return self.epoch >= self.epochs or bool(self.stopped_N.all())

    @property
    def evaluation_due(self) -> bool:
        """Returns whether to call `evaluate` after the last epoch."""
        return self.epoch % self.eval_every == 0 or self.epoch == self.epochs

    def run_epoch(self, on_log: Callable[[StepLog], None] | None = None) -> None:
        """Trains on every training sample once, each under one random budget, in batches of `batch_size`."""
        config, train = self.config, self.inputs["train"]
        samples = len(train)
        order_NS = self._drawn(lambda g: torch.randperm(samples, generator=g))
        budget_NS = self._drawn(lambda g: torch.randint(train.budgets, (samples,), generator=g))
        uniform = None
        if config.estimator == "grpo":
            uniform = self._drawn(lambda g: torch.rand(samples, config.group_size, 2, generator=g))
        log = StepLog()
        for start in range(0, samples, config.batch_size):
            part = slice(start, start + config.batch_size)
            batch = Batch(order_NS[:, part], budget_NS[:, part])
            lr, entropy_bonus = self._schedule()
            if uniform is None:
                self._exact_step(batch, entropy_bonus, log)
            else:
                self._grpo_step(batch, uniform[:, part], entropy_bonus, log)
            self.step += 1
            if on_log is not None and (self.step % config.log_interval == 0 or self.step == self.total_steps):
                unclipped_N = self._unclipped_norm_N
                log.close(self.epoch + 1, self.step, lr, self._grad_norm() if unclipped_N is None else unclipped_N)
                on_log(log)
                log = StepLog()
        self.epoch += 1

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Evaluates the averaged weights greedily on `val` and updates the best weights of each seed.

        The latest weights become the best ones unless the highest reward so far exceeds theirs by more than one
        standard error of the paired difference: on a few hundred samples, the maximum over many evaluations is mostly
        noise, while later weights are better trained. Weights that do not beat the warm start never replace it.

        Returns the mean rewards [N], and the choices [N, samples, M] in the numbering of `StackedPolicy.greedy`.
        """
        with self._parameters(self.ema):
            choice, reward = self.policy.greedy(self._inputs("val"))
        sample_reward_NV = reward.double().mean(dim=2).cpu()
        reward_N = sample_reward_NV.mean(dim=1)
        if self.top_reward_NV is None:
            self.top_reward_NV = sample_reward_NV
            if self.config.warm_start_steps:
                self.best_reward_N = self.start_reward_N = reward_N
        running_N = ~self.stopped_N
        better_N = (reward_N > self.top_reward_NV.mean(dim=1)) & running_N
        kept_N = running_N & (reward_N > self.start_reward_N) & ~surpasses(self.top_reward_NV, sample_reward_NV)
        for index in kept_N.nonzero()[:, 0].tolist():
            for target, source in zip(self.best[:2], self.ema[:2], strict=True):
                target[index] = source[index]
            for target, source in zip(self.best[2:], self.ema[2:], strict=True):
                target.copy_(source)
        self.top_reward_NV = torch.where(better_N[:, None], sample_reward_NV, self.top_reward_NV)
        self.best_reward_N = torch.where(kept_N, reward_N, self.best_reward_N)
        self.best_epoch_N[kept_N] = self.epoch
        self.stale_N = torch.where(better_N, 0, self.stale_N + running_N.long())
        return reward_N, choice.cpu()

    def state(self) -> dict[str, Tensor]:
        """Returns everything that the following epochs depend on, by name."""
        state = {
            "epoch": torch.tensor(self.epoch),
            "step": torch.tensor(self.step),
            "best_reward": self.best_reward_N,
            "best_epoch": self.best_epoch_N,
            "stale": self.stale_N,
        }
        if self.top_reward_NV is not None:
            state["top_reward"] = self.top_reward_NV
        state |= {f"generator.{i}": generator.get_state() for i, generator in enumerate(self.generators)}
        for name, tensors in (("trained", self._trained()), ("ema", self.ema), ("best", self.best)):
            state |= {f"{name}.{i}": tensor.detach() for i, tensor in enumerate(tensors)}
        for i, tensor in enumerate(self._trained()):
            for name, value in self.optimizer.state.get(tensor, {}).items():
                state[f"optimizer.{i}.{name}"] = value
        return {name: tensor.cpu().clone().contiguous() for name, tensor in state.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of `state()`; the following epochs are bit-equal to those of an uninterrupted run."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.best_reward_N = state["best_reward"].clone()
        self.best_epoch_N, self.stale_N = state["best_epoch"].clone(), state["stale"].clone()
        if "top_reward" in state:
            self.top_reward_NV = state["top_reward"].clone()
        for i, generator in enumerate(self.generators):
            generator.set_state(state[f"generator.{i}"])
        for name, tensors in (("trained", self._trained()), ("ema", self.ema), ("best", self.best)):
            for i, tensor in enumerate(tensors):
                tensor.copy_(state[f"{name}.{i}"])
        for i, tensor in enumerate(self._trained()):
            prefix = f"optimizer.{i}."
            found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if found:
                self.optimizer.state[tensor] = {k: v.clone().to(self.device) for k, v in found.items()}

    def write_best(self, seed_index: int, stage1: Stage1, stage2: Stage2, encoder: BudgetEncoder | None) -> None:
        """Copies the best parameters of one seed into modules."""
        self.stage1.write_to(stage1.head, seed_index, self.best[0])
        self.stage2.write_to(stage2.head, seed_index, self.best[1])
        if encoder is not None:
            with torch.no_grad():
                for target, source in zip(encoder.parameters(), self.best[2:], strict=True):
                    target.copy_(source)

    def _drawn(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Returns one draw per seed, stacked; the draws of a seed do not depend on the other seeds."""
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)

    def _schedule(self) -> tuple[float, float]:
        """Sets the learning rates of this step; returns the one of Stage2 and the entropy bonus."""
        config = self.config
        done = self.step / self.total_steps
        scale = 1.0
        if config.lr_schedule == "cosine":
            warmup = max(1.0, config.warmup_share * self.total_steps)
            scale = min(1.0, (self.step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * done))
        self.optimizer.param_groups[0]["lr"] = self.lr * config.stage1_lr_ratio * scale
        self.optimizer.param_groups[1]["lr"] = self.lr * scale
        bonus = config.entropy_bonus + (config.entropy_bonus_start - config.entropy_bonus) * (1.0 - done)
        return self.lr * scale, bonus

    def _exact_step(self, batch: Batch, entropy_bonus: float, log: StepLog) -> None:
        loss, value_NB, entropy_N = exact_loss(self.policy, self._inputs("train"), batch, entropy_bonus=entropy_bonus)
        self._descend(loss)
        log.add(value_NB[..., None], {"entropy": entropy_N})

    def _grpo_step(self, batch: Batch, uniform_NBG2: Tensor, entropy_bonus: float, log: StepLog) -> None:
        config = self.config
        train = self._inputs("train")
        draws = self.policy.draw(train, batch, uniform_NBG2)
        reward_NBG = gather_reward(train, batch, draws.choice1_NBG, draws.choice2_NBG)
        advantage_NBG = group_advantages(reward_NBG, config.scale_rewards, config.advantage_clip)
        reference = self._reference_log_prob(batch, draws) if config.beta else None
        old = draws.log_prob_NBG.detach() if config.num_iterations > 1 else None
        for iteration in range(config.num_iterations):
            if iteration:
                draws = self.policy.of_draws(self._inputs("train"), batch, draws)
            loss, columns = grpo_loss(
                draws,
                advantage_NBG,
                epsilon=config.epsilon,
                beta=config.beta,
                entropy_bonus=entropy_bonus,
                old_log_prob_NBG=old,
                reference_log_prob_NBG=reference,
            )
            self._descend(loss)
        log.add(reward_NBG, columns)

    @torch.no_grad()
    def _reference_log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """Returns the log-probabilities of the draws under the initial parameters, [N, B, G]."""
        with self._parameters(self.initial):
            return self.policy.of_draws(self._inputs("train"), batch, draws).log_prob_NBG

    def _descend(self, loss: Tensor) -> None:
        """Takes one step of the optimizer along the gradient of the loss."""
        for parameter in self._trained()[2:]:  # of the encoder; the stages overwrite their gradients
            parameter.grad = None
        loss.backward()
        self._update()

    @torch.no_grad()
    def _update(self) -> None:
        config = self.config
        if config.max_grad_norm is not None:
            self._unclipped_norm_N = self._grad_norm()
            scale_N = config.max_grad_norm / self._unclipped_norm_N.clamp(min=config.max_grad_norm)
            for grad in (self.stage1.grad, self.stage2.grad):
                grad *= scale_N[:, None]
        self.optimizer.step()
        for mean, tensor in zip(self.ema, self._trained(), strict=True):
            if config.ema_decay:
                # The decay starts low; otherwise the initial weights would dominate the average of a short run.
                mean.lerp_(tensor, 1.0 - min(config.ema_decay, (1 + self.step) / (10 + self.step)))
            else:
                mean.copy_(tensor)

    def _grad_norm(self) -> Tensor:
        """Returns the norm of each seed's gradient, over both stages, [N]."""
        squares = [grad.square().sum(dim=1) for grad in (self.stage1.grad, self.stage2.grad)]
        return torch.stack(squares).sum(dim=0).sqrt()

    def _inputs(self, split: str) -> ReplayInputs:
        """Returns the inputs of a split, with the current budget features if the encoder is trained."""
        if self.encoder is None:
            return self.inputs[split]
        return replace(self.inputs[split], budget_MF=self.budget_basis(self.encoder(self.budgets_ms_M)))

    @contextmanager
    def _parameters(self, tensors: list[Tensor]) -> Iterator[None]:
        """Runs the body with these parameters, then restores the current ones."""
        kept = [tensor.detach().clone() for tensor in self._trained()]
        self._set(tensors)
        try:
            yield
        finally:
            self._set(kept)

    def _set(self, tensors: list[Tensor]) -> None:
        for target, source in zip(self._trained(), tensors, strict=True):
            target.data.copy_(source)


def _initial_networks(data: TrainingData, seed: int) -> tuple[Mlp, Mlp]:
    """Returns the initial perceptrons of both stages; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    space, d_model = data.tables.space, data.tables.d_model
    heads = Stage1(d_model, space).head, Stage2(d_model, space).head
    for head in heads:
        head.reset(generator)
    return heads


def surpasses(reward_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Returns for which seeds [N] the mean reward exceeds the other by more than a standard error of the difference."""
    difference_NV = reward_NV - other_NV
    samples = difference_NV.shape[1]
    if samples < 2:
        return difference_NV.mean(dim=1) > 0
    error_N = difference_NV.std(dim=1) / math.sqrt(samples)
    return difference_NV.mean(dim=1) > error_N
