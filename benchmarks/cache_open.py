"""Measures how fast a cache opens and how much private memory this takes: python benchmarks/cache_open.py

The default is a tenth of the full number of samples; `--samples 2000` is the full size (2 GB of tokens in Parquet, 2 GB
more unpacked). Each opening runs in a separate process, after the cache's pages have been dropped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from knobctl.data.cache.manifest import Manifest
from knobctl.data.cache.writer import CacheWriter
from knobctl.data.knobs import KnobSpace

SPACE = KnobSpace()

OPEN = """
import json, sys, time
from pathlib import Path
import psutil
from knobctl.data.cache.reader import open_cache
def private():  # without file pages, because the system can drop and share mapped tokens
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared
before = private()
start, cpu = time.perf_counter(), time.process_time()
cache = open_cache(Path(sys.argv[1]))
opened, opened_cpu = time.perf_counter() - start, time.process_time() - cpu
token = cache.tokens.token_STPMD
unpacked = time.perf_counter() - start - opened
for row in token:  # touches every token, as training does
    row.max()
after = private()
print(json.dumps({"open_s": opened, "open_cpu_s": opened_cpu, "unpack_s": unpacked, "private_mb": after / 1e6,
                  "grown_mb": (after - before) / 1e6}))
"""


def write_cache(path: Path, samples: int, d_model: int, budgets: int, samples_per_part: int) -> None:
    """Writes a cache with the shape of a real one, filled with noise."""
    generator = np.random.default_rng(0)
    budgets_ms = np.round(np.geomspace(200, 2000, budgets)).astype(np.float32)
    settings = SPACE.settings
    grid = [(t, p, b) for t in SPACE.tiers for p in SPACE.insertion_positions for b in budgets_ms]
    with CacheWriter(path, {"benchmark": "cache_open", "samples": samples}) as writer:
        for start in range(0, samples, samples_per_part):
            ids = [f"dataset/{index:06d}" for index in range(start, min(start + samples_per_part, samples))]
            feature = generator.standard_normal(len(ids) * d_model, np.float32)
            rows = len(ids) * len(settings)
            token = generator.standard_normal(len(ids) * len(grid) * d_model, np.float32).astype(np.float16)
            writer.write_part(
                pa.table(
                    {
                        "sample_id": ids,
                        "dataset": ["dataset"] * len(ids),
                        "split": generator.choice(["train", "val", "test"], len(ids), p=[0.7, 0.1, 0.2]),
                        "language_feature": pa.FixedSizeListArray.from_arrays(feature, d_model),
                        "question": [f"what is in image {name}?" for name in ids],
                        "image_id": ids,
                    }
                ),
                pa.table(
                    {
                        "sample_id": np.repeat(ids, len(settings)),
                        "tier": [s.tier for s in settings] * len(ids),
                        "insertion_position": np.tile([s.insertion_position for s in settings], len(ids)),
                        "top_k": np.tile([s.top_k for s in settings], len(ids)),
                        "num_blocks": np.tile([s.num_blocks for s in settings], len(ids)),
                        "accuracy": generator.integers(0, 4, rows).astype(np.float32) / np.float32(3),
                        "latency_ms": generator.uniform(200, 2000, rows).astype(np.float32),
                        "answer": generator.choice(["yes", "no", "two", "a red bus"], rows),
                        "latency_runs_ms": pa.FixedSizeListArray.from_arrays(
                            generator.uniform(200, 2000, rows * 5).astype(np.float32), 5
                        ),
                    }
                ),
                pa.table(
                    {
                        "sample_id": np.repeat(ids, len(grid)),
                        "tier": [t for t, _, _ in grid] * len(ids),
                        "insertion_position": np.tile([p for _, p, _ in grid], len(ids)),
                        "budget_ms": np.tile(np.array([b for _, _, b in grid], np.float32), len(ids)),
                        "token": pa.FixedSizeListArray.from_arrays(token, d_model),
                    }
                ),
            )
        writer.finish(
            Manifest("noise", d_model, 16, 8, SPACE, tuple(budgets_ms.tolist()), "blockwise", n_experts=64, runs=5)
        )


def drop_pages(path: Path) -> None:
    """Asks the system to drop the cache's files from memory, so that the next process reads from disk."""
    os.sync()
    for file in path.rglob("*"):
        if file.is_file() and hasattr(os, "posix_fadvise"):
            with file.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path) -> dict[str, float]:
    drop_pages(path)
    done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True)
    record: dict[str, float] = json.loads(done.stdout)
    return record


@click.command()
@click.option("--samples", default=200, show_default=True)
@click.option("--d-model", default=2048, show_default=True)
@click.option("--budgets", default=16, show_default=True)
@click.option("--samples-per-part", default=32, show_default=True)
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Directory for the cache, which is deleted at the end."
)
def main(samples: int, d_model: int, budgets: int, samples_per_part: int, directory: Path | None) -> None:
    """Print the time to open a cache (the first time and with unpacked tokens), to unpack, and the private memory."""
    root = Path(tempfile.mkdtemp(dir=directory))
    try:
        start = time.perf_counter()
        write_cache(root / "cache", samples, d_model, budgets, samples_per_part)
        written = time.perf_counter() - start
        size = sum(file.stat().st_size for file in (root / "cache").rglob("*") if file.is_file())
        click.echo(
            f"{samples} samples x {len(SPACE.settings)} settings, d_model {d_model}, {budgets} budgets: "
            f"{size / 1e9:.2f} GB on disk, written in {written:.1f} s"
        )
        for name in ("first opening", "second opening", "third opening"):
            figures = measure(root / "cache")
            click.echo(
                f"{name:15}: open {figures['open_s']:6.2f} s ({figures['open_cpu_s']:.2f} s of CPU), tokens after "
                f"{figures['unpack_s']:6.2f} s more, private memory {figures['private_mb']:.0f} MB "
                f"({figures['grown_mb']:+.0f} by opening and reading all)"
            )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
