"""Time and memory of `knobctl report` on a generated cache: `python benchmarks/report.py [--samples 2000]`.

The cache has that many test samples and as many for training, 375 settings and 16 budgets. Training is not measured.
The commands run in processes of their own; their peak memory is that of the process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil

PYTHON = sys.executable
LIMIT_S, LIMIT_GB, LIMIT_MB = 30.0, 1.5, 3.0


def measured(words: list[str]) -> tuple[float, float]:
    """Runs a command and returns its seconds and its peak resident memory in GB, sampled every 20 ms."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen([PYTHON, *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:  # it ended in this moment
            break
        time.sleep(0.02)
    if process.wait():
        raise click.ClickException(f"failed: {' '.join(words)}")
    return time.perf_counter() - start, peak / 1e9


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
        seconds, gigabytes = measured(["-m", "knobctl.cli", "report", cache, controllers, "--out", page])
        megabytes = Path(page).stat().st_size / 1e6
    click.echo("| samples | settings | budgets | seconds (target) | peak GB (target) | page MB (target) |")
    click.echo("|---|---|---|---|---|---|")
    click.echo(
        f"| {samples:,} | 375 | {budgets} | {seconds:.1f} ({LIMIT_S:g}) | {gigabytes:.2f} ({LIMIT_GB:g}) "
        f"| {megabytes:.2f} ({LIMIT_MB:g}) |"
    )


if __name__ == "__main__":
    main()
