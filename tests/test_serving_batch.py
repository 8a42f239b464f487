"""Requests from a JSONL file: checked before the first answer, answered once each, resumed after any interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from knobctl.data.errors import DatasetError
from knobctl.serving.batch import read_requests, run_batch
from knobctl.tests.support.chat_requests import png
from knobctl.tests.support.fake_engine import FakeEngine


def write_input(folder: Path, *records: Any) -> Path:
    (folder / "image.png").write_bytes(png())
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def request(question: str = "What is it?", **fields: Any) -> dict[str, Any]:
    return {"image": "image.png", "question": question, "budget_ms": 50, **fields}


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_request_gets_the_engines_answer(tmp_path: Path):
    path = write_input(tmp_path, request(id="a"), request("Why?", budget_ms=10, max_new_tokens=2, task="easy_vqa"))
    report = run_batch(FakeEngine(), read_requests(path), tmp_path / "out.jsonl")
    assert report.to_dict() == {"requests": 2, "answered": 2, "resumed": 0, "failed": []}
    first, second = answers(tmp_path / "out.jsonl")
    assert first["text"] == FakeEngine().answer(png(), "What is it?", 50).text
    assert (first["line"], first["id"], first["setting"]["tier"]) == (1, "a", "high")
    assert first["latency_ms"]["total"] == pytest.approx(20)
    assert (second["setting"]["tier"], second["output_tokens"], second["finish_reason"]) == ("low", 2, "length")


def test_a_budget_for_all_applies_where_a_request_names_none(tmp_path: Path):
    path = write_input(tmp_path, request(budget_ms=None), request())
    assert [one.budget_ms for one in read_requests(path, budget_ms=7)] == [7, 50]
    with pytest.raises(DatasetError, match=r'jsonl:1: "budget_ms" is missing'):
        read_requests(path)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "must be an object"),
        ({"question": "x", "budget_ms": 5}, '"image" is missing'),
        (request(""), '"question" is empty'),
        (request(question=None), '"question" must be a string'),
        (request(budget_ms="25"), '"budget_ms" must be a number'),
        (request(budget_ms=0), "at least 1 ms"),
        (request(max_new_tokens=0), '"max_new_tokens" must be a whole number'),
        (request(image="../secret.png"), "leads out of"),
        (request(image="/etc/passwd"), "leads out of"),
        (request(budget=3), '"budget" is not known'),
    ],
)
def test_a_line_that_is_no_request_is_named_before_anything_is_answered(tmp_path: Path, record: Any, reason: str):
    path = write_input(tmp_path, request(), record)
    with pytest.raises(DatasetError, match=reason) as caught:
        read_requests(path)
    assert "requests.jsonl:2" in str(caught.value)


def test_a_file_without_requests_or_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    for content, reason in ((b"\n\n", "no request"), (b"not json\n", "is not JSON"), (b'{"a": NaN}', "NaN")):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=reason):
            read_requests(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_requests(tmp_path / "missing.jsonl")


def test_a_failed_request_leaves_the_others_and_is_tried_again(tmp_path: Path):
    path = write_input(tmp_path, request(), request(image="late.png"), request("Last?"))
    out = tmp_path / "out.jsonl"
    report = run_batch(FakeEngine(), read_requests(path), out)
    assert (report.answered, list(report.failed)) == (2, [2])
    assert "late.png" in report.failed[2]
    (tmp_path / "late.png").write_bytes(png())
    engine = FakeEngine()
    report = run_batch(engine, read_requests(path), out)
    assert report.to_dict() == {"requests": 3, "answered": 1, "resumed": 2, "failed": []}
    assert len(engine.answered) == 1
    assert sorted(record["line"] for record in answers(out)) == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_an_interrupted_run_is_resumed_from_its_last_whole_line(tmp_path: Path, cut: int):
    path = write_input(tmp_path, request("One?"), request("Zwei, größer?"), request("Three?"))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run_batch(FakeEngine(), read_requests(path), whole)
    out.write_bytes(whole.read_bytes()[:-cut])
    run_batch(FakeEngine(), read_requests(path), out)
    assert out.read_bytes() == whole.read_bytes()


def test_an_output_of_other_requests_is_kept_and_refused(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    run_batch(FakeEngine(), read_requests(write_input(tmp_path, request("One?"))), out)
    before = out.read_bytes()
    for other in (request("Other?"), request("One?", budget_ms=51)):
        with pytest.raises(DatasetError, match=r"out\.jsonl:1 is not an answer"):
            run_batch(FakeEngine(), read_requests(write_input(tmp_path, other)), out)
    assert out.read_bytes() == before
    foreign = tmp_path / "foreign.jsonl"
    for line in ("[1, 2]", '{"line": [1]}', '{"line": 9}', "{}"):
        foreign.write_text(f"{line}\n")
        with pytest.raises(DatasetError, match="not an answer"):
            run_batch(FakeEngine(), read_requests(write_input(tmp_path, request("One?"))), foreign)


def test_a_budget_that_is_refused_is_a_failed_request(tmp_path: Path):
    path = write_input(tmp_path, request(budget_ms=2), request())
    report = run_batch(FakeEngine(on_miss="refuse"), read_requests(path), tmp_path / "out.jsonl")
    assert (report.answered, "no setting" in report.failed[1]) == (1, True)
