"""Time and memory of `knobctl report` on a generated cache: `python benchmarks/report.py [--samples 2000]`.

The cache has that many test samples and as many for training, 375 settings and 16 budgets. Training is not measured.
The commands run in processes of their own; their peak memory is that of the process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import psutil

PYTHON = sys.executable
LIMIT_S, LIMIT_GB, LIMIT_MB = 30.0, 1.5, 3.0


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float  # on a busy machine, `seconds` is longer
    gigabytes: float  # peak resident memory, sampled every 20 ms


def measured(words: list[str]) -> Cost:
    """Runs a command and returns what it took."""
    start, peak = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = psutil.Popen([PYTHON, *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:  # it ended in this moment
            break
        time.sleep(0.02)
    if process.wait():
        raise click.ClickException(f"failed: {' '.join(words)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - start, cpu, peak / 1e9)


@click.command()
@click.option("--samples", default=2000, show_default=True, help="Test samples; as many for training.")
@click.option("--budgets", default=16, show_default=True, help="Budgets of the grid.")
@click.option("--d-model", default=64, show_default=True, help="Width of features and tokens.")
def main(samples: int, budgets: int, d_model: int) -> None:
    """Measure `knobctl report` with controllers, and compare it with its targets."""
    with tempfile.TemporaryDirectory() as folder:
        cache, controllers, page = (str(Path(folder) / name) for name in ("cache", "controllers", "report.html"))
        sizes = [f"--train={samples}", f"--val={samples // 4}", f"--test={samples}", f"--budgets={budgets}"]
        measured(["-m", "knobctl.data.generated.cache", cache, *sizes, f"--d-model={d_model}"])
        measured(["-m", "knobctl.cli", "train", cache, "--out", controllers, "--epochs", "5"])
        cost = measured(["-m", "knobctl.cli", "report", cache, controllers, "--out", page])
        megabytes = Path(page).stat().st_size / 1e6
    figures = {
        "samples": f"{samples:,}",
        "budgets": f"{budgets}",
        "seconds (target)": f"{cost.seconds:.1f} ({LIMIT_S:g})",
        "CPU seconds": f"{cost.cpu_seconds:.1f}",
        "peak GB (target)": f"{cost.gigabytes:.2f} ({LIMIT_GB:g})",
        "page MB (target)": f"{megabytes:.2f} ({LIMIT_MB:g})",
    }
    for row in (figures, ["---"] * len(figures), figures.values()):
        click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
