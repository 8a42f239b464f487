"""`knobctl answer`: the text alone on stdout, one question or many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from knobctl.cli import main
from knobctl.data.cache.reader import Cache
from knobctl.tests.support.answering import answering_controllers
from knobctl.tests.support.tiny_model import easy_samples


@pytest.fixture(scope="module")
def folder(tiny_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Controllers, and an image."""
    path = tmp_path_factory.mktemp("answer")
    answering_controllers(tiny_cache, path / "controllers")
    (path / "image.png").write_bytes(easy_samples(1)[0].image.read_bytes())
    return path


def answer(folder: Path, *arguments: object) -> Result:
    words = ["answer", folder / "controllers", "--device", "cpu", *arguments]
    return CliRunner().invoke(main, list(map(str, words)))


def one(folder: Path, *more: object) -> Result:
    question = ("--image", folder / "image.png", "--question", "is there a circle?", "--budget-ms", 60)
    return answer(folder, *question, *more)


def test_the_text_is_on_stdout_and_the_rest_on_stderr(folder: Path):
    plain, record = one(folder, "--explain"), json.loads(one(folder, "--json", "--explain").stdout)
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == record["text"] + "\n"
    setting = record["setting"]
    name = f"{setting['tier']}/p{setting['insertion_position']}/k{setting['top_k']}/n{setting['num_blocks']}"
    assert f"{name}: " in plain.stderr
    assert "the budget of 60 ms" in plain.stderr
    assert plain.stderr.count("<- chosen") == 2
    chosen = [choice for choice in record["explanation"]["stage2"] if choice["chosen"]]
    assert chosen[0]["expected_ms"] == record["expected_latency_ms"]
    assert "explanation" not in json.loads(one(folder, "--json").stdout)


def test_many_are_answered_once(folder: Path, tmp_path: Path):
    requests = [{"image": "image.png", "question": "is there a circle?", "id": name} for name in "ab"]
    requests.append({"image": "missing.png", "question": "is there a circle?"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in requests))
    words = ("--input", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl", "--images", folder, "--budget-ms", 60)
    first, again = answer(folder, *words, "--json"), answer(folder, *words, "--json")
    assert (first.exit_code, again.exit_code) == (1, 1)
    assert "1 of 3 requests have no answer" in first.stderr
    text = json.loads(one(folder, "--json").stdout)["text"]
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["id"], record["text"]) for record in found] == [("a", text), ("b", text)]
    assert json.loads(again.stdout)["resumed"] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--image", "x.png"), 2, "give --image, --question and --budget-ms"),
        (("--input", "x.jsonl"), 2, "--input needs --out"),
        (("--input", "x.jsonl", "--out", "y.jsonl", "--budget-ms", 5), 1, "x.jsonl cannot be read"),
        (("--image", "x.png", "--question", "q", "--budget-ms", 5), 1, "cannot be read"),
        (("--image", "x.png", "--question", "q", "--budget-ms", "nan"), 1, "budget of nan ms"),
        (("--image", "x.png", "--question", "q", "--budget-ms", 5, "--task", "vqa2"), 1, "trained on easy_vqa"),
        (("--image", "x.png", "--question", "q", "--budget-ms", 5, "--within", 0.8), 1, "no budget factor"),
    ],
)
def test_what_cannot_be_answered_is_one_line(folder: Path, words: tuple[object, ...], code: int, message: str):
    result = answer(folder, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
