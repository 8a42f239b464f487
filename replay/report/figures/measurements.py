"""Figures about what the cache and the live model measured: importance, blockwise and live latencies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .cells import DataTable, number, table
from .source import Absent, ReportSource, plural

MAX_ROWS = 500  # of the table of live latencies


class Importance(NamedTuple):
    """Accuracy lost when one block is left out, by block; None: not scored, always kept."""

    scores: tuple[float | None, ...]
    std: tuple[float | None, ...] | None  # over the runs
    runs: int | None
    where: str | None  # what the scores were measured on

    @property
    def caption(self) -> str:
        bars = f"Bars: standard deviation over {plural(self.runs, 'run')}. " if self.std and self.runs else ""
        left = [str(block) for block, score in enumerate(self.scores) if score is None]
        kept = f"Not scored and always kept: block {', '.join(left)}. " if left else ""
        where = f"Scores {self.where}. " if self.where else ""
        return (
            "Accuracy that is lost when one block is skipped. With fewer blocks, the least important ones are "
            f"skipped first. {bars}{kept}{where}".rstrip()
        )

    @property
    def table(self) -> DataTable:
        std = self.std or (None,) * len(self.scores)
        return table(
            ("block", "accuracy lost (points)", "standard deviation (points)"),
            (
                (number(block, 0), number(score, 1, percent=True), number(spread, 1, percent=True))
                for block, (score, spread) in enumerate(zip(self.scores, std, strict=True))
            ),
        )


def importance(source: ReportSource) -> Importance | Absent:
    found = source.cache.manifest.importance
    if found is None:
        return Absent("the cache has no importance scores")
    return Importance(found.scores, found.std, found.runs, found.source)


class StageError(NamedTuple):
    """Relative error of the sum over blocks, against the same settings timed end to end; 0.01 is 1 %."""

    stage: str
    error_of_mean: float  # of the means over all settings, signed
    median_absolute: float
    p95_absolute: float


class BlockwiseError(NamedTuple):
    """How far latencies added up from blocks are from latencies timed end to end."""

    stages: tuple[StageError, ...]
    n_settings: int
    device: str | None

    @property
    def caption(self) -> str:
        device = f" on {self.device}" if self.device else ""
        return (
            "Latencies in this cache are sums over blocks, each timed while the whole model ran. A random share was "
            f"also timed end to end{device}: n = {plural(self.n_settings, 'setting')}. Errors are relative to the time "
            "end to end; without intervals."
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("stage", "error of the mean (%)", "median absolute error (%)", "95th percentile (%)"),
            (
                (
                    one.stage,
                    number(one.error_of_mean, 2, percent=True, sign=True),
                    number(one.median_absolute, 2, percent=True),
                    number(one.p95_absolute, 2, percent=True),
                )
                for one in self.stages
            ),
        )


def blockwise_error(source: ReportSource) -> BlockwiseError | Absent:
    manifest = source.cache.manifest
    if manifest.latency_mode != "blockwise":
        how = {"end_to_end": "were timed end to end", "imported": "were imported"}[manifest.latency_mode]
        return Absent(f"the latencies of this cache {how}, not added up from blocks")
    check = manifest.latency_check
    if check is None:
        return Absent("the cache records no check of its latencies against requests timed end to end")
    stages = check.get("stages")
    count = check.get("settings")
    columns = ("error_of_mean", "median_absolute_error", "p95_absolute_error")
    if not isinstance(stages, dict) or type(count) is not int or not stages:
        return Absent("`latency_check` in cache.json has no stages and settings")
    found = []
    for stage, errors in stages.items():
        values: list[Any] = [errors.get(column) for column in columns] if isinstance(errors, dict) else []
        numbers = [float(value) for value in values if type(value) in (int, float) and math.isfinite(value)]
        if len(numbers) != len(columns):
            return Absent(f"`latency_check` in cache.json lacks numbers of stage `{stage}`")
        found.append(StageError(str(stage), *numbers))
    device = (manifest.device or {}).get("name")
    return BlockwiseError(tuple(found), count, device if isinstance(device, str) else None)


class LatencyPair(NamedTuple):
    """One sample under one setting."""

    replay_ms: float  # in the cache
    live_ms: float  # measured in `validate --live`


class LiveLatency(NamedTuple):
    """Latencies of the running model against those that replay looks up, and how often both agree."""

    pairs: tuple[LatencyPair, ...]
    n_samples: int
    median_absolute_error: float  # relative, 0 to 1
    same_setting: tuple[int, int]  # equal, compared
    same_answer: tuple[int, int]

    @property
    def caption(self) -> str:
        (setting, settings), (answer, answers) = self.same_setting, self.same_answer
        return (
            f"The running model against what replay looked up. It chose the same setting in {setting:,} of "
            f"{settings:,} requests and gave the same answer in {answer:,} of {answers:,}. The latency, which "
            "includes the controllers' own time here but not in the cache, differed by "
            f"{self.median_absolute_error:.1%} in the median. n = {plural(len(self.pairs), 'timed request')} of "
            f"{plural(self.n_samples, 'question')}; without intervals."
        )

    @property
    def table(self) -> DataTable:
        return table(
            ("pair", "in the cache (ms)", "running model (ms)"),
            (
                (number(place, 0), number(pair.replay_ms, 2), number(pair.live_ms, 2))
                for place, pair in enumerate(self.pairs[:MAX_ROWS], start=1)
            ),
        )


def live_latency(source: ReportSource) -> LiveLatency | Absent:
    live, cache = source.live, source.cache
    if live is None:
        return Absent("no report of a live run was given with --live-report")
    pairs, samples, known = [], set(), set(cache.space.settings)
    for timing in live.timings:
        sample = cache.sample_index.get(timing.sample_id)
        if sample is None or timing.setting not in known:
            continue
        replay_ms = float(cache.latency_ms_SX[sample, cache.space.index(timing.setting)])
        if math.isfinite(replay_ms):
            samples.add(sample)
            pairs.append(LatencyPair(replay_ms, timing.latency_ms))
    if not pairs:
        return Absent("the live run has no latency that the cache has too")
    error = np.array([abs(pair.live_ms / pair.replay_ms - 1) for pair in pairs])
    return LiveLatency(tuple(pairs), len(samples), float(np.median(error)), live.same_setting, live.same_answer)
