"""Compares shared execution of all settings with running one setting after the other at batch 1.

Both methods run in one process, alternating between samples, and their answers and latency tokens are compared. Running
one by one means for each setting of each sample: vision, the whole prompt with its probes, every block of the plan, and
decoding, at batch 1 and on one thread (a second thread does not speed up blocks of this size).

    python benchmarks/precompute.py --model nano --samples 4
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.data.budgets import normalise_budgets
from knobctl.data.knobs import KnobSetting
from knobctl.data.plans import ImportanceScores
from knobctl.data.samples import Sample
from knobctl.devices import single_thread
from knobctl.precompute.execution.answer_sweep import answer_alone
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.execution.token_pass import token_pass
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.run.sample import MeasureConfig, SampleResult, SampleRunner
from knobctl.precompute.run.work_counts import Ledger

# The order in which the published scores of a 16-block model drop blocks: 4, 13, 10, 2, ...
DROPPED_FIRST = (4, 13, 10, 2, 3, 11, 6, 7, 15, 9, 12, 14, 8, 5, 1, 0)
PUBLISHED_ORDER = ImportanceScores(tuple(float(DROPPED_FIRST.index(block)) for block in range(16)))

Answers = dict[KnobSetting, str]
Tokens = dict[KnobSetting, NDArray[np.float16]]  # [M, D]


class AnswersOnly(SampleRunner):
    """A runner without timed runs."""

    def _measure_latencies(self, *_: object) -> None:
        pass


def one_by_one(
    knobs: KnobModel, sample: Sample, settings: Iterable[KnobSetting], go_on: Callable[[], bool] = lambda: True
) -> tuple[Answers, Tokens]:
    """Runs each setting separately: vision, the blocks up to its position with the probes, the rest, decoding.

    Args:
        go_on: called after every setting; if it returns False, the remaining settings are not run.
    """
    answers: Answers = {}
    tokens: Tokens = {}
    rgb = knobs.pixels(sample)
    task = knobs.task(sample)
    for setting in settings:
        plan = knobs.plans[setting]
        prepared = knobs.prepare(sample, rgb, knobs.view(rgb, setting.tier))
        with torch.inference_mode(), single_thread():
            prompt = knobs.embed(prepared)
            token_PMD, state = token_pass(knobs.model, prompt, knobs.probe_MD, (setting.insertion_position,))
        ids = answer_alone(knobs.model, state, plan, max_new_tokens=task.max_new_tokens)
        answers[setting], tokens[setting] = knobs.text(ids), token_PMD[0]
        if not go_on():
            break
    return answers, tokens


def compare(knobs: KnobModel, shared: SampleResult, answers: Answers, tokens: Tokens) -> tuple[int, float]:
    """Returns the number of differing answers, and the largest distance between tokens relative to their norm."""
    differing = sum(shared.outcomes[setting].answer != answer for setting, answer in answers.items())
    worst = 0.0
    for setting, token_MD in tokens.items():
        mine_MD = shared.token_PMD[setting.tier][knobs.positions.index(setting.insertion_position)].astype(np.float32)
        distance_M = np.linalg.norm(mine_MD - token_MD.astype(np.float32), axis=1)
        worst = max(worst, float((distance_M / np.linalg.norm(mine_MD, axis=1)).max()))
    return differing, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dataset", action="append")
    parser.add_argument("--samples", type=int, default=2, help="of each dataset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    from knobctl.data.datasets.sample_set import load_samples  # needs polars, which importers of this file may lack

    loaded = load_model(options.model, device=options.device)
    sets = [
        load_samples(name, limit=options.samples, seed=1) for name in options.dataset or ["easy_vqa", "small_print"]
    ]
    knobs = KnobModel(
        loaded,
        space=loaded.model.default_knobs(),
        importance=ImportanceScores(PUBLISHED_ORDER.scores[: loaded.model.geometry.n_blocks]),
        encoder=BudgetEncoder.from_seed(loaded.model.geometry.d_model, 0),
        tasks={one.name: Task(one.metric, one.max_new_tokens, one.style) for one in sets},
        budgets_ms=normalise_budgets(np.geomspace(10, 160, 16)),
    )
    samples = [sample for one in sets for sample in one.samples]
    ledger = Ledger(loaded.model.device)
    runner = AnswersOnly(knobs, MeasureConfig(threads=options.threads), ledger)
    AnswersOnly(knobs, MeasureConfig(threads=options.threads), Ledger()).run(samples[0])  # warm-up
    seconds = {"shared": 0.0, "one_by_one": 0.0}
    differing, worst = 0, 0.0
    for sample in samples:
        started = time.perf_counter()
        shared = runner.run(sample)
        between = time.perf_counter()
        answers, tokens = one_by_one(knobs, sample, knobs.plans)
        seconds["shared"] += between - started
        seconds["one_by_one"] += time.perf_counter() - between
        more, distance = compare(knobs, shared, answers, tokens)
        differing, worst = differing + more, max(worst, distance)
    report = {
        "samples": len(samples),
        "threads": options.threads,
        "seconds_per_sample": {name: round(total / len(samples), 3) for name, total in seconds.items()},
        "times_as_fast": round(seconds["one_by_one"] / seconds["shared"], 2),
        "answers_differing": differing,
        "largest_token_distance_of_norm": worst,
        **ledger.to_dict(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
