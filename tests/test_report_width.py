"""What `inspect` and `validate` print for people fits 80 columns, says the main thing first, and keeps every figure."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.commands.render import cell, render_record
from knobctl.data.cache.describe import describe_cache
from knobctl.data.cache.merge import merge_caches
from knobctl.data.cache.run_record import Shard
from knobctl.tests.support.caches import generated_cache, make_cache


def printed(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if len(line.rstrip()) > 80] == []
    assert "…" not in result.stdout
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated_cache(tmp_path_factory.mktemp("width") / "cache").path


@pytest.fixture(scope="module")
def controllers(cache: Path) -> Path:
    result = CliRunner().invoke(main, ["train", str(cache), "--out", str(cache.parent / "c"), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    return cache.parent / "c"


def test_inspect_shows_sections(tmp_path: Path):
    path = make_cache(tmp_path / "c", samples=60)
    text = printed("inspect", path)
    sections = [line for line in text.splitlines() if re.match(r"[a-z]", line) and "  " not in line.rstrip()]
    for section in ("samples", "knobs", "completeness", "model", "device", "importance", "bytes"):
        assert section in [line.strip() for line in sections], section
    assert re.search(r"^even +\d+ +\d+ +\d+$", text, re.MULTILINE)  # a dataset, its samples in each split
    assert re.search(r"^  fingerprint +f{64}$", text, re.MULTILINE)


def test_inspect_adds_up_what_shards_did(tmp_path: Path):
    shards = [make_cache(tmp_path / f"s{index}", samples=20, shard=Shard(index, 2)) for index in range(2)]
    merge_caches(shards, tmp_path / "whole")
    manifest = tmp_path / "whole" / "cache.json"
    counts = [{"samples": 10, "near_ties": 3}, {"samples": 10, "near_ties": 4}]
    checks = [{"settings": 5, "against": "end_to_end"}, {"settings": 6, "against": "end_to_end"}]
    records = [
        {"execution": {"counts": count, "seconds": {"sweep": 1.5}}, "latency_check": check}
        for count, check in zip(counts, checks, strict=True)
    ]
    edit_shards(manifest, records)
    found = describe_cache(tmp_path / "whole")["provenance"]
    assert found["shards"] == 2
    assert found["execution"] == {"counts": {"samples": 20, "near_ties": 7}, "seconds": {"sweep": 3.0}}
    text = printed("inspect", tmp_path / "whole")
    assert re.search(r"near ties +7\b", text)
    assert re.search(r"^ +shard 1 +6 +end_to_end$", text, re.MULTILINE)


def edit_shards(manifest: Path, records: list[dict]) -> None:
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**record, "shards": records}))


def test_validate_says_the_main_thing_first(cache: Path, controllers: Path):
    lines = printed("validate", controllers, "--cache", cache, "--resamples", 50).splitlines()
    assert lines[0].startswith("The controllers answer ")
    assert lines[0].rstrip().endswith("ms on")
    text = "\n".join(lines)
    assert "Budget by budget" not in text
    assert len([line for line in lines if line.startswith("budget-only table")]) == 1
    assert re.search(r"^oracle +1?\d?\.?\d+", text, re.MULTILINE)


@pytest.mark.parametrize("options", [["--details"], ["--details", "--ablations", "--card"], ["--ablations"]])
def test_the_details_fit_too(cache: Path, controllers: Path, options: list[str]):
    text = printed("validate", controllers, "--cache", cache, "--resamples", 20, *options)
    assert ("Budget by budget" in text) == ("--details" in options)
    assert "only tier" in text or "only_tier" in text or "--ablations" not in options


def test_compare_reports_several_controllers_and_none(cache: Path, controllers: Path):
    both = printed("compare", cache, controllers, controllers, "--baseline", "table", "--resamples", 20)
    assert " ".join(both.split()).count("of the questions correctly") == 2
    alone = printed("compare", cache, "--baseline", "table", "--baseline", "oracle", "--resamples", 20)
    assert alone.startswith("Judged by the test split")


def test_records_that_share_their_fields_become_a_table(capsys: pytest.CaptureFixture[str]):
    from rich import print as show

    show(render_record("run", {"seeds": [{"seed": 1, "reward": 0.5}, {"seed": 2, "reward": 0.25}], "notes": []}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["run"], ["seeds"], ["seed", "reward"], ["1", "0.500"], ["2", "0.250"]]


def test_long_lists_are_shortened():
    assert cell([0.5, 12.0]) == "0.5 12"
    assert cell(list(range(30))).endswith("19 ... (30 in all)")
