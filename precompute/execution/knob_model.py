"""The frozen model with its knobs: from a sample and a tier to latency tokens, from a plan to an answer.

Precompute and the live executor both run the model through this class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...controllers.budget_encoder import BudgetEncoder
from ...data.datasets.images import decode_image
from ...data.errors import DatasetError, ImportanceError, UnknownSetting
from ...data.knobs import KnobSetting, KnobSpace
from ...data.plans import BlockPlan, ImportanceScores, block_plan, native_plan
from ...data.samples import ModelInput, Sample
from ...data.tasks import Task
from ...devices import single_thread
from ..models.backbone import Backbone, EmbeddedPrompt, Geometry, Prompt, View
from ..models.loading import LoadedModel
from .answer_sweep import answer_alone
from .token_pass import PromptState, make_probes, token_pass


@dataclass(eq=False)
class KnobModel:
    """A loaded model with a knob space and, once they are fixed, importance scores and a budget grid.

    Args:
        tasks: by dataset name.
        importance: None before the scores are known; then no setting has a plan.
        budgets_ms: normalised (`data/budgets.py`). Before the grid is known, requests carry the probe of one arbitrary
            budget: answers and latencies do not depend on it.

    Raises:
        UnknownSetting: the model cannot run the knob space.
        ImportanceError: the scores were measured on another model.
    """

    loaded: LoadedModel
    _: KW_ONLY
    space: KnobSpace
    encoder: BudgetEncoder
    tasks: Mapping[str, Task] = field(default_factory=dict)
    importance: ImportanceScores | None = None
    budgets_ms: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_space(self.space, self.model.geometry)
        if self.importance is not None:
            check_importance(self.importance, self.model.geometry)

    def with_run(self, importance: ImportanceScores, budgets_ms: tuple[float, ...] = (1.0,)) -> KnobModel:
        """Returns the same model with a run's importance scores and budgets."""
        return replace(self, importance=importance, budgets_ms=budgets_ms)

    @property
    def model(self) -> Backbone:
        return self.loaded.model

    @property
    def native(self) -> BlockPlan:
        """The plan of the whole model."""
        return native_plan(self.model.geometry.native_top_k)

    @property
    def num_blocks(self) -> int:
        return self.model.geometry.n_blocks

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """The insertion positions. Contains no None: only imported results lack positions."""
        assert None not in self.space.insertion_positions, "a model's knob space has insertion positions"
        return tuple(position for position in self.space.insertion_positions if position is not None)

    @cached_property
    def probe_MD(self) -> Tensor:
        """The probes of the whole grid."""
        return self.probes(self.budgets_ms)

    def probes(self, budgets_ms: Sequence[float]) -> Tensor:
        """Returns the probes [M, D] of these budgets."""
        return make_probes(self.model, self.encoder, budgets_ms)

    def plan(self, position: int | None, top_k: int, num_blocks: int) -> BlockPlan:
        """Returns the plan of (position, top-k, num_blocks). Raises UnknownSetting if it cannot run."""
        assert self.importance is not None, "plans need importance scores"
        geometry = self.model.geometry
        return block_plan(
            position,
            top_k,
            num_blocks,
            importance=self.importance,
            native_top_k=geometry.native_top_k,
            always_run=geometry.always_run,
        )

    @cached_property
    def plans(self) -> dict[KnobSetting, BlockPlan]:
        """The plan of every setting, in the order of the knob space."""
        return {s: self.plan(s.insertion_position, s.top_k, s.num_blocks) for s in self.space.settings}

    def task(self, sample: Sample) -> Task:
        if sample.dataset not in self.tasks:
            raise DatasetError(
                f"dataset `{sample.dataset}` of sample {sample.sample_id} has no metric and token limit."
            )
        return self.tasks[sample.dataset]

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns the mean of the question's word embeddings, [D], without the prompt template and style."""
        with _naming(sample):
            ids = self.model.encode(sample.question)
        with torch.inference_mode():
            embedded_TD = self.model.word_embeddings(torch.tensor(ids, device=self.model.device))
            feature_D: NDArray[np.float32] = embedded_TD.float().mean(dim=0).cpu().numpy()
        return feature_D

    def pixels(self, sample: Sample) -> NDArray[np.uint8]:
        """Returns the sample's image, uint8 [height, width, 3]. Raises DatasetError when it cannot be read."""
        return decode_image(sample.image.read_bytes(), sample.image.ref)

    def view(self, rgb: NDArray[np.uint8], tier: str) -> View:
        """Returns how a tier presents an image."""
        return view_in_tier(self.model, self.space, tier, rgb.shape[0], rgb.shape[1])

    def prepare(self, sample: Sample, rgb: NDArray[np.uint8], view: View, max_new_tokens: int | None = None) -> Prompt:
        """Encodes image and question as the model's input, on its device.

        Args:
            max_new_tokens: that must fit after the prompt; None: the task's limit.
        """
        task = self.task(sample)
        with _naming(sample), single_thread():
            prompt = self.model.prepare(sample.question, task.style, rgb, view)
            check_length(self.model.geometry, prompt.length, max_new_tokens or task.max_new_tokens)
        return prompt

    def prompts(self, sample: Sample) -> SamplePrompts:
        """Decodes the sample's image and returns its prompts by tier. Raises DatasetError if it cannot be read."""
        return SamplePrompts(self, sample)

    def prepare_tier(self, sample: Sample, tier: str) -> tuple[Prompt, PromptState]:
        """Takes one sample in one tier from its image file through the token pass."""
        prepared = self.prompts(sample)[tier]
        _, state = self.token_pass(prepared)
        return prepared, state

    @torch.inference_mode()
    def embed(self, prepared: Prompt) -> EmbeddedPrompt:
        """Runs the vision encoder and returns the first block's input."""
        return self.model.embed(prepared)

    def token_pass(self, prepared: Prompt, probe_MD: Tensor | None = None) -> tuple[NDArray[np.float16], PromptState]:
        """Runs vision and the blocks up to the last insertion position, on one thread.

        Args:
            probe_MD: the probes; None: those of the budget grid.

        Returns:
            Latency tokens [P, M, D] and the prompt's state.
        """
        with single_thread():
            return token_pass(
                self.model, self.embed(prepared), self.probe_MD if probe_MD is None else probe_MD, self.positions
            )

    def answer(self, state: PromptState, plan: BlockPlan, task: Task) -> tuple[int, ...]:
        """Decodes the answer under one plan at batch 1."""
        return answer_alone(self.model, state, plan, max_new_tokens=task.max_new_tokens)

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the answer's text."""
        return self.model.decode(token_ids)


class SamplePrompts:
    """The prompts of one sample, each prepared on first use; tiers with equal views share one prompt."""

    def __init__(self, knobs: KnobModel, sample: Sample) -> None:
        self.sample = sample
        self._knobs, self._rgb = knobs, knobs.pixels(sample)
        self._by_view: dict[View, Prompt] = {}

    def __getitem__(self, tier: str) -> Prompt:
        view = self._knobs.view(self._rgb, tier)
        if view not in self._by_view:
            self._by_view[view] = self._knobs.prepare(self.sample, self._rgb, view)
        return self._by_view[view]


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Prefixes a DatasetError with the sample's id."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{sample.sample_id}: {error}") from error


def check_input(model: Backbone, space: KnobSpace, row: ModelInput) -> None:
    """Raises DatasetError for a row that the model cannot run in every tier."""
    model.encode(row.question)
    views = {view_in_tier(model, space, tier, row.height, row.width) for tier in space.tiers}
    longest = max(model.prompt_size(row.question, row.style, view).length for view in views)
    check_length(model.geometry, longest, row.max_new_tokens)


def check_length(geometry: Geometry, length: int, max_new_tokens: int) -> None:
    """Raises DatasetError if prompt and answer together are longer than the model allows."""
    limit = geometry.max_positions
    if length + max_new_tokens > limit:
        raise DatasetError(
            f"the prompt has {length} positions and the answer up to {max_new_tokens}, and the model takes {limit}: "
            "shorten the question, or lower --max-new-tokens."
        )


def view_in_tier(model: Backbone, space: KnobSpace, tier: str, height: int, width: int) -> View:
    """Returns how a tier presents an image of this size. Raises UnknownSetting for an unknown tier."""
    if tier not in space.tiers or space.tier_ranges is None:
        raise UnknownSetting(f"tier {tier!r} is not in the knob space: {space}")
    return model.view(height, width, space.tier_ranges[space.tiers.index(tier)])


def check_space(space: KnobSpace, geometry: Geometry) -> None:
    """Raises UnknownSetting if the model cannot run the knob space."""
    name, n_blocks = geometry.name, geometry.n_blocks
    positions = [position for position in space.insertion_positions if position is not None]
    if not positions:
        raise UnknownSetting("the knob space has no insertion positions, so no latency token can be read.")
    if not space.settings:
        raise UnknownSetting(
            f"no setting can run: num_blocks {list(space.num_blocks)} are below the insertion positions {positions}."
        )
    if max(space.num_blocks) > n_blocks or max(positions) > n_blocks:
        raise UnknownSetting(
            f"{name} has {n_blocks} blocks, but the knob space asks for num_blocks up to "
            f"{max(space.num_blocks)} and positions up to {max(positions)}."
        )
    for setting in space.settings:
        before = range(setting.insertion_position or 0)
        required = {*before, *geometry.always_run}
        if setting.num_blocks < len(required):
            raise UnknownSetting(
                f"num_blocks {setting.num_blocks} with insertion position {setting.insertion_position} is too small "
                f"for {name}: its blocks {sorted(geometry.always_run)} always run, which makes {len(required)} blocks."
            )
    if max(space.top_k) > geometry.n_experts:
        raise UnknownSetting(
            f"{name} has {geometry.n_experts} experts, but the knob space asks for {max(space.top_k)}."
        )
    if max(space.top_k) > geometry.least_top_k:
        raise UnknownSetting(
            f"{name} was trained with {geometry.least_top_k} experts per token, but the knob space asks for "
            f"{max(space.top_k)}: a higher top-k than the native one is not supported."
        )
    if space.tier_ranges is None:
        raise UnknownSetting(f"the knob space names tiers {list(space.tiers)} without their ranges.")
    if space.tier_unit != geometry.tier_unit:
        raise UnknownSetting(
            f"the tiers of the knob space are ranges of {space.tier_unit.replace('_', ' ')}, but those of {name} are "
            f"ranges of {geometry.tier_unit.replace('_', ' ')}."
        )


def check_importance(importance: ImportanceScores, geometry: Geometry) -> None:
    """Raises ImportanceError if the scores are for another number of blocks."""
    if importance.n_blocks != geometry.n_blocks:
        source = f" of {importance.source}" if importance.source else ""
        raise ImportanceError(
            f"importance scores{source} name {importance.n_blocks} blocks, but {geometry.name} has "
            f"{geometry.n_blocks}: give scores of this model, or leave --importance out."
        )
