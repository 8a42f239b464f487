"""Kills workers, nodes and the driver of runs on a local Ray cluster at random moments, and checks every result.

    python benchmarks/ray_soak.py --times 10

Each run is `knobctl precompute --model nano --ray ADDRESS` on a cluster of three nodes of this machine. Something is
killed (SIGKILL) at a seeded random moment of the run; if that was the driver, the same command is started again. The
rows must then equal those of one process, times aside. No run may take longer than --limit-s.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from knobctl.benchmarks.soak import cache_content, cache_problems
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.ray_cluster import RayCluster, actors, ray_cluster
from knobctl.tests.support.ray_runs import SAMPLES, driver, ray_config

VICTIMS = ("worker", "node", "driver")


@dataclass
class RaySoakReport:
    """What was killed how often, and the problems found."""

    killed: Counter[str] = field(default_factory=Counter)
    in_the_middle: Counter[str] = field(default_factory=Counter)  # kills while samples were left
    run_s: dict[str, list[float]] = field(default_factory=dict)  # from start to end, resuming included
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "killed": dict(self.killed), "in_the_middle": dict(self.in_the_middle)}


def soak(root: Path, *, times: int, seed: int, limit_s: float, say: Any = lambda _text: None) -> RaySoakReport:
    """Kills a worker, a node and the driver, each `times` times in the middle of a run. Stops at the first problem."""
    draw, report = random.Random(seed), RaySoakReport()
    reference = root / "reference"
    reference.mkdir()
    config = ray_config(reference)
    precompute(config)
    expected = cache_content(config.out)
    with ray_cluster() as cluster:
        number = 0
        while not report.problems and (left := [one for one in VICTIMS if report.in_the_middle[one] < times]):
            victim = draw.choice(left)
            folder = root / str(number)
            number += 1
            folder.mkdir()
            config = ray_config(folder, cluster.address)
            started = time.perf_counter()
            report.problems += _run(config, cluster, victim, draw, limit_s, report)
            seconds = time.perf_counter() - started
            report.run_s.setdefault(victim, []).append(round(seconds, 1))
            if not report.problems:
                report.problems += [str(problem) for problem in cache_problems(config.out)]
            if not report.problems and cache_content(config.out) != expected:
                report.problems.append(f"{config.out}: rows differ from those of one process")
            end = time.monotonic() + 30
            while actors() and time.monotonic() < end:
                time.sleep(0.1)
            if actors():
                report.problems.append(f"{config.out}: actors are left: {actors()}")
            kills = dict(report.in_the_middle)
            say(f"{victim} killed; {seconds:.1f} s; in the middle so far {kills}; {len(report.problems)} problems")
    return report


def _run(
    config: PrecomputeConfig,
    cluster: RayCluster,
    victim: str,
    draw: random.Random,
    limit_s: float,
    report: RaySoakReport,
) -> list[str]:
    """Runs to the end, with one kill after a random number of parts; returns the problems of the processes."""
    end = time.monotonic() + limit_s
    parts = draw.randrange(SAMPLES // config.part_samples)
    with driver(config) as process:
        while process.poll() is None and not _has_begun(config.out, parts) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        if victim == "worker":
            cluster.kill_worker(draw, within_s=5)
        elif victim == "node":
            cluster.kill_node(draw)
        else:
            process.kill()
        report.killed[victim] += 1
        report.in_the_middle[victim] += not (config.out / "cache.json").exists()
        if victim == "node":
            cluster.add_node()
        code, error = _wait(process, end)
    if victim == "driver" and code == -9:
        with driver(config) as process:
            code, error = _wait(process, end)
    return [] if code == 0 else [f"{config.out}: {victim} killed, then exit code {code}: {error[-500:]}"]


def _has_begun(out: Path, parts: int) -> bool:
    return (out / "run.json").exists() and len(list(out.glob("samples/part-*"))) >= parts


def _wait(process: subprocess.Popen[str], end: float) -> tuple[int | None, str]:
    try:
        _, error = process.communicate(timeout=max(end - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return None, "it has not ended in time"
    return process.returncode, error


@click.command()
@click.option("--times", default=10, show_default=True, help="Kills of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option("--limit-s", default=300.0, show_default=True, help="Within which a run must end.")
@click.option("--directory", type=click.Path(path_type=Path), help="Directory of the runs, which are kept.")
def main(times: int, seed: int, limit_s: float, directory: Path | None) -> None:
    """Print the result as JSON; the exit code is 1 if there was a problem."""
    root = Path(tempfile.mkdtemp(prefix="ray-soak-", dir=directory))
    report = soak(root, times=times, seed=seed, limit_s=limit_s, say=lambda text: click.echo(text, err=True))
    click.echo(json.dumps(report.to_dict(), indent=1))
    if report.problems:
        raise click.ClickException(f"the output is in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
