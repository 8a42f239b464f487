"""Compares `--ray local --workers 2` with `--workers 2` on the same samples, in alternating runs.

    python benchmarks/ray_overhead.py --repeats 3

Start-up is the time until `run.json` is written: loading and, with Ray, starting the cluster. The overhead is
the ratio of the times from then until the cache is complete.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from knobctl.tests.support.ray_cluster import ray_home

WAYS = {"workers": ("--workers", "2"), "ray": ("--ray", "local", "--workers", "2")}


def run(out: Path, way: str, samples: int) -> tuple[float, float]:
    """Runs one way; returns the seconds of the start-up and of the parts."""
    command = [
        sys.executable,
        "-m",
        "knobctl.cli",
        "precompute",
        "--model",
        "nano",
        "--dataset",
        "easy_vqa",
        *WAYS[way],
    ]
    command += ["--samples", str(samples), "--tiers", "low", "--runs", "1", "--budgets", "15,20,25", "--device", "cpu"]
    started = time.time()
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun, ended = ((out / name).stat().st_mtime for name in ("run.json", "cache.json"))
    return begun - started, ended - begun


@click.command()
@click.option("--repeats", default=3, show_default=True)
@click.option("--samples", default=64, show_default=True)
def main(repeats: int, samples: int) -> None:
    """Print the times of every run and the ratio of their medians as JSON."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, ray_home():
        run(Path(folder) / "first", "workers", samples)  # measures the importance scores, which later runs reuse
        for repeat in range(repeats):
            for way in WAYS if repeat % 2 == 0 else reversed(WAYS):
                times[way].append(run(Path(folder) / f"{way}-{repeat}", way, samples))
                click.echo(f"{way}: {times[way][-1][0]:.1f} s, then {times[way][-1][1]:.1f} s", err=True)
    parts_s = {way: median(parts for _, parts in runs) for way, runs in times.items()}
    startup_s = {way: median(startup for startup, _ in runs) for way, runs in times.items()}
    result = {
        "samples": samples,
        "runs_s": {way: [[round(value, 2) for value in one] for one in runs] for way, runs in times.items()},
        "startup_s": {way: round(value, 2) for way, value in startup_s.items()},
        "parts_s": {way: round(value, 2) for way, value in parts_s.items()},
        "overhead": round(parts_s["ray"] / parts_s["workers"] - 1, 4),
    }
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
