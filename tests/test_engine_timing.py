"""Sums over blocks, marks, budgets and latency checks, computed by hand; a timed request runs its plan."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from knobctl.data.errors import KnobctlError
from knobctl.precompute.execution.request_decoder import STEP
from knobctl.precompute.latency import clocks as timing
from knobctl.precompute.latency.block_times import (
    FORCED_STEPS,
    BlockTimes,
    LatencyCheck,
    TimedPlan,
    measure_blocks,
    measure_whole,
)
from knobctl.precompute.latency.clocks import request_times, stopwatch, timed
from knobctl.precompute.latency.timed_request import HEAD, READ, START, VISION, decoder_for, run_request
from knobctl.precompute.run.journal import Journal, check_summary
from knobctl.precompute.run.pilot import Pilot, parse_budgets
from knobctl.precompute.run.work_counts import Ledger
from knobctl.tests.support.tiny_model import SMALL_SPACE, easy_samples, tiny_knobs


@pytest.fixture(scope="module")
def knobs(tiny_model_dir):
    return tiny_knobs(tiny_model_dir, space=SMALL_SPACE)


@pytest.fixture(scope="module")
def prepared(knobs):
    sample = easy_samples(1)[0]
    rgb = knobs.pixels(sample)
    return knobs.prepare(sample, rgb, knobs.view(rgb, "low"))


def test_a_plans_latency_is_the_sum_of_its_blocks():
    """Two runs, two decoding steps, three blocks, top-k 2 and 4."""
    times = BlockTimes(
        passes=((2, 2, 2), (4, 4, 4)),
        vision_R=np.array([10.0, 20.0]),
        head_R=np.array([1.0, 1.0]),
        overhead_RT=np.array([[0.9, 0.1]] * 2),
        prefill_RBK=np.array([[[2.0, 4.0], [3.0, 5.0], [7.0, 9.0]]] * 2),
        decode_RTBK=np.array([[[[0.1, 0.3], [0.3, 0.4], [0.7, 0.8]], [[0.1, 0.1], [0.3, 0.4], [0.2, 0.4]]]] * 2),
    )
    one = times.latency((4, 0, 2), output_tokens=3)
    # prefill 1 + 4 + 7; steps of 0.9 + 0.3 + 0.7 and 0.1 + 0.1 + 0.2
    assert one.prefill_ms == pytest.approx(12.0)
    assert one.decode_ms == pytest.approx(2.3)
    assert one.latency_runs_ms == pytest.approx((24.3, 34.3))
    assert one.latency_ms == pytest.approx(29.3)
    assert one.latency_std_ms == pytest.approx(50**0.5)
    assert times.latency((4, 0, 2), output_tokens=1).decode_ms == 0.0
    # An answer of two tokens gets the first step alone; one longer than the timed steps, the mean of all.
    assert times.latency((4, 0, 2), output_tokens=2).decode_ms == pytest.approx(1.9)
    assert times.latency((4, 0, 2), output_tokens=11).decode_ms == pytest.approx(11.5)


def test_spans_are_assigned_to_stages():
    spans = [(VISION, 5.0), (0, 1.0), (READ, 0.25), (2, 2.0), (HEAD, 0.5), (0, 0.1), (2, 0.2), (STEP, 0.3)]
    spans += [(0, 0.1), (2, 0.4), (STEP, 0.3)]
    times = request_times(spans)
    assert times.vision_ms == 5.0
    assert times.prefill_ms == pytest.approx(3.75)
    assert times.decode_ms == pytest.approx(1.4)
    assert times.total_ms == pytest.approx(sum(ms for _, ms in spans))
    assert times.prefill_block_ms == {0: 1.0, 2: 2.0}
    assert times.decode_block_ms == {0: [0.1, 0.1], 2: [0.2, 0.4]}
    assert times.step_overhead_ms == [0.3, 0.3]


def test_marks_are_taken_in_order(monkeypatch):
    clock = iter([1.0, 1.5, 1.75])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    watch = stopwatch(torch.device("cpu"))
    for name in (START, VISION, HEAD):
        watch.mark(name)
    assert watch.spans() == [(VISION, 500.0), (HEAD, 250.0)]


def test_a_timed_request_runs_the_given_plan(knobs, prepared):
    """Its marks name the blocks that ran, and its tokens are those of the plan run alone."""
    sample, decoder = easy_samples(1)[0], decoder_for(knobs, prepared, num_tokens=3)
    for setting, plan in knobs.plans.items():
        if setting.tier != "low":
            continue
        marks: list[str | int] = []
        tokens = run_request(
            knobs,
            prepared,
            plan,
            setting.insertion_position,
            knobs.probe_MD[0],
            num_tokens=3,
            decoder=decoder,
            mark=marks.append,
        )
        running = [block for block, top_k in enumerate(plan) if top_k]
        before = [block for block in running if block < setting.insertion_position]
        prefill = [*before, READ, *running[len(before) :]]
        assert marks == [START, VISION, *prefill, HEAD, *([*running, STEP] * 2)]
        _, state = knobs.token_pass(prepared)
        assert tokens[: len(knobs.answer(state, plan, knobs.task(sample)))] == knobs.answer(
            state, plan, knobs.task(sample)
        )


def test_blocks_are_timed_for_every_top_k_and_run(knobs, prepared):
    plan = knobs.plans[knobs.space.settings[0]]
    whole = [TimedPlan(plan, 1, 2)]
    times, checks = measure_blocks(knobs, prepared, runs=3, draw=random.Random(0), end_to_end=whole)
    assert times.passes == ((2,) * 6, (4,) * 6)
    assert times.prefill_RBK.shape == (3, 6, 2)
    assert times.decode_RTBK.shape == (3, FORCED_STEPS, 6, 2)
    assert (times.prefill_RBK > 0).all()
    assert (times.decode_RTBK > 0).all()
    assert (times.vision_R > 0).all()
    assert len(checks) == 1
    measured = measure_whole(knobs, prepared, whole, runs=3, draw=random.Random(0))[0]
    assert len(measured.latency_runs_ms) == 3
    assert measured.vision_ms + measured.prefill_ms < max(measured.latency_runs_ms)


def test_timing_uses_one_thread_and_no_garbage_collection(knobs):
    seen = []
    torch.set_num_threads(2)
    try:
        with timing.quiet():
            timed(
                knobs.model.device,
                lambda _: seen.append((torch.get_num_threads(), timing.gc.isenabled())),
                blocks=False,
            )
        assert seen == [(1, False)]
        assert torch.get_num_threads() == 2
        assert timing.gc.isenabled()
    finally:
        torch.set_num_threads(1)


def test_the_check_states_errors_per_stage(tmp_path):
    checks = [
        LatencyCheck((1.0, 10.0, 0.0, 11.0), (1.0, 8.0, 0.0, 10.0)),
        LatencyCheck((2.0, 10.0, 0.0, 9.0), (1.0, 12.0, 0.0, 10.0)),
    ]
    journal = Journal(tmp_path)
    for part, check in enumerate(checks):
        ledger = Ledger()
        ledger.add("samples", part + 1)
        journal.append(f"part-{part}", ledger, [check])
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"part": "cut o')
    ledger, read = journal.read()
    assert ledger.counts["samples"] == 3
    assert read == checks
    ledger = Ledger()
    ledger.add("samples", 4)
    journal.append("part-2", ledger, [])  # starts a line of its own
    assert journal.read()[0].counts["samples"] == 7
    stages = check_summary(read)["stages"]
    assert set(stages) == {"vision", "prefill", "total"}  # nothing was decoded
    assert stages["vision"]["median_absolute_error"] == pytest.approx(0.5)
    assert stages["vision"]["error_of_mean"] == pytest.approx(0.5)
    assert stages["total"]["median_absolute_error"] == pytest.approx(0.1)
    assert stages["total"]["error_of_mean"] == pytest.approx(0.0)
    assert check_summary([]) is None


def test_budgets_are_ms_or_shares_of_the_full_setting():
    assert parse_budgets(["40,10", "0.5x"], lambda: 50.0) == (10.0, 25.0, 40.0)
    timings = iter([50.0])  # a second timing would give another number
    assert parse_budgets(["0.5x,1.0x"], lambda: next(timings)) == (25.0, 50.0)
    assert parse_budgets(["10"], lambda: pytest.fail("no share was given")) == (10.0,)
    for wrong in ("", "0", "-3", "x", "5y", "nan", "inf"):
        with pytest.raises(KnobctlError, match="budget"):
            parse_budgets([wrong], lambda: 50.0)


def test_the_default_grid_spans_the_pilot():
    pilot = Pilot(cheapest_ms=(9.0, 10.0, 30.0), full_ms=tuple(float(ms) for ms in range(100, 201)))
    grid = pilot.grid()
    assert len(grid) == 16
    assert grid[0] == 10.0
    assert grid[-1] == 195.0
    assert all(budget == int(budget) for budget in grid)
