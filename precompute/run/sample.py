"""One sample under every setting: each distinct piece of work once, in a fixed order.

For each distinct tiling: token pass, answer sweep, near ties again at batch 1, timing. Tiers that give one tiling share
all of it, settings that give one plan share an answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.knobs import KnobSetting
from ...data.metrics import Scorer
from ...data.plans import BlockPlan
from ...data.samples import Sample
from ...devices import num_threads
from ..execution.answer_sweep import sweep_answers
from ..execution.batch_limit import BatchLimit
from ..execution.knob_model import KnobModel, PreparedPrompt
from ..execution.plan_tree import PlanTree, active_blocks
from ..execution.token_pass import PromptState
from ..latency.block_times import BlockTimes, LatencyCheck, PlanLatency, TimedPlan, measure_blocks, measure_whole
from ..latency.device_lock import DeviceTurn
from ..latency.slow_spells import Pace
from ..models.molmoe.tiling import Tiling
from .work_counts import Ledger

ALIKE_TEXT_TOKENS = 8  # prompts whose lengths differ by less take about the same time
RETAKES = 2  # of timings that fell into a slow spell


@dataclass(frozen=True)
class Answer:
    """What a sample answers under a setting, and where that comes from."""

    text: str | None
    accuracy: float | None
    output_tokens: int | None
    source: str = "measured"
    latency: PlanLatency | None = None  # a recorded one that is kept; None: it is measured here


@dataclass(frozen=True)
class SettingResult:
    """One row of `outcomes`."""

    setting: KnobSetting
    answer: Answer
    latency: PlanLatency | None
    vision_tokens: int


@dataclass
class SampleResult:
    """Everything that one sample's rows hold."""

    sample: Sample
    language_feature_D: NDArray[np.float32]
    text_tokens: int
    token_PMD: dict[str, NDArray[np.float16]] = field(default_factory=dict)  # by tier
    settings: list[SettingResult] = field(default_factory=list)
    checks: list[LatencyCheck] = field(default_factory=list)


@dataclass(frozen=True)
class MeasureConfig:
    """How latencies are taken."""

    latency_mode: str = "blockwise"
    runs: int = 5
    checks_per_tiling: int = 1  # settings also run end to end, drawn for each tiling of each sample
    seed: int = 0
    threads: int = 1  # of the answer sweep; tokens and timings are always made on one


@dataclass
class _SlowedTiming:
    """Timings of one prompt that fell into a slow spell, and what is needed to take them again."""

    result: SampleResult
    prompt: PreparedPrompt
    draw: random.Random
    timed: Mapping[KnobSetting, tuple[BlockPlan, int]]  # rows that have their latency from these timings
    whole_model_ms: float


KnownAnswers = Mapping[KnobSetting, Answer]


@dataclass(frozen=True)
class Known:
    """Answers that need no run, and whether the other settings are run."""

    answers: Mapping[str, KnownAnswers] = field(default_factory=dict)  # by sample id
    complete: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the manifest and the summary


class SampleRunner:
    """Runs samples one after the other, and counts."""

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

    def run(self, sample: Sample, known: KnownAnswers | None = None, *, complete: bool = True) -> SampleResult:
        """Returns the sample's rows.

        Args:
            known: answers that need no run, imported ones say.
            complete: also run the settings that `known` lacks; else they get no row.
        """
        with self._turn.shared():
            return self._run(sample, known or {}, complete)

    def retake_slowed(self) -> None:
        """Takes timings again that fell into a slow spell of the machine, and puts the faster ones into their rows.

        Called when the samples of a part are done: spells last longer than a sample does.
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
        whole_model_ms = blocks.whole_model_ms(self.knobs.native_top_k)
        if whole_model_ms < timing.whole_model_ms:
            timing.whole_model_ms = whole_model_ms
            timing.result.settings = [
                replace(row, latency=blocks.latency(*timing.timed[row.setting])) if row.setting in timing.timed else row
                for row in timing.result.settings
            ]
        if self._pace.is_slowed(_alike(timing.prompt), timing.whole_model_ms):
            self._slowed.append(timing)

    def _run(self, sample: Sample, known: KnownAnswers, complete: bool) -> SampleResult:
        knobs = self.knobs
        with self.ledger.timed("prepare"):
            rgb = knobs.pixels(sample)
            tilings = {tier: knobs.tiling(rgb, tier) for tier in knobs.space.tiers}
            prepared = {tiling: knobs.prepare(sample, rgb, tiling) for tiling in dict.fromkeys(tilings.values())}
            result = SampleResult(sample, knobs.language_feature(sample), next(iter(prepared.values())).text_tokens)
        wanted = {setting: plan for setting, plan in knobs.plans.items() if complete or setting in known}
        scorer = Scorer(knobs.task(sample).metric, sample.answers)
        self.ledger.add("samples")
        for tiling, prompt in prepared.items():
            settings = {s: plan for s, plan in wanted.items() if tilings[s.tier] == tiling}
            token_PMD = self._run_tiling(sample, tiling, prompt, settings, known, scorer, result)
            result.token_PMD.update({tier: token_PMD for tier, its in tilings.items() if its == tiling})
        order = {setting: place for place, setting in enumerate(knobs.space.settings)}
        result.settings.sort(key=lambda row: order[row.setting])
        return result

    def _run_tiling(
        self,
        sample: Sample,
        tiling: Tiling,
        prompt: PreparedPrompt,
        settings: Mapping[KnobSetting, BlockPlan],
        known: KnownAnswers,
        scorer: Scorer,
        result: SampleResult,
    ) -> NDArray[np.float16]:
        """Adds the rows of the tiers that have this tiling, and returns their latency tokens [P, M, D]."""
        knobs = self.knobs
        with self.ledger.timed("token_pass"):
            token_PMD, state = knobs.token_pass(prompt)
        to_run = {s: plan for s, plan in settings.items() if s not in known}
        self.ledger.add("vision_runs_asked", len(to_run))
        self.ledger.add("vision_runs_executed")
        self.ledger.add("block_runs_asked", sum(active_blocks(plan) for plan in to_run.values()))
        self.ledger.add("answers_asked", len(to_run))
        token_ids = self._answers(sample, state, list(to_run.values()))
        answers: dict[KnobSetting, Answer] = {}
        for setting, plan in settings.items():
            if setting in known:
                answers[setting] = known[setting]
            else:
                text = knobs.text(token_ids[plan])
                answers[setting] = Answer(text, scorer.score(text), len(token_ids[plan]))
        latency = self._latencies(sample, tiling, prompt, settings, answers, result)
        for setting, plan in settings.items():
            tokens = answers[setting].output_tokens
            timed = answers[setting].latency or (None if tokens is None else latency.get((plan, tokens)))
            result.settings.append(SettingResult(setting, answers[setting], timed, prompt.vision_tokens))
        return token_PMD

    def _answers(
        self, sample: Sample, state: PromptState, plans: Sequence[BlockPlan]
    ) -> dict[BlockPlan, tuple[int, ...]]:
        """Returns the answer of every plan; what a batch leaves in doubt is run again at batch 1, as live runs it."""
        knobs, task = self.knobs, self.knobs.task(sample)
        self.ledger.add("block_runs_executed", state.num_shared)
        if not plans:
            return {}
        key = tuple(dict.fromkeys(plans))
        if key not in self._trees:
            self._trees[key] = PlanTree.of(key, native_top_k=knobs.native_top_k, num_shared=state.num_shared)
        tree = self._trees[key]
        with self.ledger.timed("sweep"), num_threads(self.measure.threads):
            swept = sweep_answers(
                knobs.model, state, tree, self._limit, max_new_tokens=task.max_new_tokens, end_id=knobs.end_id
            )
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

    def _latencies(
        self,
        sample: Sample,
        tiling: Tiling,
        prompt: PreparedPrompt,
        settings: Mapping[KnobSetting, BlockPlan],
        answers: Mapping[KnobSetting, Answer],
        result: SampleResult,
    ) -> dict[tuple[BlockPlan, int], PlanLatency]:
        """Returns the latency of every (plan, answer length) that occurs, timed alone on the device."""
        requests: dict[tuple[BlockPlan, int], TimedPlan] = {}
        for setting, plan in settings.items():
            tokens = answers[setting].output_tokens
            if tokens is not None and self.measure.latency_mode != "imported":
                assert setting.insertion_position is not None, "a model's knob space has insertion positions"
                requests.setdefault((plan, tokens), TimedPlan(plan, setting.insertion_position, tokens))
        if not requests:
            return {}
        measure = self.measure
        draw = random.Random(f"{measure.seed}/{sample.sample_id}/{tiling}")
        if measure.latency_mode == "end_to_end":
            with self._turn.alone(), self.ledger.timed("timing"):
                timed = measure_whole(self.knobs, prompt, list(requests.values()), runs=measure.runs, draw=draw)
            return dict(zip(requests, timed, strict=True))
        checked = draw.sample(list(requests.values()), min(measure.checks_per_tiling, len(requests)))
        blocks, checks = self._block_times(prompt, draw, checked)
        result.checks += checks
        whole_model_ms = blocks.whole_model_ms(self.knobs.native_top_k)
        if self._pace.note(_alike(prompt), whole_model_ms):
            own_timing = {
                setting: (plan, answer.output_tokens)
                for setting, plan in settings.items()
                if (answer := answers[setting]).output_tokens is not None and answer.latency is None
            }
            self._slowed.append(_SlowedTiming(result, prompt, draw, own_timing, whole_model_ms))
        return {(plan, tokens): blocks.latency(plan, tokens) for plan, tokens in requests}

    def _block_times(
        self, prompt: PreparedPrompt, draw: random.Random, checked: Sequence[TimedPlan]
    ) -> tuple[BlockTimes, list[LatencyCheck]]:
        with self._turn.alone(), self.ledger.timed("timing"):
            return measure_blocks(self.knobs, prompt, runs=self.measure.runs, draw=draw, end_to_end=checked)


def _alike(prompt: PreparedPrompt) -> tuple[int, int]:
    """Prompts of which this is equal take about the same time."""
    return prompt.vision_tokens, prompt.text_tokens // ALIKE_TEXT_TOKENS
