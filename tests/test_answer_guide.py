"""The example of docs/guides/answer.md runs as written, but for its task."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from knobctl.data.cache.reader import Cache
from knobctl.tests.support.answering import answering_controllers
from knobctl.tests.support.tiny_model import easy_samples

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "guides" / "answer.md").read_text()
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_answers_under_both_budgets(
    tiny_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answering_controllers(tiny_cache, tmp_path / "runs" / "first")
    image = tmp_path / "docs" / "images" / "sign.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(easy_samples(1)[0].image.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE.replace("small_print", "easy_vqa"), "answer.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("/p" in line for line in lines)
