"""The files of a results directory that are read, from their names: dataset and configuration. Opens none of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ResultsError
from ..printable import printable
from .report import Finding

# Datasets whose accuracy is the soft VQA score; the profiler uses other metrics for the others.
VQA_DATASETS = ("coco_2014_vqa", "okvqa", "text_vqa")
TIER_ORDER = ("low", "medium", "high")
MAX_FILES = 100_000
_HINT_DEPTH, _HINTS = 4, 3  # when no results are found: folder levels searched for some, folders named
MAX_KNOB = 127  # the cache stores top_k and num_blocks as int8

_RESULTS_NAME = re.compile(r"(.+?)_imgsizetier-([^_]+)_crops(\d+)_topk(\d+)_blocks(\d+)(?:_rank(\d+))?\.json", re.ASCII)
_NAME_WITHOUT_TIER = re.compile(r".+_topk\d+_blocks\d+(_rank\d+)?\.json", re.ASCII)
LAYOUT = "Results are expected in <directory>/<dataset>/*.json: give that directory"
_MACOS_FILE, _MACOS_DIRECTORY = "._", "__MACOSX"  # file attributes that macOS writes beside files and into zip files
_COMBINED_NAME = "combined_profiling_results_"


@dataclass(frozen=True)
class ResultFile:
    """One results file and the values in its name. `crops` is a measurement of its rows, not a setting."""

    path: Path
    name: str  # relative to the results directory, printable
    dataset: str
    tier: str
    crops: int
    top_k: int
    num_blocks: int
    rank: int | None
    size_bytes: int

    @property
    def configuration(self) -> tuple[str, str, int, int]:
        return self.dataset, self.tier, self.top_k, self.num_blocks

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: merged files before rank files, independent of the order of listing."""
        return (*self.configuration, self.rank is not None, self.rank or 0, self.crops, self.name)


def list_results(results_dir: Path, datasets: Sequence[str] = ()) -> tuple[list[ResultFile], list[Finding]]:
    """Returns the results files below `results_dir` in canonical order, and findings about files left out.

    Lists `<results_dir>/<dataset>/*.json`, or `<results_dir>/*.json` for the directory of one dataset. `datasets` are
    names with `_` or `-`; none means all of VQA_DATASETS in the directory. Raises ResultsError if the directory or a
    named dataset does not exist.
    """
    if not results_dir.is_dir():
        raise ResultsError(f"{results_dir} {'is not a directory' if results_dir.exists() else 'does not exist'}")
    wanted = {name.replace("-", "_") for name in datasets}
    files: list[ResultFile] = []
    findings: list[Finding] = []
    others = 0
    for path, name in _walk(results_dir, findings):
        if not name.endswith(".json"):
            others += 1
            continue
        found = _classify(path, name)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            files.append(found)
    if others:
        findings.append(Finding("other_files", "", 0, f"{others}, such as logs and profiler output"))
    present = {file.dataset for file in files}
    if missing := sorted(wanted - present):
        raise ResultsError(
            f"{results_dir} has no results of {', '.join(missing)}: it has {', '.join(sorted(present)) or 'none'}."
            + deeper_hint(results_dir)
        )
    chosen = wanted or present & set(VQA_DATASETS)
    left_out = [file for file in files if file.dataset not in chosen]
    for dataset in sorted({file.dataset for file in left_out} - (wanted and set(VQA_DATASETS))):
        count = sum(file.dataset == dataset for file in left_out)
        findings.append(Finding("other_dataset", dataset, 0, f"{printable(dataset)}, {count} files"))
    return sorted((file for file in files if file.dataset in chosen), key=lambda file: file.order), findings


def _walk(results_dir: Path, findings: list[Finding]) -> Iterator[tuple[Path, str]]:
    """Yields (path, printable name) of the files in the directory and in its subdirectories, one level deep."""
    count = 0
    for directory in [results_dir, *_directories(results_dir)]:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as cause:
            findings.append(Finding("unreadable_file", printable(directory.name), 0, cause.strerror or str(cause)))
            continue
        for entry in entries:
            count += 1
            if count > MAX_FILES:
                raise ResultsError(f"{results_dir} contains more than {MAX_FILES:,} files: give one results directory")
            if entry.name.startswith(_MACOS_FILE):
                continue
            relative = entry.name if directory == results_dir else f"{directory.name}/{entry.name}"
            if not entry.is_dir():
                yield Path(entry.path), printable(relative, 240)
            elif directory != results_dir:
                findings.append(Finding("nested_directory", printable(relative, 240), 0))


def deeper_hint(results_dir: Path) -> str:
    """Returns a sentence that names subdirectories in the layout of results; "" if there are none."""
    found: set[str] = set()
    entries = 0
    for directory, names, files in os.walk(results_dir):
        depth = len(Path(directory).relative_to(results_dir).parts)
        names[:] = sorted(name for name in names if depth < _HINT_DEPTH and name != _MACOS_DIRECTORY)
        if depth > 1 and any(_RESULTS_NAME.fullmatch(name) for name in files):
            found.add(printable(str(Path(directory).parent), 240))
        entries += len(names) + len(files)
        if entries > MAX_FILES:
            break
    shown = ", ".join(sorted(found)[:_HINTS]) + (", ..." if len(found) > _HINTS else "")
    return f" {LAYOUT}, {shown}." if found else ""


def _directories(results_dir: Path) -> list[Path]:
    try:
        return sorted(path for path in results_dir.iterdir() if path.is_dir() and path.name != _MACOS_DIRECTORY)
    except OSError as cause:
        raise ResultsError(f"{results_dir} cannot be listed: {cause.strerror or cause}") from cause


def _classify(path: Path, name: str) -> ResultFile | Finding:
    match = _RESULTS_NAME.fullmatch(path.name)
    if match is None:
        if path.name.startswith(_COMBINED_NAME):
            return Finding("combined_file", name, 0)
        if _NAME_WITHOUT_TIER.fullmatch(path.name) and "tier-" not in path.name:
            return Finding("no_tiers", name, 0)
        return Finding("foreign_file", name, 0)
    if not path.is_file():
        return Finding("unreadable_file", name, 0, "not a plain file" if path.exists() else "a broken link")
    prefix, tier, *digits, rank = match.groups()
    if any(len(number) > 9 for number in (*digits, rank or "")):
        return Finding("name_contradicts_content", name, 0, "a number in the name is too large")
    crops, top_k, num_blocks = (int(number) for number in digits)
    if not (1 <= top_k <= MAX_KNOB and 1 <= num_blocks <= MAX_KNOB):
        return Finding("name_contradicts_content", name, 0, f"top_k {top_k} and {num_blocks} blocks are out of range")
    dataset, folder = prefix.replace("-", "_"), path.parent.name.replace("-", "_")
    if "/" in name and folder != dataset:
        detail = f"results of {printable(dataset)} in the directory of {printable(folder)}"
        return Finding("name_contradicts_content", name, 0, detail)
    if not (dataset.isprintable() and tier.isprintable() and "\\" not in dataset):
        return Finding("name_contradicts_content", name, 0, "dataset or tier is not a plain name")
    return ResultFile(
        path=path,
        name=name,
        dataset=dataset,
        tier=tier,
        crops=crops,
        top_k=top_k,
        num_blocks=num_blocks,
        rank=None if rank is None else int(rank),
        size_bytes=path.stat().st_size,
    )
