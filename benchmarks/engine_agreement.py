"""Compares the engine's decisions with replay's, for every sample and budget of a cache.

The engine reads one probe row where the cache read a grid, so a latency token may differ in its last bit. A budget that
no setting is expected to meet gets the fastest setting in both.

    python benchmarks/engine_agreement.py runs/controllers runs/cache
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tables import markdown

from knobctl.controllers.checkpoint import Controllers
from knobctl.controllers.two_stage import TwoStagePolicy
from knobctl.data.cache.reader import open_cache
from knobctl.data.protocols import Requests
from knobctl.precompute.run.live_from_cache import samples_of
from knobctl.replay.policies.decide import decide
from knobctl.replay.reward import RewardWeights
from knobctl.replay.tables import ReplayTables
from knobctl.serving.engine import Engine


class FastestOnMiss(TwoStagePolicy):
    """The controllers with the engine's rule for budgets that nothing is expected to meet."""

    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return super().choose_image(self._restricted(requests))

    def choose_compute(self, requests: Requests, *arguments: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return super().choose_compute(self._restricted(requests), *arguments)

    def _restricted(self, requests: Requests) -> Requests:
        expected_BX = self.expected_ms(requests)
        fastest_B1 = np.nanmin(expected_BX, axis=1, keepdims=True)
        is_missed_B1 = fastest_B1 > requests.budget_ms_B[:, None]
        return replace(requests, available_BX=requests.available_BX & (~is_missed_B1 | (expected_BX == fastest_B1)))


@click.command(help=__doc__)
@click.argument("controllers_path", type=click.Path(path_type=Path))
@click.argument("cache_path", type=click.Path(path_type=Path))
@click.option("--samples", type=int, help="Compare only the first ones.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images.")
@click.option("--device", default="cpu", show_default=True)
def main(controllers_path: Path, cache_path: Path, samples: int | None, images: Path | None, device: str) -> None:
    cache = open_cache(cache_path)
    tables = ReplayTables.from_cache(cache, RewardWeights())
    controllers = Controllers.from_pretrained(controllers_path)
    sample_N, budgets = np.arange(len(cache.sample_ids))[:samples], range(len(tables.budgets_ms_M))
    replayed_NM = decide(FastestOnMiss(controllers), tables, sample_N, budgets)
    found = samples_of(cache, [cache.sample_ids[index] for index in sample_N], images, {})
    engine = Engine(controllers, device=device, warm_up=0)
    space, rows, settings, missed, start = controllers.space, [], set(), 0, time.perf_counter()
    for row, (name, sample) in enumerate(found.items()):
        data = sample.image.read_bytes()
        for budget in budgets:
            budget_ms = float(tables.budgets_ms_M[budget])
            answer = engine.answer(data, sample.question, budget_ms, task=sample.dataset, max_new_tokens=1)
            replayed = space.settings[replayed_NM[row, budget]]
            settings.add(answer.setting)
            missed += answer.expected_latency_ms > budget_ms
            if answer.setting != replayed:
                values = {"sample": name, "budget ms": budget_ms, "engine": answer.setting, "replay": replayed}
                rows.append(("differences", values))
        if row % 20 == 19:
            click.echo(f"{row + 1} of {len(found)} samples, {time.perf_counter() - start:.0f} s", err=True)
    requests = len(found) * len(budgets)
    click.echo(f"# The engine's decisions and replay's\n\n{requests - len(rows)} of {requests} decisions are equal,")
    click.echo(f"{len(found)} samples under {len(budgets)} budgets, {len(settings)} distinct settings;")
    click.echo(f"{missed} requests got a setting that is expected to take longer than the budget.\n")
    if rows:
        click.echo(markdown(rows))


if __name__ == "__main__":
    main()
