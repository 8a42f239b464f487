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
from ...data.plans import BlockPlan, ImportanceScores, block_plan
from ...data.samples import ModelInput, Sample
from ...data.tasks import Task
from ...devices import single_thread
from ..models.loading import LoadedModel
from ..models.molmoe.config import MolmoeConfig
from ..models.molmoe.model import Molmoe
from ..models.molmoe.preprocess import image_length, preprocess_image
from ..models.molmoe.tiling import Tiling, choose_tiling
from .answer_sweep import answer_alone
from .token_pass import PromptState, make_probes, token_pass


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """The model's input for one sample in one tier, on the model's device."""

    tiling: Tiling
    crops_1NPX: Tensor
    masks_1NP: Tensor
    input_ids_1S: Tensor
    image_input_idx_1NQ: Tensor
    vision_tokens: int  # pooled features in the sequence
    text_tokens: int  # of the prompt, excluding image tokens and the begin token

    @property
    def length(self) -> int:
        """Prompt positions, S."""
        return int(self.input_ids_1S.shape[1])


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
        check_space(self.space, self.loaded)
        if self.importance is not None:
            check_importance(self.importance, self.loaded)

    def with_run(self, importance: ImportanceScores, budgets_ms: tuple[float, ...] = (1.0,)) -> KnobModel:
        """Returns the same model with a run's importance scores and budgets."""
        return replace(self, importance=importance, budgets_ms=budgets_ms)

    @property
    def model(self) -> Molmoe:
        return self.loaded.model

    @property
    def end_id(self) -> int:
        return self.loaded.tokenizer.special.end

    @property
    def native_top_k(self) -> int:
        return self.model.config.native_top_k

    @property
    def num_blocks(self) -> int:
        return self.model.config.num_blocks

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
        return block_plan(position, top_k, num_blocks, importance=self.importance, native_top_k=self.native_top_k)

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
            ids = question_ids(self.loaded, sample.question)
        with torch.inference_mode():
            embedded_TD = self.model.word_embeddings(torch.tensor(ids, device=self.model.device))
            feature_D: NDArray[np.float32] = embedded_TD.float().mean(dim=0).cpu().numpy()
        return feature_D

    def pixels(self, sample: Sample) -> NDArray[np.uint8]:
        """Returns the sample's image, uint8 [height, width, 3]. Raises DatasetError when it cannot be read."""
        return decode_image(sample.image.read_bytes(), sample.image.ref)

    def tiling(self, rgb: NDArray[np.uint8], tier: str) -> Tiling:
        """Returns the (rows, columns) of crops of an image in a tier."""
        return tiling_in_tier(self.space, tier, rgb.shape[0], rgb.shape[1], self.model.config)

    def prepare(self, sample: Sample, rgb: NDArray[np.uint8], tiling: Tiling) -> PreparedPrompt:
        """Cuts the image into crops, encodes the prompt, and moves both to the device."""
        tokenizer, device = self.loaded.tokenizer, self.model.device
        with single_thread():
            image = preprocess_image(rgb, tiling, self.model.config, tokenizer.special)
        task = self.task(sample)
        with _naming(sample):
            prompt = prompt_ids(self.loaded, sample.question, task.style)
            check_length(self.loaded, 1 + len(image.token_ids) + len(prompt), task.max_new_tokens)
        input_ids = torch.cat(
            [torch.tensor([tokenizer.special.begin]), image.token_ids, torch.tensor(prompt, dtype=torch.int64)]
        )
        return PreparedPrompt(
            tiling=tiling,
            crops_1NPX=image.crops[None].to(device),
            masks_1NP=image.masks[None].to(device),
            input_ids_1S=input_ids[None].to(device),
            image_input_idx_1NQ=image.image_input_idx[None].to(device),
            vision_tokens=int((image.image_input_idx >= 0).sum()),
            text_tokens=len(prompt),
        )

    def prompts(self, sample: Sample) -> SamplePrompts:
        """Decodes the sample's image and returns its prompts by tier. Raises DatasetError if it cannot be read."""
        return SamplePrompts(self, sample)

    def prepare_tier(self, sample: Sample, tier: str) -> tuple[PreparedPrompt, PromptState]:
        """Takes one sample in one tier from its image file through the token pass."""
        prepared = self.prompts(sample)[tier]
        _, state = self.token_pass(prepared)
        return prepared, state

    @torch.inference_mode()
    def embed(self, prepared: PreparedPrompt) -> Tensor:
        """Runs the vision encoder and returns the first block's input [1, S, D]."""
        features = self.model.encode_images(prepared.crops_1NPX, prepared.masks_1NP)
        return self.model.embed(prepared.input_ids_1S, features, prepared.image_input_idx_1NQ)

    def token_pass(
        self, prepared: PreparedPrompt, probe_MD: Tensor | None = None
    ) -> tuple[NDArray[np.float16], PromptState]:
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
        return answer_alone(self.model, state, plan, max_new_tokens=task.max_new_tokens, end_id=self.end_id)

    def text(self, token_ids: Sequence[int]) -> str:
        """Returns the answer's text."""
        return self.loaded.tokenizer.decode(token_ids)


class SamplePrompts:
    """The prompts of one sample, each prepared on first use; tiers with equal views share one prompt."""

    def __init__(self, knobs: KnobModel, sample: Sample) -> None:
        self.sample = sample
        self._knobs, self._rgb = knobs, knobs.pixels(sample)
        self._by_tiling: dict[Tiling, PreparedPrompt] = {}

    def __getitem__(self, tier: str) -> PreparedPrompt:
        tiling = self._knobs.tiling(self._rgb, tier)
        if tiling not in self._by_tiling:
            self._by_tiling[tiling] = self._knobs.prepare(self.sample, self._rgb, tiling)
        return self._by_tiling[tiling]


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Prefixes a DatasetError with the sample's id."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{sample.sample_id}: {error}") from error


def check_input(loaded: LoadedModel, space: KnobSpace, row: ModelInput) -> None:
    """Raises DatasetError for a row that the model cannot run in every tier."""
    question_ids(loaded, row.question)
    prompt = prompt_ids(loaded, row.question, row.style)
    config = loaded.model.config
    tilings = {tiling_in_tier(space, tier, row.height, row.width, config) for tier in space.tiers}
    image = max(image_length(tiling, config) for tiling in tilings)
    check_length(loaded, 1 + image + len(prompt), row.max_new_tokens)


def question_ids(loaded: LoadedModel, question: str) -> list[int]:
    """Returns the question's token ids, without prompt template and style. Raises DatasetError if there are none."""
    ids = _known_ids(loaded, loaded.tokenizer.encode(question), question)
    if not ids:
        raise DatasetError(f"the question {question[:40]!r} has no token that the model knows: rephrase it.")
    return ids


def prompt_ids(loaded: LoadedModel, question: str, style: str | None) -> list[int]:
    """Returns the prompt's token ids, without the begin token and the image tokens."""
    return _known_ids(loaded, loaded.tokenizer.encode_prompt(question, style), question)


def _known_ids(loaded: LoadedModel, ids: list[int], question: str) -> list[int]:
    """Returns `ids`. Raises DatasetError if one has no embedding."""
    rows = loaded.model.config.embedding_size + loaded.model.config.additional_vocab_size
    if ids and max(ids) >= rows:
        raise DatasetError(
            f"the question {question[:40]!r} has token {max(ids)}, but the model has embeddings of {rows} tokens only."
        )
    return ids


def check_length(loaded: LoadedModel, length: int, max_new_tokens: int) -> None:
    """Raises DatasetError if prompt and answer together are longer than the model allows."""
    limit = loaded.model.config.max_position_embeddings
    if length + max_new_tokens > limit:
        raise DatasetError(
            f"the prompt has {length} positions and the answer up to {max_new_tokens}, and the model takes {limit}: "
            "shorten the question, or lower --max-new-tokens."
        )


def tiling_in_tier(space: KnobSpace, tier: str, height: int, width: int, config: MolmoeConfig) -> Tiling:
    """Returns the (rows, columns) of crops of an image of this size. Raises UnknownSetting for an unknown tier."""
    if tier not in space.tiers or space.tier_crops is None:
        raise UnknownSetting(f"tier {tier!r} is not in the knob space: {space}")
    return choose_tiling(height, width, space.tier_crops[space.tiers.index(tier)], config)


def check_space(space: KnobSpace, loaded: LoadedModel) -> None:
    """Raises UnknownSetting if the model cannot run the knob space."""
    config = loaded.model.config
    positions = [position for position in space.insertion_positions if position is not None]
    if not positions:
        raise UnknownSetting("the knob space has no insertion positions, so no latency token can be read.")
    if not space.settings:
        raise UnknownSetting(
            f"no setting can run: num_blocks {list(space.num_blocks)} are below the insertion positions {positions}."
        )
    if max(space.num_blocks) > config.num_blocks or max(positions) > config.num_blocks:
        raise UnknownSetting(
            f"{loaded.name} has {config.num_blocks} blocks, but the knob space asks for num_blocks up to "
            f"{max(space.num_blocks)} and positions up to {max(positions)}."
        )
    if max(space.top_k) > config.num_experts:
        raise UnknownSetting(
            f"{loaded.name} has {config.num_experts} experts, but the knob space asks for {max(space.top_k)}."
        )
    if space.tier_crops is None:
        raise UnknownSetting(f"the knob space names tiers {list(space.tiers)} without their crops (tier_crops).")


def check_importance(importance: ImportanceScores, loaded: LoadedModel) -> None:
    """Raises ImportanceError if the scores are for another number of blocks."""
    if importance.n_blocks != loaded.model.config.num_blocks:
        source = f" of {importance.source}" if importance.source else ""
        raise ImportanceError(
            f"importance scores{source} name {importance.n_blocks} blocks, but {loaded.name} has "
            f"{loaded.model.config.num_blocks}: give scores of this model, or leave --importance out."
        )
