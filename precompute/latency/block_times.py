"""The latency of every plan from a few runs of the whole model: times between blocks, summed for each plan.

For run r, latency_r = vision_r + head_r + sum over active blocks of prefill_r[b, k_b]
+ (output_tokens - 1) * (step_overhead_r + sum over active blocks of decode_r[b, k_b]),
where decoding times are means over the forced steps, or over the first ones if the answer has fewer.

The passes of one run, one for each top-k and one of the whole model as it is, follow each other in an order drawn for
every run, so that a temporary slowdown of the machine affects them all. Every pass starts with vision, as a request
does: without it the first blocks would find their weights in the processor's cache. A random share of settings is run
end to end in between, as a check.

Axes: R runs, T decoding steps, B blocks, K passes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.plans import BlockPlan, uniform_plan
from ..execution.knob_model import KnobModel
from ..execution.request_decoder import RequestDecoder
from ..models.backbone import Prompt
from .clocks import RequestTimes, quiet, timed
from .timed_request import decoder_for, run_request

FORCED_STEPS = 4  # decoding steps that a pass times, independent of the answer's length


class PlanLatency(NamedTuple):
    """Latency of one plan: medians over the runs, and each run's total."""

    latency_ms: float
    latency_std_ms: float | None  # None with a single run
    vision_ms: float | None  # None if a recorded result lacks it
    prefill_ms: float | None
    decode_ms: float | None
    latency_runs_ms: tuple[float, ...]  # totals


class TimedPlan(NamedTuple):
    """A plan to run end to end, with its insertion position and the number of tokens of its answer."""

    plan: BlockPlan
    position: int
    output_tokens: int


@dataclass(frozen=True)
class LatencyCheck:
    """The sum over blocks and the same setting run end to end, in ms: vision, prefill, decode, total."""

    blockwise_ms: tuple[float, float, float, float]
    end_to_end_ms: tuple[float, float, float, float]


@dataclass(frozen=True)
class BlockTimes:
    """The times of one prompt's stages and blocks in ms, for each run."""

    passes: tuple[BlockPlan, ...]  # K; each runs every block
    vision_R: NDArray[np.float64]
    head_R: NDArray[np.float64]  # reading the latency token, final norm, head, first token
    prefill_RBK: NDArray[np.float64]
    overhead_RT: NDArray[np.float64]  # of each decoding step, outside the blocks
    decode_RTBK: NDArray[np.float64]

    def longest_ms(self, plan: BlockPlan) -> float:
        """Returns the latency of the longest timed answer under `plan`."""
        return self.latency(plan, self.overhead_RT.shape[1] + 1).latency_ms

    def latency(self, plan: BlockPlan, output_tokens: int) -> PlanLatency:
        """Returns the latency of an answer of `output_tokens` tokens under `plan`."""
        active = [block for block, top_k in enumerate(plan) if top_k]
        column = [self._column(block, plan[block]) for block in active]
        prefill_R = self.head_R + self.prefill_RBK[:, active, column].sum(axis=1)
        if output_tokens == 1:
            return summarise(self.vision_R, prefill_R, np.zeros_like(prefill_R))
        # The first steps after a prompt are slower (cold caches), so a short answer gets the mean of its own steps.
        step_RT = self.overhead_RT + self.decode_RTBK[:, :, active, column].sum(axis=2)
        step_R = step_RT[:, : output_tokens - 1].mean(axis=1)
        return summarise(self.vision_R, prefill_R, (output_tokens - 1) * step_R)

    def _column(self, block: int, top_k: int) -> int:
        """Returns the pass that ran a block with this top-k."""
        return next(column for column, plan in enumerate(self.passes) if plan[block] == top_k)


def summarise(
    vision_R: NDArray[np.float64], prefill_R: NDArray[np.float64], decode_R: NDArray[np.float64]
) -> PlanLatency:
    """Returns medians over runs, and the runs. The median of the total is not the sum of the stages' medians."""
    total = [float(ms) for ms in vision_R + prefill_R + decode_R]
    return PlanLatency(
        median(total),
        stdev(total) if len(total) > 1 else None,
        float(np.median(vision_R)),
        float(np.median(prefill_R)),
        float(np.median(decode_R)),
        tuple(total),
    )


def measure_blocks(
    knobs: KnobModel,
    prepared: Prompt,
    *,
    runs: int,
    draw: random.Random,
    end_to_end: Sequence[TimedPlan] = (),
) -> tuple[BlockTimes, list[LatencyCheck]]:
    """Times one prompt block by block, and the plans of `end_to_end` whole, interleaved, to compare both."""
    passes = _passes(knobs)
    native = next(index for index, one in enumerate(passes) if one.position)
    requests = [*passes, *end_to_end]
    times: list[list[RequestTimes]] = [[] for _ in requests]  # [request][run]
    decoder = decoder_for(knobs, prepared, max(request.output_tokens for request in requests))
    with quiet():
        _run(knobs, prepared, passes[native], decoder, blocks=True)  # warm-up
        for _ in range(runs):
            order = list(range(len(requests)))
            draw.shuffle(order)
            for index in order:
                times[index].append(_run(knobs, prepared, requests[index], decoder, blocks=index < len(passes)))
    block_times = _block_times(tuple(one.plan for one in passes), times[: len(passes)], native)
    checks = [
        _check(block_times.latency(whole.plan, whole.output_tokens), runs_of)
        for whole, runs_of in zip(end_to_end, times[len(passes) :], strict=True)
    ]
    return block_times, checks


def measure_whole(
    knobs: KnobModel, prepared: Prompt, plans: Sequence[TimedPlan], *, runs: int, draw: random.Random
) -> list[PlanLatency]:
    """Times every plan end to end, `runs` times, interleaved."""
    times: list[list[RequestTimes]] = [[] for _ in plans]
    decoder = decoder_for(knobs, prepared, max(plan.output_tokens for plan in plans))
    with quiet():
        _run(knobs, prepared, plans[0], decoder, blocks=False)  # warm-up
        for _ in range(runs):
            order = list(range(len(plans)))
            draw.shuffle(order)
            for index in order:
                times[index].append(_run(knobs, prepared, plans[index], decoder, blocks=False))
    return [
        summarise(
            np.array([one.vision_ms for one in runs_of]),
            np.array([one.prefill_ms for one in runs_of]),
            np.array([one.decode_ms for one in runs_of]),
        )
        for runs_of in times
    ]


def _passes(knobs: KnobModel) -> list[TimedPlan]:
    """Returns the request of each pass, by top-k: all blocks with one top-k, and the whole model as it is.

    Only the latter carries the probe, because blocks before the insertion position run with their native top-k.
    """
    native_top_k = knobs.model.geometry.native_top_k
    position = {knobs.native: max(knobs.positions)}
    plans = {knobs.native, *(uniform_plan(native_top_k, top_k) for top_k in knobs.space.top_k)}
    return [TimedPlan(plan, position.get(plan, 0), FORCED_STEPS + 1) for plan in sorted(plans)]


def _run(
    knobs: KnobModel,
    prepared: Prompt,
    request: TimedPlan,
    decoder: RequestDecoder,
    *,
    blocks: bool,
) -> RequestTimes:
    return timed(
        knobs.model.device,
        lambda mark: run_request(
            knobs,
            prepared,
            request.plan,
            request.position,
            knobs.probe_MD[0],
            num_tokens=request.output_tokens,
            decoder=decoder,
            mark=mark,
        ),
        blocks=blocks,
    )


def _block_times(plans: tuple[BlockPlan, ...], times: Sequence[Sequence[RequestTimes]], native: int) -> BlockTimes:
    """Collects the times, whose axes are (pass, run). Stages that do not depend on k are means over a run's passes.

    Means, not medians, because a sum of medians of skewed times is below the median of their sum.
    """
    by_run = list(zip(*times, strict=True))
    native_R = [passes[native] for passes in by_run]
    head_R = [fmean(one.head_ms for one in passes) for passes in by_run]
    blocks, steps = range(len(plans[native])), range(FORCED_STEPS)
    return BlockTimes(
        plans,
        np.array([fmean(one.vision_ms for one in passes) for passes in by_run]),
        np.array(head_R) + np.array([one.read_ms for one in native_R]),
        np.array([[[one.prefill_block_ms[block] for one in passes] for block in blocks] for passes in by_run]),
        np.array([[fmean(one.step_overhead_ms[step] for one in passes) for step in steps] for passes in by_run]),
        np.array(
            [
                [[[one.decode_block_ms[block][step] for one in passes] for block in blocks] for step in steps]
                for passes in by_run
            ]
        ),
    )


def _check(latency: PlanLatency, whole: Sequence[RequestTimes]) -> LatencyCheck:
    assert latency.vision_ms is not None, "a timed pass includes vision"
    assert latency.prefill_ms is not None
    assert latency.decode_ms is not None
    return LatencyCheck(
        (latency.vision_ms, latency.prefill_ms, latency.decode_ms, latency.latency_ms),
        (
            median(one.vision_ms for one in whole),
            median(one.prefill_ms for one in whole),
            median(one.decode_ms for one in whole),
            median(one.total_ms for one in whole),
        ),
    )
