"""Small runs of nano for the tests of Ray, and their driver as a process that a test can kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from knobctl.data.importer import save_importance
from knobctl.data.knobs import KnobSpace
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.tests.support.tiny_model import published_order

SAMPLES = 48
SPACE = KnobSpace(("low",), (1,), (4, 8), (12, 16), tier_crops=((1, 3),))


def ray_config(folder: Path, ray: str | None = None, **changes: Any) -> PrecomputeConfig:
    """A run of nano, of which each part takes about a second."""
    importance = folder / "importance.json"
    if not importance.exists():
        save_importance(published_order(), importance)
    config = PrecomputeConfig(
        model="nano",
        datasets=("easy_vqa",),
        out=folder / "cache",
        samples=SAMPLES,
        device="cpu",
        budgets=("15", "20"),
        runs=1,
        part_samples=4,
        importance=importance,
        space=SPACE,
        ray=ray,
    )
    return replace(config, **changes)


@contextmanager
def driver(config: PrecomputeConfig) -> Iterator[subprocess.Popen[str]]:
    """The command that runs `config`, in a process; killed at the end of the body if it has not ended."""
    command = [sys.executable, "-m", "knobctl.cli", "precompute", "--model", config.model, "--dataset", "easy_vqa"]
    command += ["--samples", str(config.samples), "--device", "cpu", "--runs", "1", "--out", str(config.out)]
    command += ["--budgets", ",".join(config.budgets), "--importance", str(config.importance)]
    command += ["--tiers", "low=1-3", "--positions", "1", "--top-k", "4,8", "--num-blocks", "12,16", "--json"]
    if config.ray is not None:
        command += ["--ray", config.ray]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
