"""The report of an import: problems found and how they were handled, with the wording and level of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ResultsError

LEVELS = ("error", "warning", "info")
_EXAMPLES = 3  # row numbers or names shown with a finding
_SHOWN_IN_MESSAGE = 5

# code: (level, problem, handling). An error is damage or a contradiction that loses data. A warning is data left out,
# missing or assumed by a rule. An info is normal and handled.
CODES: dict[str, tuple[str, str, str]] = {
    "unreadable_file": ("error", "cannot be read", "file left out"),
    "not_results": ("error", "has the name of a results file but contains no results", "file left out"),
    "name_contradicts_content": ("error", "name and content disagree", "file left out"),
    "bad_block_list": ("error", "active_block_indices is invalid", "blocks taken as unknown"),
    "malformed_row": ("error", "row is malformed", "row left out"),
    "duplicate_keys": ("error", "row has a duplicate key", "row left out"),
    "bad_identity": ("error", "example_id is not a plain number or name", "row left out"),
    "contradictory_row": ("error", "row has another tier, top_k or number of blocks than its file", "row left out"),
    "bad_accuracy": ("error", "accuracy is not a number from 0 to 1", "accuracy missing"),
    "unclear_scale": (
        "error",
        "accuracies are 0 to 1, but those of other files are not (in percent?)",
        "accuracy missing",
    ),
    "bad_time": ("error", "time is negative, infinite, too large or not a number", "time missing"),
    "bad_value": ("error", "value of the wrong type or size", "value missing"),
    "conflicting_question": (
        "error",
        "example_id with another question or image than in most rows",
        "row left out",
    ),
    "no_tiers": ("warning", "older schema (2025-12-27), without tiers", "file left out"),
    "combined_file": ("warning", "older combined results file", "file left out"),
    "foreign_file": ("warning", "JSON file without the name of a results file", "file left out"),
    "nested_directory": ("warning", "directory inside a dataset's directory", "not read"),
    "other_dataset": (
        "warning",
        "dataset with another metric of accuracy",
        "left out unless named as a dataset",
    ),
    "older_schema": (
        "warning",
        "older schema (to 2025-12-31 04:04), whose times are not comparable with later ones",
        "accuracy and answers kept, times missing",
    ),
    "older_schema_alone": (
        "warning",
        "older schema (to 2025-12-31 04:04), as all files here",
        "T_total kept; T_LLM_decode, a difference of the others, and the stages missing",
    ),
    "empty_configuration": ("warning", "no rows: its accuracy 0.0 is not a measurement", "nothing to import"),
    "no_usable_rows": ("warning", "has rows, but no usable one", "nothing to import"),
    "row_count": ("warning", "num_samples is not the number of rows", "the rows are used"),
    "scoring_failed": ("warning", "scoring failed (accuracy 0.0, empty pred, empty metadata)", "row left out"),
    "no_identity": ("warning", "row without example_id", "row left out"),
    "missing_accuracy": ("warning", "accuracy absent, null or NaN", "accuracy missing"),
    "missing_time": ("warning", "time absent, null, NaN or 0.0, that is, not measured", "time missing"),
    "missing_value": ("info", "token count or answer absent or null", "value missing"),
    "stages_above_total": ("warning", "vision, prefill and decode sum to more than T_total", "kept as recorded"),
    "repeated_blocks": (
        "warning",
        "active_block_indices repeats a block, so fewer blocks ran than the name says",
        "num_blocks counts the blocks that ran",
    ),
    "block_count": (
        "warning",
        "active_block_indices and the file's name give different numbers of blocks",
        "num_blocks counts the blocks that ran",
    ),
    "no_block_list": ("warning", "active_block_indices absent", "blocks taken as unknown"),
    "other_blocks": (
        "warning",
        "ran other blocks than the rows kept for this configuration",
        "rows left out of the cache",
    ),
    "mixed_blocks": (
        "warning",
        "num_blocks stands for different blocks in different configurations",
        "kept",
    ),
    "missing_questions": ("warning", "configuration lacks questions that others of its dataset have", "left missing"),
    "missing_ranks": ("warning", "rank files are missing", "left missing"),
    "differing_repeats": ("warning", "a question measured twice with different answers", "first complete row kept"),
    "differing_answers": ("warning", "reference answers differ between rows of one question", "first ones kept"),
    "no_image_id": ("warning", "questions without image_id", "split by question: an image may be in two splits"),
    "cannot_recompute": (
        "warning",
        "the prediction or the answers that the metric needs are not stored",
        "accuracy missing",
    ),
    "no_full_score": ("warning", "metric does not fit the answers", "scored nevertheless"),
    "total_blocks_differ": ("warning", "num_total_blocks differs between files", "most frequent value used"),
    "repeats": ("info", "question measured twice in one configuration (padding of the last ranks)", "counted once"),
    "leftover_rows": ("info", "rows that another file of the configuration also contains", "counted once"),
    "rank_files": ("info", "configuration read from rank files, without a merged file", "rows joined"),
    "split_files": ("info", "configuration has several merged files", "rows joined"),
    "question_id_used": ("info", "row without example_id but with question_id", "question_id used as identity"),
    "replaced_characters": ("info", "text contains lone surrogates", "replaced by U+FFFD"),
    "recomputed": ("info", "accuracy recomputed from the stored answers", "recorded accuracy not used"),
    "assumed_model": ("info", "the files do not name the model", "assumed"),
    "runs_differ": ("info", "the number of timed runs differs between rows", "not stated in the manifest"),
    "other_files": ("info", "files that are not JSON", "not read"),
}


@dataclass(frozen=True)
class Finding:
    """One problem in a file, or in the whole directory if `file` is empty."""

    code: str
    file: str
    rows: int  # rows concerned; 0 if it concerns the file
    detail: str = ""
    examples: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        return CODES[self.code][0]

    @property
    def what(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        shown = f" (such as {', '.join(self.examples)})" if self.examples else ""
        return f"{CODES[self.code][1]}{detail}{shown}"

    @property
    def done(self) -> str:
        return CODES[self.code][2]

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "code": self.code,
            "file": self.file,
            "rows": self.rows,
            "what": self.what,
            "done": self.done,
        }


class Tally:
    """Counts the findings of one file by code and detail, so that a million bad rows give one finding."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._rows: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, code: str, detail: str = "", *, example: str | None = None, rows: int = 1) -> None:
        key = (code, detail)
        self._rows[key] = self._rows.get(key, 0) + rows
        examples = self._examples.setdefault(key, [])
        if example is not None and len(examples) < _EXAMPLES:
            examples.append(example)

    def findings(self) -> list[Finding]:
        return [
            Finding(code, self.file, rows, detail, tuple(self._examples[code, detail]))
            for (code, detail), rows in self._rows.items()
        ]


@dataclass
class ImportReport:
    """What was read and kept, and all findings, sorted from errors to infos and by file."""

    directory: str
    findings: list[Finding] = field(default_factory=list)
    files_read: int = 0
    files_left_out: int = 0
    rows_read: int = 0
    outcomes: int = 0
    questions: dict[str, int] = field(default_factory=dict)  # per dataset
    configurations: list[dict[str, Any]] = field(default_factory=list)  # one per dataset, tier, top_k and block set
    sources: list[dict[str, Any]] = field(default_factory=list)  # {file, bytes, sha256, rows} of every file opened

    def extend(self, findings: Iterable[Finding]) -> None:
        self.findings.extend(findings)

    def sort(self) -> None:
        """Sorts the findings, so that they do not depend on the order of reading."""
        self.findings.sort(key=lambda f: (LEVELS.index(f.level), f.file, f.code, f.detail))

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `import_report.json`."""
        return {
            "format": "knobctl-import-report",
            "version": 1,
            "directory": self.directory,
            "files_read": self.files_read,
            "files_left_out": self.files_left_out,
            "rows_read": self.rows_read,
            "outcomes": self.outcomes,
            "questions": dict(sorted(self.questions.items())),
            "levels": {level: self.count(level) for level in LEVELS},
            "findings": [finding.to_dict() for finding in self.findings],
            "configurations": self.configurations,
            "sources": self.sources,
        }

    def raise_if_errors(self) -> None:
        """Raises ResultsError with the first errors, if there are any."""
        errors = [finding for finding in self.findings if finding.level == "error"]
        if not errors:
            return
        lines = [f"{e.file or self.directory}: {e.what}" for e in errors[:_SHOWN_IN_MESSAGE]]
        more = f"\n  and {len(errors) - len(lines)} more" if len(errors) > len(lines) else ""
        raise ResultsError(
            f"{self.directory} has {len(errors)} error(s), and a strict import allows none:\n  "
            + "\n  ".join(lines)
            + more
            + "\nFix or remove these files, or import without --strict to leave them out."
        )
