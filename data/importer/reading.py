"""Reads results files, in this process or in several; each file independently of the others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ResultsError
from ..printable import printable
from ..progress import Progress
from .report import Finding, Tally
from .result_files import MAX_KNOB, ResultFile
from .rows import RowReader
from .stream import MAX_FILE_BYTES, BrokenJson, DuplicateKeys, ObjectStream

ROWS_KEY = "per_sample_results"
SERIAL_BYTES = 24 << 20  # smaller directories are read faster in one process


@dataclass(frozen=True)
class FileReading:
    """The content of one file. `table_ipc` is an Arrow stream, which is compact and fast to send between processes."""

    file: ResultFile
    findings: tuple[Finding, ...]
    rows_read: int
    sha256: str
    table_ipc: bytes | None  # None: the file is left out
    blocks: tuple[int, ...] | None = None  # distinct blocks that ran, ascending; None where the file does not list them
    total_blocks: int | None = None
    tier_crops: tuple[int, int] | None = None
    runs: frozenset[int] = frozenset()
    ranks: int = 0  # GPUs whose rows a merged file joins, as far as known

    def table(self) -> pa.Table:
        assert self.table_ipc is not None, f"{self.file.name} was left out"
        return pa.ipc.open_stream(self.table_ipc).read_all()


def read_result_file(file: ResultFile) -> FileReading:
    """Reads one file. A damaged file or an invalid row is left out, with a finding."""
    tally = Tally(file.name)
    rows = RowReader(tally, tier=file.tier, top_k=file.top_k, num_blocks=file.num_blocks)
    stream: ObjectStream | None = None
    try:
        if file.size_bytes > MAX_FILE_BYTES:
            raise BrokenJson(f"larger than {MAX_FILE_BYTES >> 30} GiB")
        with file.path.open("rb") as binary:
            stream = ObjectStream(binary)
            header = stream.read(ROWS_KEY, rows.add)
    except (OSError, BrokenJson) as cause:
        detail = cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause)
        return _left_out(file, "unreadable_file", detail, stream)
    if (code_and_detail := _wrong_header(header, file)) is not None:
        return _left_out(file, *code_and_detail, stream)
    if rows.rows_read == 0:
        tally.add("empty_configuration", rows=0)
    elif not rows.columns["row"]:
        tally.add("no_usable_rows", rows=rows.rows_read)
    if "num_samples" in header and header["num_samples"] != rows.rows_read:
        found = printable(header["num_samples"], 20)
        tally.add("row_count", f"num_samples {found}, {rows.rows_read} rows", rows=rows.rows_read)
    total_blocks = _in_range(header.get("num_total_blocks"), 1, MAX_KNOB)
    blocks = _blocks(header, file, total_blocks, tally) if rows.rows_read else None
    if "aggregate_stats" in header and "latency_stats" not in header and not rows.runs:
        rows.columns["old_schema"] = [True] * len(rows.columns["row"])
    return FileReading(
        file=file,
        findings=tuple(tally.findings()),
        rows_read=rows.rows_read,
        sha256=stream.sha256,
        table_ipc=_to_ipc(rows.table()),
        blocks=blocks,
        total_blocks=total_blocks,
        tier_crops=_crops(header.get("tier_range")),
        runs=frozenset(rows.runs),
        ranks=rows.ranks,
    )


def read_files(files: Sequence[ResultFile], *, workers: int | None, progress: Progress) -> list[FileReading]:
    """Returns the readings in the order of `files`, read by up to `workers` processes (default: one per CPU).

    Small directories are read in this process. Raises ResultsError if a worker is killed, as for lack of memory.
    """
    with progress.steps("reading results", len(files)) as advance:
        return _read_files(files, workers, advance)


def _read_files(files: Sequence[ResultFile], workers: int | None, advance: Callable[[], None]) -> list[FileReading]:
    workers = workers or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 16)
    if workers == 1 or len(files) < 2 or sum(file.size_bytes for file in files) < SERIAL_BYTES:
        serial = []
        for file in files:
            serial.append(read_result_file(file))
            advance()
        return serial
    # "spawn": a fork would not copy the threads that polars and pyarrow run in this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(files)), mp_context=context) as pool:
        futures: dict[Future[FileReading], int] = {pool.submit(read_result_file, f): i for i, f in enumerate(files)}
        readings: dict[int, FileReading] = {}
        try:
            for future in as_completed(futures):
                readings[futures[future]] = future.result()
                advance()
        except BrokenProcessPool as cause:
            raise ResultsError(
                "a process that reads results was killed, probably for lack of memory: try again with fewer workers"
            ) from cause
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [readings[index] for index in range(len(files))]


def _left_out(file: ResultFile, code: str, detail: str, stream: ObjectStream | None) -> FileReading:
    digest = "" if stream is None else stream.sha256
    return FileReading(file, (Finding(code, file.name, 0, printable(detail, 200)),), 0, digest, None)


def _wrong_header(header: dict[str, Any], file: ResultFile) -> tuple[str, str] | None:
    """Returns the code and detail of a finding for an object that is not a valid results file, else None."""
    if header.get(ROWS_KEY, ()) != ():  # the stream keeps the key only if its value is not a list
        return "not_results", f"{ROWS_KEY} is absent or not a list"
    if "tier" not in header and "target_crops" in header:
        return "no_tiers", ""
    for key, wanted in (("tier", file.tier), ("top_k", file.top_k), ("num_active_blocks", file.num_blocks)):
        if key in header and (type(header[key]) is not type(wanted) or header[key] != wanted):
            return "name_contradicts_content", f"{key} is {printable(header[key], 20)}, the name says {wanted}"
    return None


def _blocks(header: dict[str, Any], file: ResultFile, total_blocks: int | None, tally: Tally) -> tuple[int, ...] | None:
    """Returns the distinct blocks that ran, from the list in the file and not the number in its name."""
    listed = header.get("active_block_indices")
    if listed is None:
        tally.add("no_block_list", rows=0)
        return None
    highest = (total_blocks or MAX_KNOB + 1) - 1
    if not isinstance(listed, list) or not listed or any(_in_range(b, 0, highest) is None for b in listed):
        tally.add("bad_block_list", printable(listed, 60), rows=0)
        return None
    distinct = tuple(sorted(set(listed)))
    if len(distinct) != len(listed):
        tally.add("repeated_blocks", f"{listed}: {len(listed)} entries, {len(distinct)} blocks", rows=0)
    elif len(distinct) != file.num_blocks:
        tally.add("block_count", f"{len(distinct)} blocks, the name says {file.num_blocks}", rows=0)
    return distinct


def _in_range(value: Any, low: int, high: int) -> int | None:
    return value if type(value) is int and low <= value <= high else None


def _crops(tier_range: Any) -> tuple[int, int] | None:
    if not isinstance(tier_range, dict) or isinstance(tier_range, DuplicateKeys):
        return None
    low, high = (_in_range(tier_range.get(key), 1, 10_000) for key in ("min_crops", "max_crops"))
    return None if low is None or high is None or low > high else (low, high)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
