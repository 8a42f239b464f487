"""Measures time and memory of an import of 39 configurations of 3 datasets, as written by the profiler.

    python benchmarks/import_results.py                    # 200 questions per configuration, a few seconds
    python benchmarks/import_results.py --questions 2000   # the size of the published runs: 39 x 3 x 2,000 rows
    python benchmarks/import_results.py --directory DIR    # keep the generated directory, or use an existing one

Prints one JSON object with wall and CPU time, and the peak memory of the importing process and its largest worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = [*product((4, 6, 8), (12, 14, 16)), *product((5, 7), (13, 15))]
SHAPES = ("merged", "merged", "merged", "merged", "ranks", "leftovers", "split")


def generate(directory: Path, questions: int, seed: int) -> None:
    """Writes the results of 3 tiers x 13 (top-k, blocks) for 3 datasets; most are merged files of four ranks."""
    sys.path.insert(0, str(ROOT / "tests"))
    from knobctl.tests.support.results_dirs import TIER_CROPS, make_questions, write_configuration, write_damage

    rng = random.Random(seed)
    for dataset in ("text_vqa", "coco_2014_vqa", "okvqa"):
        asked = make_questions(dataset, questions)
        for tier, (top_k, num_blocks) in product(TIER_CROPS, CONFIGURATIONS):
            write_configuration(directory, asked, tier, top_k, num_blocks, shape=rng.choice(SHAPES), seed=seed)
    write_damage(directory, "text_vqa", rng)


def measure(directory: Path, workers: int) -> dict[str, object]:
    """Runs an import in this process and returns its figures."""
    from knobctl.data.importer import import_results

    with tempfile.TemporaryDirectory() as out:
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        report = import_results(directory, Path(out) / "cache", workers=workers)
        seconds, cpu_seconds = time.perf_counter() - start, sum(os.times()[:4]) - cpu
        cache_bytes = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "files": report.files_read,
        "mib": round(sum(source["bytes"] for source in report.sources) / 2**20, 1),
        "rows": report.rows_read,
        "outcomes": report.outcomes,
        "workers": workers,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mib": round(peaks[0]),
        "peak_largest_worker_mib": round(peaks[1]),
        "cache_mib": round(cache_bytes / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_only:
        print(json.dumps(measure(args.directory, args.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch) / "results"
        if not directory.is_dir():
            generate(directory, args.questions, args.seed)
        # A new process, so that the memory used for generation is not counted.
        command = [sys.executable, __file__, "--measure-only", "--directory", str(directory)]
        subprocess.run([*command, "--workers", str(args.workers)], check=True)


if __name__ == "__main__":
    main()
