"""Measures the controllers' own time for one request under different threads, caches, budgets and number types.

The conditions alternate in one process, so a slow period of the machine affects all of them. In addition to wall time,
the script reports the thread's CPU time and the share of calls that were interrupted by another process: on a busy
machine, interruptions and not the work determine the 95th percentile.

    python benchmarks/controllers.py --repeats 100
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.conditions import ModelIdentity
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.knobs import KnobSpace
from knobctl.data.plans import ImportanceScores
from knobctl.data.protocols import Requests
from knobctl.devices import num_threads
from knobctl.precompute.execution.knob_model import KnobModel, Task
from knobctl.precompute.models.loading import load_model
from knobctl.precompute.run.live import LiveExecutor

BUDGETS_MS = tuple(float(ms) for ms in np.geomspace(10, 160, 16))
LARGER_THAN_CACHES = 96 << 20  # bytes

Call = Callable[[], object]


def measure(call: Call) -> tuple[float, float, bool]:
    """Returns wall ms, CPU ms of the thread, and whether another process interrupted the call."""
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    wall, cpu = time.perf_counter(), time.thread_time()
    call()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return 1e3 * wall, 1e3 * cpu, resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw > switches


class World:
    """The bundled model, one sample, and untrained controllers, which take the same time as trained ones."""

    def __init__(self) -> None:
        loaded = load_model("nano", device="cpu")
        geometry, drawn = loaded.model.geometry, load_samples("easy_vqa", limit=1, seed=1)
        encoder = BudgetEncoder.from_seed(geometry.d_model, 0)
        self.space, self.sample = KnobSpace(), drawn.samples[0]
        self.knobs = KnobModel(
            loaded,
            space=self.space,
            importance=ImportanceScores(tuple(float(block) for block in range(geometry.n_blocks))),
            encoder=encoder,
            tasks={drawn.name: Task(drawn.metric, drawn.max_new_tokens, drawn.style)},
            budgets_ms=BUDGETS_MS,
        )
        identity = ModelIdentity("nano", geometry.d_model, geometry.n_blocks, geometry.largest_top_k)
        self.controllers = Controllers.untrained(self.space, identity, BUDGETS_MS, encoder)
        self.policy = TwoStagePolicy(self.controllers)
        live = LiveExecutor(self.knobs)
        self.token_D, self.handle = live.latency_token(self.sample, self.space.tiers[0], 2, BUDGETS_MS[0])
        self.language_D = live.language_feature(self.sample)
        self.junk = np.zeros(LARGER_THAN_CACHES // 8)
        self._new_budgets = (1000.0 + number for number in count())

    def choose(self, budget_ms: float = BUDGETS_MS[3]) -> None:
        """Runs both stages for one request."""
        requests = Requests(
            (self.sample.sample_id,), (self.sample.dataset,), self.language_D[None], np.array([budget_ms], np.float32)
        )
        tier_B, position_B = self.policy.choose_image(requests)
        self.policy.choose_compute(requests, tier_B, position_B, self.token_D[None])

    def choose_for_a_new_budget(self) -> None:
        self.choose(next(self._new_budgets))

    def run_model(self) -> None:
        """Runs what a server runs between two choices: vision, prefill and decoding, on one thread."""
        self.knobs.token_pass(self.handle.prepared)
        self.knobs.answer(self.handle.state, self.knobs.plan(2, 8, 16), self.knobs.task(self.sample))

    def sweep_caches(self) -> None:
        self.junk += 1.0

    def forward(self, dtype: torch.dtype, mode: Callable[[], AbstractContextManager[None]]) -> Call:
        """Returns a call of the two networks only, without the rest of the policy."""
        stage1, stage2 = (copy.deepcopy(net).to(dtype) for net in (self.controllers.stage1, self.controllers.stage2))
        language_BD, token_BD = (torch.from_numpy(x[None]).to(dtype) for x in (self.language_D, self.token_D))
        encoded_BD = torch.zeros(1, language_BD.shape[1], dtype=dtype)
        place_B = torch.tensor([1])

        def call() -> None:
            with mode():
                stage1(language_BD, encoded_BD)
                stage2(token_BD, place_B, place_B)

        return call


def nothing() -> None:
    """Leaves the processor caches unchanged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100, help="calls for each condition")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    world = World()
    double = world.forward(torch.float64, torch.no_grad)
    conditions: dict[str, tuple[Call, int, Call]] = {
        "both stages, caches warm, 1 thread": (world.choose, 1, world.choose),
        f"the same, {cores} threads": (world.choose, cores, world.choose),
        "after the model, 1 thread": (world.run_model, 1, world.choose),
        f"after the model, {cores} threads": (world.run_model, cores, world.choose),
        "after a sweep through 96 MB, 1 thread": (world.sweep_caches, 1, world.choose),
        "a new budget, caches warm, 1 thread": (world.choose, 1, world.choose_for_a_new_budget),
        "a new budget, after the model, 1 thread": (world.run_model, 1, world.choose_for_a_new_budget),
        "networks alone, caches warm, 1 thread": (double, 1, double),
        "networks alone, after the model": (world.run_model, 1, double),
        "the same, float32": (world.run_model, 1, world.forward(torch.float32, torch.no_grad)),
        "the same, torch.inference_mode": (world.run_model, 1, world.forward(torch.float64, torch.inference_mode)),
        "token from float16 to float64": (world.run_model, 1, lambda: world.token_D.astype(np.float64)),
    }
    times: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in conditions}
    for repeat in range(options.repeats + 2):
        for name, (before, threads, call) in conditions.items():
            with num_threads(threads):
                before()
                found = measure(call)
            if repeat >= 2:  # the first ones include set-up
                times[name].append(found)
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {options.repeats} calls each\n")
    print("| condition | median ms | p95 ms | median CPU ms | interrupted |\n|---|---|---|---|---|")
    for name, found in times.items():
        row: NDArray[np.float64] = np.array(found, dtype=np.float64)
        median, p95 = np.quantile(row[:, 0], [0.5, 0.95])
        print(f"| {name} | {median:.2f} | {p95:.2f} | {np.median(row[:, 1]):.2f} | {row[:, 2].mean():.0%} |")
    print(f"\none full garbage collection: {measure(gc.collect)[0]:.0f} ms")


if __name__ == "__main__":
    main()
