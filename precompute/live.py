"""The live executor: runs one sample in two calls, with Stage2's decision between them.

It makes the token pass exactly as precompute does (batch 1, the whole budget grid as probes, one thread) and goes on
from it at batch 1, so its tokens are equal to the cached ones to the last bit. Latency is taken apart from that, by
running the request again with its single probe, because the grid's other probes are no part of a request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.errors import UnknownSetting
from ..data.executor import Outcome
from ..data.metrics import Scorer
from ..data.samples import Sample
from .blockwise import TimedPlan, measure_whole
from .knob_model import KnobModel, PreparedPrompt
from .probe import PromptState


@dataclass(frozen=True)
class LiveHandle:
    """What `finish` goes on from."""

    sample: Sample
    tier: str
    insertion_position: int
    prepared: PreparedPrompt
    state: PromptState


class LiveExecutor:
    """Answers `data/executor.py`'s protocol by running the model.

    Args:
        runs: timed runs of every finished request; 0 takes no latency.
    """

    def __init__(self, knobs: KnobModel, *, runs: int = 0, seed: int = 0) -> None:
        self.knobs, self.runs, self._seed = knobs, runs, seed

    def language_feature(self, sample: Sample) -> NDArray[np.float32]:
        """Returns the mean of the question's word embeddings, [D]."""
        return self.knobs.language_feature(sample)

    def latency_token(
        self, sample: Sample, tier: str, insertion_position: int, budget_ms: float
    ) -> tuple[NDArray[np.float16], LiveHandle]:
        """Returns the latency token [D] and the handle. A budget off the grid takes a place in the grid's pass."""
        knobs = self.knobs
        if insertion_position not in knobs.positions:
            raise UnknownSetting(f"insertion position {insertion_position} is not in the knob space: {knobs.space}")
        place_P = knobs.positions.index(insertion_position)
        rgb = knobs.pixels(sample)
        prepared = knobs.prepare(sample, rgb, knobs.tiling(rgb, tier))
        asked_ms = float(np.float32(budget_ms))
        probe_MD, place_M = knobs.probe_MD, 0
        if asked_ms in knobs.budgets_ms:
            place_M = knobs.budgets_ms.index(asked_ms)
        else:
            probe_MD = probe_MD.clone()
            probe_MD[0] = knobs.probes([asked_ms])[0]
        token_PMD, state = knobs.token_pass(prepared, probe_MD)
        return token_PMD[place_P, place_M], LiveHandle(sample, tier, insertion_position, prepared, state)

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
