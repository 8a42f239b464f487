"""Compares shared, one-by-one and live execution: whether they agree, and how much time sharing saves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import numpy as np
from tables import Row

from knobctl.data.samples import Sample
from knobctl.precompute.execution.knob_model import KnobModel
from knobctl.precompute.run.live import LiveExecutor
from knobctl.precompute.run.sample import MeasureConfig
from knobctl.precompute.run.work_counts import Ledger
from precompute import AnswersOnly, compare, one_by_one

from .nano import nano_knobs, nano_samples
from .random_molmoe import random_knobs
from .worker import Work

TARGET = 20  # times as fast
WARM_UP_SETTINGS = 2


def shared_execution(work: Work) -> Iterator[Row]:
    """Yields a comparison of all settings of a sample, shared, with as many single settings as time allows."""
    whole_s = work.time_left_s()
    yield _compare(*random_knobs(work), "MolmoE, random weights", lambda: work.time_left_s() > 0.35 * whole_s)
    yield _compare(nano_knobs(work), nano_samples(1)[0], "nano", lambda: work.time_left_s() > 0.1 * whole_s)


def _compare(knobs: KnobModel, sample: Sample, name: str, has_time: Callable[[], bool]) -> Row:
    settings = random.Random(0).sample(knobs.space.settings, len(knobs.space.settings))
    runner = AnswersOnly(knobs, MeasureConfig(), Ledger(knobs.model.device))
    runner.run(sample)  # warm-up of both methods
    one_by_one(knobs, sample, settings[:WARM_UP_SETTINGS])
    runner.ledger = Ledger(knobs.model.device)
    start = time.perf_counter()
    shared = runner.run(sample)
    between = time.perf_counter()
    answers, tokens = one_by_one(knobs, sample, settings, has_time)
    shared_s, alone_s = between - start, (time.perf_counter() - between) / len(answers)
    differing, distance = compare(knobs, shared, answers, tokens)
    return (
        "shared",
        {
            "model": f"{name}, {knobs.model.dtype}".replace("torch.", ""),
            "all settings shared, s": f"{shared_s:.3f}",
            "one setting alone, s": f"{alone_s:.4f}",
            "timed alone": f"{len(answers)} of {len(settings)}, chosen at random",
            "times as fast": f"{alone_s * len(settings) / shared_s:.1f}",
            "target": TARGET,
            "near ties": _near_ties(runner.ledger),
            "of which repeated alone, s": f"{runner.ledger.seconds['rerun']:.3f}",
            "differing answers": f"{differing} of {len(answers)}",
            "largest token distance / norm": f"{distance:.2g}",
        },
    )


def replay_against_live(work: Work) -> Iterator[Row]:
    """Yields comparisons of recorded outcomes with those of the live executor, for nano in both number types."""
    whole_s, per_sample = work.time_left_s(), 8 if work.is_small else 20
    for dtype, share_left in (("bfloat16", 0.4), ("float32", 0.1)):
        knobs = nano_knobs(work, dtype)
        ledger = Ledger(work.device)
        runner, executor = AnswersOnly(knobs, MeasureConfig(), ledger), LiveExecutor(knobs)
        draw = random.Random(0)
        requests = tokens_equal = answers_equal = scores_equal = samples = 0
        distance = 0.0
        for sample in nano_samples(1 if work.is_small else 40):
            recorded = runner.run(sample)
            rows = recorded.outcomes
            samples += 1
            for setting in draw.sample(list(rows), min(per_sample, len(rows))):
                tier, position = setting.tier, setting.insertion_position
                budget = draw.randrange(len(knobs.budgets_ms))
                token_D, handle = executor.latency_token(sample, tier, position, knobs.budgets_ms[budget])
                cached_D = recorded.token_PMD[tier][knobs.positions.index(position), budget]
                outcome = executor.finish(handle, setting.top_k, setting.num_blocks)
                gap_D = token_D.astype(np.float32) - cached_D.astype(np.float32)
                distance = max(distance, float(np.linalg.norm(gap_D) / np.linalg.norm(cached_D.astype(np.float32))))
                requests += 1
                tokens_equal += np.array_equal(token_D, cached_D)
                answers_equal += outcome.answer == rows[setting].answer
                scores_equal += outcome.accuracy == rows[setting].accuracy
            if work.time_left_s() < share_left * whole_s:
                break
        yield (
            "live",
            {
                "dtype": dtype,
                "samples": samples,
                "requests": requests,
                "bit-equal tokens": tokens_equal,
                "largest token distance / norm": f"{distance:.2g}",
                "equal answers": answers_equal,
                "equal accuracies": scores_equal,
                "near ties": _near_ties(ledger),
            },
        )


def _near_ties(ledger: Ledger) -> str:
    """Returns the numbers of answers with near ties in logits or router, which are repeated at batch 1."""
    counts = ledger.counts
    logits, router = counts["near_ties_logits"], counts["near_ties_router"]
    return f"logits {logits}, router {router} of {counts['answers_executed']}"
