"""The live executor: runs one sample in two calls, with Stage2's decision between them.

It makes the token pass exactly as precompute does (batch 1, the whole budget grid as probes, one thread) and goes on
from it at batch 1, so its tokens are equal to the cached ones to the last bit. One pass gives the tokens of every
position and budget, so the passes of the sample in hand are kept, one for each tiling: tiers and budgets share them.
Latency is measured separately, by running the request again with its single probe, because the grid's other probes are
not part of a request.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError, UnknownSetting
from ...data.executor import LEAST_RUNS, Outcome
from ...data.metrics import Scorer
from ...data.samples import Sample
from ..execution.knob_model import KnobModel, PreparedPrompt
from ..execution.token_pass import PromptState
from ..latency.block_times import TimedPlan, measure_whole
from ..latency.clocks import quiet
from ..models.molmoe.tiling import Tiling


@dataclass(frozen=True)
class TokenPass:
    """One token pass of a sample's view: the latency tokens [P, M, D], and what an answer continues from."""

    budgets_ms: tuple[float, ...]  # of the probes, M
    token_PMD: NDArray[np.float16]
    prepared: PreparedPrompt
    state: PromptState


@dataclass(frozen=True)
class LiveHandle:
    """What `finish` continues from."""

    sample: Sample
    insertion_position: int
    prepared: PreparedPrompt
    state: PromptState


class LiveExecutor:
    """Answers `data/executor.py`'s protocol by running the model.

    Args:
        runs: timed runs of every finished request, of which the median counts; 0 measures no latency.

    Raises:
        KnobctlError: `runs` is too small for a median that one stalled run does not decide.
    """

    def __init__(self, knobs: KnobModel, *, runs: int = 0, seed: int = 0) -> None:
        if runs and runs < LEAST_RUNS:
            raise KnobctlError(
                f"{runs} timed runs of each live request: one stalled run would decide the latency. Take at least "
                f"{LEAST_RUNS}, of which the median counts, or 0 to measure none."
            )
        self.knobs, self.runs, self._seed = knobs, runs, seed
        self._off_grid: dict[float, tuple[float, ...]] = {}  # announced budgets off the grid: the probes of their pass
        self._sample: Sample | None = None  # the one whose passes are kept
        self._rgb: NDArray[np.uint8] | None = None
        self._passes: dict[tuple[Tiling, tuple[float, ...]], TokenPass] = {}

    @contextmanager
    def session(self, budgets_ms: Sequence[float]) -> Iterator[None]:
        """Runs the body as requests are timed. Those of these budgets that are off the grid share token passes."""
        grid_ms = self.knobs.budgets_ms
        off_ms = sorted({float(np.float32(budget)) for budget in budgets_ms} - set(grid_ms))
        groups = [tuple(off_ms[start : start + len(grid_ms)]) for start in range(0, len(off_ms), len(grid_ms))]
        self._off_grid = {budget: group + grid_ms[len(group) :] for group in groups for budget in group}
        with quiet():
            yield

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns the mean of the question's word embeddings, [D]."""
        return self.knobs.language_feature(sample)

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], LiveHandle]:
        """Returns the latency token [D] and the handle. A budget off the grid takes a place in a pass of its shape."""
        knobs = self.knobs
        if insertion_position not in knobs.positions:
            raise UnknownSetting(f"insertion position {insertion_position} is not in the knob space: {knobs.space}")
        asked_ms = float(np.float32(budget_ms))
        made = self._token_pass(sample, tier, asked_ms)
        token_D = made.token_PMD[knobs.positions.index(insertion_position), made.budgets_ms.index(asked_ms)]
        return token_D, LiveHandle(sample, insertion_position, made.prepared, made.state)

    def _token_pass(self, sample: Sample, tier: str, asked_ms: float) -> TokenPass:
        """Returns a pass that has this budget's probe: the one kept, else a new one.

        Kept are the passes of the last sample asked for, for each tiling: the grid's, one for each group of announced
        budgets off the grid, and the last one made for a budget that was not announced.
        """
        knobs = self.knobs
        if self._rgb is None or sample != self._sample:
            self._passes = {}
            self._rgb, self._sample = knobs.pixels(sample), sample
        tiling = knobs.tiling(self._rgb, tier)
        grid_ms = knobs.budgets_ms
        announced_ms = grid_ms if asked_ms in grid_ms else self._off_grid.get(asked_ms, ())
        made = self._passes.get((tiling, announced_ms))
        if made is None or asked_ms not in made.budgets_ms:
            budgets_ms = announced_ms or (asked_ms, *grid_ms[1:])
            prepared = knobs.prepare(sample, self._rgb, tiling)
            probe_MD = knobs.probe_MD if budgets_ms == grid_ms else knobs.probes(budgets_ms)
            token_PMD, state = knobs.token_pass(prepared, probe_MD)
            made = self._passes[tiling, announced_ms] = TokenPass(budgets_ms, token_PMD, prepared, state)
        return made

    def finish(self, handle: LiveHandle, top_k: int, num_blocks: int) -> Outcome:
        """Runs the rest under (top_k, num_blocks) and returns the outcome."""
        knobs = self.knobs
        task = knobs.task(handle.sample)
        plan = knobs.plan(handle.insertion_position, top_k, num_blocks)
        token_ids = knobs.answer(handle.state, plan, task)
        text = knobs.text(token_ids)
        accuracy = Scorer(task.metric, handle.sample.answers).score(text)
        vision_tokens = handle.prepared.vision_tokens
        if not self.runs:
            return Outcome(text, accuracy, None, len(token_ids), vision_tokens)
        request = TimedPlan(plan, handle.insertion_position, len(token_ids))
        draw = random.Random(self._seed)
        latency = measure_whole(knobs, handle.prepared, [request], runs=self.runs, draw=draw)[0]
        return Outcome(
            text,
            accuracy,
            latency.latency_ms,
            len(token_ids),
            vision_tokens,
            latency.vision_ms,
            latency.prefill_ms,
            latency.decode_ms,
            latency.runs_ms,
        )
