"""One sample under every setting: each distinct piece of work is done once, in a fixed order.

For each distinct view: token pass, answer sweep, near ties repeated at batch 1, timing. Tiers with equal views share
all of it; settings with equal plans share an answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.knobs import KnobSetting
from ...data.metrics import Scorer
from ...data.outcome import Outcome
from ...data.plans import BlockPlan
from ...data.samples import Sample
from ...devices import num_threads
from ..execution.answer_sweep import sweep_answers
from ..execution.batch_limit import BatchLimit
from ..execution.knob_model import KnobModel
from ..execution.plan_tree import PlanTree, active_blocks
from ..execution.token_pass import PromptState
from ..latency.block_times import BlockTimes, LatencyCheck, PlanLatency, TimedPlan, measure_blocks, measure_whole
from ..latency.device_lock import DeviceTurn
from ..latency.slow_spells import RETAKES, Pace
from ..models.backbone import Prompt
from .work_counts import Ledger

if TYPE_CHECKING:
    from .config import PrecomputeConfig  # imports psutil, which running the model does not need

ALIKE_TEXT_TOKENS = 8  # prompts whose lengths differ by less take about the same time


@dataclass
class SampleResult:
    """The content of one sample's rows in all three tables."""

    sample: Sample
    language_feature_D: NDArray[np.float32]
    text_tokens: int
    token_PMD: dict[str, NDArray[np.float16]] = field(default_factory=dict)  # by tier
    outcomes: dict[KnobSetting, Outcome] = field(default_factory=dict)
    checks: list[LatencyCheck] = field(default_factory=list)


@dataclass(frozen=True)
class MeasureConfig:
    """How latencies are measured."""

    latency_mode: str = "blockwise"
    runs: int = 5
    checks_per_tiling: int = 1  # settings also run end to end, drawn for each tiling of each sample
    seed: int = 0
    threads: int = 1  # of the answer sweep; token passes and timings always use one

    @classmethod
    def of(cls, config: PrecomputeConfig) -> MeasureConfig:
        """Returns the measurement settings of a run."""
        return cls(
            config.manifest_latency_mode, config.runs, config.checks_per_tiling, config.seed, config.sweep_threads
        )


@dataclass
class _SlowedTiming:
    """The timing of one prompt during a slow spell, with the inputs for repeating it."""

    result: SampleResult
    prompt: Prompt
    draw: random.Random
    timed: Mapping[KnobSetting, tuple[BlockPlan, int]]  # the rows whose latency comes from this timing
    whole_model_ms: float


KnownOutcomes = Mapping[KnobSetting, Outcome]


@dataclass(frozen=True)
class Known:
    """Outcomes that are already known, and whether the other settings are run."""

    outcomes: Mapping[str, KnownOutcomes] = field(default_factory=dict)  # by sample id
    complete: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the manifest and the summary


class SampleRunner:
    """Runs samples one after the other and counts the work."""

    def __init__(
        self,
        knobs: KnobModel,
        measure: MeasureConfig,
        ledger: Ledger,
        turn: DeviceTurn | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.knobs, self.measure, self.ledger = knobs, measure, ledger
        self._turn = turn or DeviceTurn()
        self._pace = pace or Pace()
        self._limit = BatchLimit.of(knobs.model.device)
        self._trees: dict[tuple[BlockPlan, ...], PlanTree] = {}
        self._slowed: list[_SlowedTiming] = []

    def run(self, sample: Sample, known: KnownOutcomes | None = None, *, complete: bool = True) -> SampleResult:
        """Returns the sample's rows.

        Args:
            known: recorded outcomes. A missing latency is measured, unless the mode is `imported`.
            complete: also run the settings that `known` lacks; otherwise they get no row.
        """
        with self._turn.shared():
            return self._run(sample, known or {}, complete)

    def retake_slowed(self) -> None:
        """Repeats the timings taken during a slow spell of the machine, and keeps the faster one in each row.

        Called after all samples of a part: spells last longer than one sample.
        """
        for _ in range(RETAKES):
            slowed, self._slowed = self._slowed, []
            for timing in slowed:
                if self._pace.may_retake():
                    with self._turn.shared():
                        self._retake(timing)

    def _retake(self, timing: _SlowedTiming) -> None:
        self.ledger.add("timings_retaken")
        blocks, _ = self._block_times(timing.prompt, timing.draw, ())
        whole_model_ms = blocks.longest_ms(self.knobs.native)
        if whole_model_ms < timing.whole_model_ms:
            timing.whole_model_ms = whole_model_ms
            for setting, request in timing.timed.items():
                timing.result.outcomes[setting] = _timed(timing.result.outcomes[setting], blocks.latency(*request))
        if self._pace.is_slowed(_alike(timing.prompt), timing.whole_model_ms):
            self._slowed.append(timing)

    def _run(self, sample: Sample, known: KnownOutcomes, complete: bool) -> SampleResult:
        knobs = self.knobs
        with self.ledger.timed("prepare"):
            prompts = knobs.prompts(sample)
            by_tier = {tier: prompts[tier] for tier in knobs.space.tiers}
            language_feature_D = knobs.language_feature(sample)
        result = SampleResult(sample, language_feature_D, next(iter(by_tier.values())).text_tokens)
        wanted = {setting: plan for setting, plan in knobs.plans.items() if complete or setting in known}
        scorer = Scorer(knobs.task(sample).metric, sample.answers)
        self.ledger.add("samples")
        for prompt in dict.fromkeys(by_tier.values()):
            tiers = [tier for tier, its in by_tier.items() if its is prompt]
            settings = {setting: plan for setting, plan in wanted.items() if setting.tier in tiers}
            token_PMD = self._run_prompt(prompt, settings, known, scorer, result)
            result.token_PMD.update(dict.fromkeys(tiers, token_PMD))
        result.outcomes = {setting: result.outcomes[setting] for setting in wanted}
        return result

    def _run_prompt(
        self,
        prompt: Prompt,
        settings: Mapping[KnobSetting, BlockPlan],
        known: KnownOutcomes,
        scorer: Scorer,
        result: SampleResult,
    ) -> NDArray[np.float16]:
        """Adds the outcomes of the tiers with this prompt, and returns their latency tokens [P, M, D]."""
        knobs = self.knobs
        with self.ledger.timed("token_pass"):
            token_PMD, state = knobs.token_pass(prompt)
        to_run = {setting: plan for setting, plan in settings.items() if setting not in known}
        self.ledger.add("vision_runs_asked", len(to_run))
        self.ledger.add("vision_runs_executed")
        self.ledger.add("block_runs_asked", sum(active_blocks(plan) for plan in to_run.values()))
        self.ledger.add("answers_asked", len(to_run))
        token_ids = self._answers(result.sample, state, list(to_run.values()))
        for setting, plan in settings.items():
            if setting in known:
                outcome = known[setting]
            else:
                text = knobs.text(token_ids[plan])
                outcome = Outcome(text, scorer.score(text), None, len(token_ids[plan]), outcome_source="measured")
            result.outcomes[setting] = replace(outcome, vision_tokens=prompt.vision_tokens)
        if self.measure.latency_mode != "imported":
            self._measure_latencies(prompt, settings, result)
        return token_PMD

    def _answers(
        self, sample: Sample, state: PromptState, plans: Sequence[BlockPlan]
    ) -> dict[BlockPlan, tuple[int, ...]]:
        """Returns every plan's answer. Near ties in a batch are repeated at batch 1, as live execution runs them."""
        knobs, task = self.knobs, self.knobs.task(sample)
        self.ledger.add("block_runs_executed", state.num_shared)
        if not plans:
            return {}
        key = tuple(dict.fromkeys(plans))
        if key not in self._trees:
            self._trees[key] = PlanTree.of(key, native=knobs.native, num_shared=state.num_shared)
        tree = self._trees[key]
        with self.ledger.timed("sweep"), num_threads(self.measure.threads):
            swept = sweep_answers(knobs.model, state, tree, self._limit, max_new_tokens=task.max_new_tokens)
        self.ledger.add("block_runs_executed", tree.runs_beyond_token_pass)
        self.ledger.add("answers_executed", len(swept))
        answers = {}
        for plan, decoded in zip(tree.plans, swept, strict=True):
            answers[plan] = decoded.token_ids
            self.ledger.add("near_ties_logits", int(decoded.is_near_tie))
            self.ledger.add("near_ties_router", int(decoded.is_router_tie))
            if decoded.is_near_tie or decoded.is_router_tie:
                with self.ledger.timed("rerun"):
                    answers[plan] = knobs.answer(state, plan, task)
                self.ledger.add("answers_changed_by_rerun", int(answers[plan] != decoded.token_ids))
        return answers

    def _measure_latencies(
        self, prompt: Prompt, settings: Mapping[KnobSetting, BlockPlan], result: SampleResult
    ) -> None:
        """Times every (plan, answer length) that occurs, alone on the device, and adds the latencies to the outcomes.

        An outcome with a recorded latency keeps it; one without a recorded answer length gets none.
        """
        requests: dict[tuple[BlockPlan, int], TimedPlan] = {}
        timed: dict[KnobSetting, tuple[BlockPlan, int]] = {}
        for setting, plan in settings.items():
            outcome = result.outcomes[setting]
            if outcome.output_tokens is None:
                continue
            assert setting.insertion_position is not None, "a model's knob space has insertion positions"
            request = TimedPlan(plan, setting.insertion_position, outcome.output_tokens)
            requests.setdefault((plan, outcome.output_tokens), request)
            if outcome.latency_ms is None:
                timed[setting] = plan, outcome.output_tokens
        if not requests:
            return
        measure = self.measure
        draw = random.Random(f"{measure.seed}/{result.sample.sample_id}/{prompt.view}")
        if measure.latency_mode == "end_to_end":
            with self._turn.alone(), self.ledger.timed("timing"):
                whole = measure_whole(self.knobs, prompt, list(requests.values()), runs=measure.runs, draw=draw)
            latency_of = dict(zip(requests, whole, strict=True))
        else:
            checked = draw.sample(list(requests.values()), min(measure.checks_per_tiling, len(requests)))
            blocks, checks = self._block_times(prompt, draw, checked)
            result.checks += checks
            whole_model_ms = blocks.longest_ms(self.knobs.native)
            if self._pace.note(_alike(prompt), whole_model_ms):
                self._slowed.append(_SlowedTiming(result, prompt, draw, timed, whole_model_ms))
            latency_of = {key: blocks.latency(*key) for key in requests}
        for setting, key in timed.items():
            result.outcomes[setting] = _timed(result.outcomes[setting], latency_of[key])

    def _block_times(
        self, prompt: Prompt, draw: random.Random, checked: Sequence[TimedPlan]
    ) -> tuple[BlockTimes, list[LatencyCheck]]:
        with self._turn.alone(), self.ledger.timed("timing"):
            return measure_blocks(self.knobs, prompt, runs=self.measure.runs, draw=draw, end_to_end=checked)


def _timed(outcome: Outcome, latency: PlanLatency) -> Outcome:
    return replace(outcome, **latency._asdict())


def _alike(prompt: Prompt) -> tuple[int, int]:
    """Returns a key that is equal for prompts that take about the same time."""
    return prompt.vision_tokens, prompt.text_tokens // ALIKE_TEXT_TOKENS
