"""The `precompute` command that a page shows makes a run with the same inputs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.cache.reader import open_cache
from knobctl.precompute.run.config import PrecomputeConfig
from knobctl.replay.evaluation.compare import compare
from knobctl.replay.report.page.recorded_commands import (
    DATASET_FILE,
    IMPORTANCE_FILE,
    WITHOUT_OPTION,
    commands,
    precompute_command,
)
from knobctl.replay.report.page.write import report_source
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.dataset_files import png, rows, write_json_lines, write_parquet

OPTIONS = {
    "the usual ones": "--dataset easy_vqa --samples 12 --budgets 10,0.5x",
    "several datasets and changed tasks": (
        "--dataset easy_vqa --dataset mine={mine} --samples easy_vqa=3,mine=4 --seed 7 --metric easy_vqa=vqa_simple "
        "--prompt 'mine=Answer in a word:' --max-new-tokens mine=3 --column mine.question=asked "
        "--source-split mine=all --tiers small=1-2,large=3-4 --positions 1,2 --top-k 2,4 --num-blocks 4,6 "
        "--latency-mode end_to_end --runs 1 --budgets 10,20"
    ),
    "given scores": "--dataset easy_vqa --samples 3 --budgets 10 --importance {scores} --dtype float32",
}


def precompute(words: list[str], out: Path) -> dict:
    result = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_shown_command_makes_a_run_with_the_same_inputs(options, tiny_model_dir, tiny_importance, tmp_path):
    mine = write_parquet(tmp_path / "mine.parquet", rows(6).rename({"question": "asked"}))
    asked = options.format(mine=mine, scores=tiny_importance)
    knobs = "" if "--tiers" in asked else "--tiers low --positions 1 --top-k 2 --num-blocks 4 --runs 1"
    first = precompute(
        ["precompute", "--model", str(tiny_model_dir), "--device", "cpu", *shlex.split(f"{asked} {knobs}")],
        tmp_path / "first",
    )
    command = precompute_command(open_cache(tmp_path / "first", tokens=False), "anywhere")
    assert command is not None
    words = shlex.split(command.replace(IMPORTANCE_FILE, str(tiny_importance)))
    assert words[:2] == ["knobctl", "precompute"]
    place = words.index("--out")
    assert words[place + 1] == "anywhere"
    again = precompute([*words[1:place], *words[place + 2 :]], tmp_path / "again")
    assert again["run"]["request"] == first["run"]["request"]


def test_image_folders_are_named_only_where_one_option_can_name_them(tiny_model_dir, tiny_importance, tmp_path):
    names = ("one", "other")
    for name in names:
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "a.png").write_bytes(png(1))
        entry = {"image": "a.png", "question": f"is this {name}?", "answers": ["yes"]}
        write_json_lines(tmp_path / name / "questions.jsonl", [{**entry, "image": "images/a.png"}])
        write_json_lines(tmp_path / f"{name}.jsonl", [entry])
    common = (
        f"precompute --model {tiny_model_dir} --device cpu --importance {tiny_importance} --tiers low --positions 1"
    )
    common += " --top-k 2 --num-blocks 4 --runs 1 --budgets 10"

    def images_of(out: str, options: str) -> str | None:
        precompute(shlex.split(f"{common} {options}"), tmp_path / out)
        command = precompute_command(open_cache(tmp_path / out, tokens=False), "x")
        return None if command is None else " ".join(re.findall(r"--images \S+", command))

    beside = " ".join(f"--dataset {name}={tmp_path / name / 'questions.jsonl'}" for name in names)
    assert images_of("beside", beside) == ""
    images = tmp_path / "one" / "images"
    apart = " ".join(f"--dataset {name}={tmp_path / name}.jsonl" for name in names)
    assert images_of("apart", f"{apart} --images {images}") == f"--images {images}"
    record = json.loads((tmp_path / "apart" / "cache.json").read_text())
    record["datasets"]["other"]["images"] = "/elsewhere"
    cache = open_cache(tmp_path / "apart", tokens=False)
    changed = replace(cache, manifest=replace(cache.manifest, datasets=record["datasets"]))
    assert precompute_command(changed, "x") is None


@pytest.mark.parametrize(
    "change",
    [
        {"rescored": {"metric": "vqa_simple"}},
        {"request": {"results": {"complete": False}}},
        {"request": {"checks_per_tiling": 4}},
        {"request": {"datasets": {"easy_vqa": 3}}},
        {"request": None},
    ],
)
def test_a_run_that_no_single_command_makes_has_none(change, tiny_cache, tmp_path):
    folder = shutil.copytree(tiny_cache.path, tmp_path / "cache")
    record = json.loads((folder / "run.json").read_text())
    record["run"]["request"] |= dict(WITHOUT_OPTION)
    (folder / "run.json").write_text(json.dumps(record))
    cache = replace(open_cache(tiny_cache.path, tokens=False), path=folder)
    assert precompute_command(cache, "x") is not None
    for name, value in change.items():
        if isinstance(value, dict) and name in record["run"]:
            record["run"][name] |= value
        else:
            record["run"][name] = value
    (folder / "run.json").write_text(json.dumps(record))
    assert precompute_command(cache, "x") is None


def test_what_a_published_or_merged_cache_leaves_out_is_a_placeholder(tiny_model_dir, tiny_importance, tmp_path):
    mine = write_parquet(tmp_path / "mine.parquet", rows(3))
    options = f"--dataset mine={mine} --max-new-tokens mine=2 --importance {tiny_importance} --budgets 10 --runs 1"
    knobs = "--tiers low --positions 1 --top-k 2 --num-blocks 4"
    precompute(shlex.split(f"precompute --model {tiny_model_dir} --device cpu {options} {knobs}"), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache", tokens=False)
    datasets = {"mine": {**cache.manifest.datasets["mine"], "source": None, "images": None, "skipped": None}}
    command = precompute_command(replace(cache, manifest=replace(cache.manifest, datasets=datasets)), "x")
    assert f"--dataset mine={DATASET_FILE} " in command
    assert "--images" not in command


def test_the_bundled_cache_is_not_written_to():
    source = report_source(open_cache("bundled:nano", tokens=False), compare("bundled:nano", resamples=20), None)
    made, checked = commands(source, ())
    assert shlex.split(made)[shlex.split(made).index("--out") + 1] == "runs/cache"
    assert checked == "knobctl inspect bundled:nano --verify"


def test_a_cache_that_does_not_record_how_it_was_made_has_no_command(tmp_path):
    assert precompute_command(open_cache(make_cache(tmp_path / "cache", samples=5), tokens=False), "x") is None


def test_values_without_an_option_are_the_defaults_of_a_run():
    assert {name: getattr(PrecomputeConfig, name) for name in WITHOUT_OPTION} == WITHOUT_OPTION
