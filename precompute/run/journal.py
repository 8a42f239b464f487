"""The work and the latency checks of each part, kept beside the parts until the manifest is written.

The file has one line per part. A line cut off by a kill is ignored; its part then counts as unrecorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..latency.block_times import LatencyCheck
from .work_counts import Ledger

JOURNAL_NAME = "progress.jsonl"
STAGES = ("vision", "prefill", "decode", "total")


class Journal:
    """Appends one line per part and sums them up."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL_NAME

    def append(self, part: str, ledger: Ledger, checks: Sequence[LatencyCheck]) -> None:
        """Adds the line of a committed part."""
        self.append_record(
            {
                "part": part,
                **ledger.to_dict(),
                "checks": [[list(check.blockwise_ms), list(check.end_to_end_ms)] for check in checks],
            }
        )

    def adopt(self, directory: Path, part: str, name: str) -> None:
        """Adds the line that another directory has for `part`, if any, under another name."""
        for record in Journal(directory)._records():
            if record["part"] == part:
                self.append_record({**record, "part": name})

    def append_record(self, line: dict[str, Any]) -> None:
        """Adds a line and syncs it to disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("" if self._ends_with_newline() else "\n") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _ends_with_newline(self) -> bool:
        """Returns whether the last line is complete: a full disk or a kill may have cut it off."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return size == 0 or file.read(1) == b"\n"

    def read(self) -> tuple[Ledger, list[LatencyCheck]]:
        """Returns the sum of all lines."""
        ledger, checks = Ledger(), []
        for record in self._records():
            ledger.absorb(record)
            checks += [LatencyCheck(tuple(blockwise), tuple(whole)) for blockwise, whole in record["checks"]]
        return ledger, checks

    def _records(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        records = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut off
                continue
            records.append(record)
        return records

    def remove(self) -> None:
        """Removes the file, once the manifest contains its sums."""
        self._path.unlink(missing_ok=True)


def check_summary(checks: Sequence[LatencyCheck]) -> dict[str, Any] | None:
    """Returns, for each stage, the relative error of the sum over blocks against the same settings run end to end.

    `median_absolute_error` and `p95_absolute_error` are over settings; `error_of_mean` compares the means over all
    settings. A stage that never took time (decoding, if all answers have one token) is left out.
    """
    if not checks:
        return None
    blockwise = np.array([check.blockwise_ms for check in checks])
    whole = np.array([check.end_to_end_ms for check in checks])
    stages = {}
    for index, stage in enumerate(STAGES):
        took = whole[:, index] > 0
        if not took.any():
            continue
        error = blockwise[took, index] / whole[took, index] - 1
        stages[stage] = {
            "median_absolute_error": round(float(np.median(np.abs(error))), 5),
            "p95_absolute_error": round(float(np.percentile(np.abs(error), 95)), 5),
            "error_of_mean": round(float(blockwise[took, index].mean() / whole[took, index].mean() - 1), 5),
        }
    return {"settings": len(checks), "against": "end_to_end", "stages": stages}
