"""Writes a small cache slowly, one sample a part, and resumes: a program for the soak test to kill.

python -m knobctl.tests.support.killed_writer DIRECTORY
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from knobctl.data.cache.writer import CacheWriter
from knobctl.tests.support.caches import (
    BUDGETS_MS,
    TINY_SPACE,
    outcome_table,
    sample_table,
    tiny_manifest,
    token_table,
)

SAMPLES = 8
PAUSE_S = 0.02


def write_slowly(out: Path) -> None:
    """Writes the missing samples and finishes the cache."""
    ids = [f"s{index:04d}" for index in range(SAMPLES)]
    with CacheWriter(out, {"samples": SAMPLES}) as writer:
        if writer.complete:
            return
        done = writer.done_samples()
        for name in ids:
            if name not in done:
                time.sleep(PAUSE_S)
                token = token_table([name], TINY_SPACE, BUDGETS_MS, 8)
                writer.write_part(sample_table([name], 8), outcome_table([name], TINY_SPACE), token)
        writer.finish(tiny_manifest(), b"encoder")


if __name__ == "__main__":
    write_slowly(Path(sys.argv[1]))
