"""Runs `knobctl demo` once for each of several demo seeds, one after the other, and tables the verdicts.

Each run is a process of its own with an empty directory. A run's result is appended to `--log` as one JSON line when it
has ended, so that the script continues where it was stopped. Nothing else should run on the machine.

    python benchmarks/demo_runs.py --seeds 10 > benchmarks/results/demo-runs.md
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from tables import markdown

from knobctl.replay.evaluation.report import BETTER, OVERALL, WORSE

Run = dict[str, Any]


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="Demo seeds 0 to N - 1.")
@click.option("--samples", type=click.IntRange(20), help="Samples of each dataset.  [default: the demo's]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo-runs"), show_default=True)
@click.option(
    "--log",
    "log_path",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/demo-runs.jsonl"),
    show_default=True,
)
def main(seeds: int, samples: int | None, out: Path, log_path: Path) -> None:
    runs = _recorded(log_path)
    for seed in range(seeds):
        if seed not in runs:
            runs[seed] = demo_run(seed, out / f"seed-{seed}", samples)
            with log_path.open("a") as file:
                file.write(json.dumps(runs[seed]) + "\n")
        click.echo(f"seed {seed}: {json.dumps(runs[seed])}", err=True)
    click.echo(page([runs[seed] for seed in range(seeds)]), nl=False)


def _recorded(log_path: Path) -> dict[int, Run]:
    lines = log_path.read_text().splitlines() if log_path.exists() else []
    return {run["seed"]: run for run in map(json.loads, lines)}


def demo_run(seed: int, out: Path, samples: int | None) -> Run:
    """Runs the demo in an empty directory; returns its seconds and comparisons, or the last line of its error."""
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped: its duration would not be that of a whole run
    command = [sys.executable, "-m", "knobctl.cli", "demo", "--seed", str(seed), "--out", str(out), "--json"]
    command += ["--samples", str(samples)] if samples else []
    run: Run = {
        "seed": seed,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load_before": round(os.getloadavg()[0], 2),
    }
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    run["seconds"] = round(time.perf_counter() - start, 1)
    if done.returncode:
        return run | {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return run | result_of(json.loads(done.stdout))


def result_of(report: dict[str, Any]) -> Run:
    """Returns what the table shows of a demo's report."""
    subject = report["subjects"][0]
    return {
        "device": report["cache"]["device"],
        "cores": len(os.sched_getaffinity(0)),
        "samples": report["n_samples"],
        "controller_seeds": sorted(name for name in report["controllers"] if name != subject),
        "step_seconds": report["seconds"],
        "budgets_ms": report["budgets_ms"],
        "rewards": {
            name: policy["overall"]["all_budgets"]["reward"]["value"] for name, policy in report["policies"].items()
        },
        "comparisons": {
            found["versus"]: {
                **found["differences"]["reward"],
                "adjusted_p_value": found["adjusted_p_value"],
                "verdict": found["verdict"],
            }
            for found in report["comparisons"]
            if found["policy"] == subject and found["group"] == OVERALL
        },
        "live_settings_equal_to_replay": report["live"]["agreement"]["same_setting"],
    }


def page(runs: Sequence[Run]) -> str:
    """Returns the table of all runs, and how often each verdict was given."""
    ended = [run for run in runs if "error" not in run]
    versus = list(dict.fromkeys(name for run in ended for name in run["comparisons"]))
    table = markdown(("runs", _row(run, versus)) for run in runs)
    lines = [f"{len(ended)} of {len(runs)} runs ended; the longest took {max(run['seconds'] for run in runs):.0f} s."]
    for name in versus:
        verdicts = [run["comparisons"][name]["verdict"] for run in ended]
        mean = sum(run["comparisons"][name]["value"] for run in ended) / len(ended)
        lines.append(
            f"Against `{name}`: mean difference {mean:+.3f}; better in {verdicts.count(BETTER)}, worse in "
            f"{verdicts.count(WORSE)} of {len(ended)} runs."
        )
    worse = sum(any(found["verdict"] == WORSE for found in run["comparisons"].values()) for run in ended)
    lines.append(f"Runs that are worse than any baseline: {worse}.")
    return table + "\n" + "\n".join(f"* {line}" for line in lines) + "\n"


def _row(run: Run, versus: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {"demo seed": run["seed"], "seconds": f"{run['seconds']:.0f}"}
    if "error" in run:
        return row | {"samples": run["error"]}
    row |= {"samples": run["samples"], "reward": f"{run['rewards']['controllers']:.3f}"}
    for name in versus:
        found = run["comparisons"][name]
        interval = f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        row[f"minus {name}"] = f"{interval} {found['verdict']} (p {found['adjusted_p_value']:.3f})"
    return row


if __name__ == "__main__":
    main()
