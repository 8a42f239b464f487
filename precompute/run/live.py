"""The live executor: runs one sample in two calls, with Stage2's decision between them.

It runs the token pass exactly as precompute does (batch 1, the whole budget grid as probes, one thread) and continues
at batch 1, so its tokens are bit-equal to the cached ones. One pass gives the tokens of every position and budget, so
the current sample's passes are kept, one for each view; tiers and budgets share them. Latencies are measured by
`serving/live_timing.py`, because the other probes of the grid are not part of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...data.budgets import float32_ms, normalise_budgets
from ...data.errors import UnknownSetting
from ...data.metrics import Scorer
from ...data.outcome import Outcome
from ...data.samples import Sample
from ...devices import single_thread
from ..execution.knob_model import KnobModel, SamplePrompts
from ..execution.token_pass import PromptState
from ..models.backbone import Prompt, View


@dataclass(frozen=True)
class TokenPass:
    """One token pass: the latency tokens, and the state from which answers continue."""

    budgets_ms: tuple[float, ...]  # M, one for each probe
    token_PMD: NDArray[np.float16]
    prepared: Prompt
    state: PromptState


@dataclass(frozen=True)
class LiveHandle:
    """The state from which `finish` continues."""

    sample: Sample
    insertion_position: int
    prepared: Prompt
    state: PromptState


class LiveExecutor:
    """Implements `data.protocols.Executor` by running the model."""

    def __init__(self, knobs: KnobModel) -> None:
        self.knobs = knobs
        self._off_grid: dict[float, tuple[float, ...]] = {}  # announced budgets off the grid -> budgets of their pass
        self._prompts: SamplePrompts | None = None  # of the current sample, whose passes are kept
        self._passes: dict[tuple[View, tuple[float, ...]], TokenPass] = {}

    @contextmanager
    def session(self, budgets_ms: Sequence[float]) -> Iterator[None]:
        """Runs the body on one thread. Budgets off the grid share token passes."""
        grid_ms = self.knobs.budgets_ms
        off_ms = [budget for budget in normalise_budgets(budgets_ms) if budget not in grid_ms]
        groups = [tuple(off_ms[start : start + len(grid_ms)]) for start in range(0, len(off_ms), len(grid_ms))]
        self._off_grid = {budget: group + grid_ms[len(group) :] for group in groups for budget in group}
        with single_thread():
            yield

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns the mean of the question's word embeddings, [D]."""
        return self.knobs.language_feature(sample)

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], LiveHandle]:
        """Returns the latency token [D] and the handle. A budget off the grid replaces one of the grid in a pass."""
        knobs = self.knobs
        if insertion_position not in knobs.positions:
            raise UnknownSetting(f"insertion position {insertion_position} is not in the knob space: {knobs.space}")
        asked_ms = float32_ms(budget_ms)
        made = self._token_pass(sample, tier, asked_ms)
        token_D = made.token_PMD[knobs.positions.index(insertion_position), made.budgets_ms.index(asked_ms)]
        return token_D, LiveHandle(sample, insertion_position, made.prepared, made.state)

    def _token_pass(self, sample: Sample, tier: str, asked_ms: float) -> TokenPass:
        """Returns a pass with this budget's probe: a kept one if possible, otherwise a new one.

        The passes of the current sample are kept, for each view: that of the grid, one for each group of announced
        budgets off the grid, and the last one made for a budget that was not announced.
        """
        knobs = self.knobs
        if self._prompts is None or sample != self._prompts.sample:
            self._passes = {}
            self._prompts = knobs.prompts(sample)
        prepared = self._prompts[tier]
        grid_ms = knobs.budgets_ms
        announced_ms = grid_ms if asked_ms in grid_ms else self._off_grid.get(asked_ms, ())
        made = self._passes.get((prepared.view, announced_ms))
        if made is None or asked_ms not in made.budgets_ms:
            budgets_ms = announced_ms or (asked_ms, *grid_ms[1:])
            probe_MD = knobs.probe_MD if budgets_ms == grid_ms else knobs.probes(budgets_ms)
            token_PMD, state = knobs.token_pass(prepared, probe_MD)
            made = self._passes[prepared.view, announced_ms] = TokenPass(budgets_ms, token_PMD, prepared, state)
        return made

    def finish(self, handle: LiveHandle, top_k: int, num_blocks: int) -> Outcome:
        """Runs the remaining blocks under (top_k, num_blocks), decodes, and returns the outcome without latency."""
        knobs = self.knobs
        task = knobs.task(handle.sample)
        plan = knobs.plan(handle.insertion_position, top_k, num_blocks)
        token_ids = knobs.answer(handle.state, plan, task)
        text = knobs.text(token_ids)
        accuracy = Scorer(task.metric, handle.sample.answers).score(text)
        return Outcome(text, accuracy, None, len(token_ids), handle.prepared.vision_tokens, outcome_source="measured")
