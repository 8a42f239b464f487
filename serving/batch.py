"""Many requests from a JSONL file, their answers in another; resumable.

A line of the input is an object: `image` (a path relative to the image folder), `question`, and optionally `budget_ms`,
`task`, `max_new_tokens` and `id`. A line of the output repeats the request with its line number and adds the answer.
Requests that fail write no line; the next run tries them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.datasets.images import ImageFile, image_file
from ..data.errors import DatasetError, KnobctlError
from ..data.files.bounded_json import parse_json
from ..data.files.json_fields import JsonFields
from ..data.files.lock import FileLock
from ..data.progress import SILENT, Progress
from .answer import Engine

MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class BatchRequest:
    """One line of the input."""

    line: int  # from 1
    image: ImageFile
    question: str
    budget_ms: float
    task: str | None
    max_new_tokens: int | None
    id: str | None

    def to_dict(self) -> dict[str, Any]:
        """Returns what the output repeats of the request."""
        record: dict[str, Any] = {"line": self.line, "id": self.id, "image": self.image.ref, "question": self.question}
        record |= {"budget_ms": self.budget_ms, "task": self.task, "max_new_tokens": self.max_new_tokens}
        return {name: value for name, value in record.items() if value is not None}


@dataclass(frozen=True)
class BatchReport:
    """What a run did."""

    requests: int
    answered: int  # in this run
    resumed: int  # answered by earlier runs
    failed: Mapping[int, str]  # line of the input -> reason

    def to_dict(self) -> dict[str, Any]:
        failed = [{"line": line, "reason": reason} for line, reason in self.failed.items()]
        return {"requests": self.requests, "answered": self.answered, "resumed": self.resumed, "failed": failed}


def read_requests(path: Path, *, budget_ms: float | None = None, images: Path | None = None) -> list[BatchRequest]:
    """Returns the requests in a JSONL file; empty lines are skipped. Reads no image.

    Args:
        budget_ms: of requests that name none.
        images: folder that image paths are relative to; None: the file's own.

    Raises:
        DatasetError: the file cannot be read or has no request, or a line is not a request. Names file and line.
    """
    requests = [
        _request(line, number, path, budget_ms, images or path.parent)
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    if not requests:
        raise DatasetError(f"{path} has no request: write one JSON object per line.")
    return requests


def run_batch(
    engine: Engine, requests: Sequence[BatchRequest], out: Path, *, progress: Progress = SILENT
) -> BatchReport:
    """Answers the requests that `out` has no answer for, in order, and appends each answer as soon as it is made.

    Holds a lock on `out`, so that a second run on it waits for this one. A last line that was cut off is removed.

    Raises:
        KnobctlError: `out` has another program's lines, or answers to other requests; or it cannot be written.
    """
    try:
        with FileLock(out, optional=True).exclusive():
            done = _answered(out, requests)
            failed: dict[int, str] = {}
            with (
                out.open("a", encoding="utf-8") as file,
                progress.steps("answers", len(requests), done=len(done)) as advance,
            ):
                for request in requests:
                    if request.line in done:
                        continue
                    try:
                        record = _answer(engine, request)
                    except KnobctlError as error:  # of this request: its image, question or budget
                        failed[request.line] = str(error)
                        progress.note(f"line {request.line}: {error}")
                    else:
                        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                        file.flush()
                    advance()
    except OSError as error:
        raise KnobctlError(
            f"{out} cannot be written ({error.strerror or error}): free space or name another file; the answers in it "
            "are kept."
        ) from error
    return BatchReport(len(requests), len(requests) - len(done) - len(failed), len(done), failed)


def _answer(engine: Engine, request: BatchRequest) -> dict[str, Any]:
    answer = engine.answer(
        request.image.read_bytes(),
        request.question,
        request.budget_ms,
        task=request.task,
        max_new_tokens=request.max_new_tokens,
    )
    return {**request.to_dict(), **answer.to_dict()}


def _request(line: bytes, number: int, path: Path, budget_ms: float | None, images: Path) -> BatchRequest:
    where = f"{path}:{number}"
    fields = JsonFields(parse_json(line, where, DatasetError), where, DatasetError)
    question, found_ms = fields.text("question").strip(), fields.optional("budget_ms", JsonFields.number)
    if not question:
        raise fields.fail("question", "is empty: write a question")
    chosen_ms = budget_ms if found_ms is None else found_ms
    if chosen_ms is None:
        raise fields.fail("budget_ms", "is missing: add it, or name a budget for all requests")
    if chosen_ms < 1:
        raise fields.fail("budget_ms", f"must be at least 1 ms, not {chosen_ms:g}")
    request = BatchRequest(
        number,
        image_file(images, fields.text("image"), where),
        question,
        chosen_ms,
        fields.optional("task", JsonFields.text),
        fields.optional("max_new_tokens", JsonFields.count),
        fields.optional("id", JsonFields.text),
    )
    fields.refuse_others(())
    return request


def _answered(out: Path, requests: Sequence[BatchRequest]) -> set[int]:
    """Returns the lines that `out` answers, and removes a last line that was cut off."""
    lines = _lines(out, max_bytes=None)  # answers are longer than requests
    if lines and not out.read_bytes().endswith(b"\n"):
        with out.open("r+b") as file:
            file.truncate(out.stat().st_size - len(lines.pop()))
    expected = {request.line: request.to_dict() for request in requests}
    done: set[int] = set()
    for number, line in enumerate(lines, start=1):
        where = f"{out}:{number}"
        record = parse_json(line, where, DatasetError)
        answered = record.get("line") if isinstance(record, dict) else None
        wanted = expected.get(answered) if isinstance(answered, int) else None
        if wanted is None or any(record.get(name) != value for name, value in wanted.items()):
            raise DatasetError(f"{where} is not an answer to the input's requests: name another output file.")
        done.add(wanted["line"])
    return done


def _lines(path: Path, max_bytes: int | None = MAX_FILE_BYTES) -> list[bytes]:
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise DatasetError(f"{path} has {size:,} bytes, and {max_bytes:,} is the limit: split it.")
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error
