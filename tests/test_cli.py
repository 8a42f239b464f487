"""The command line: bad input gives one clear line and exit code 1, malformed options exit 2, and nothing is harmed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.table import Table

from knobctl.cli import main
from knobctl.console import emit
from knobctl.data.importer import import_results
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.results_dirs import some_rows, write_rows

RESULTS = Path(__file__).parent / "fixtures" / "import"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1, (result.output, result.exception)
    *notes, error = result.stderr.strip().splitlines()
    assert error.startswith("Error: "), result.stderr
    assert not any(note.startswith(("Error", "Traceback")) for note in notes), result.stderr
    for word in words:
        assert word in error


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", samples=40)


PRECOMPUTE = ("precompute", "--device", "cpu", "--samples", 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "no-such-model", "--dataset", "easy_vqa"), ("no-such-model",)),
        (("--model", "nano", "--dataset", "no_such_dataset"), ("no_such_dataset", "easy_vqa")),
        (("--model", "nano", "--dataset", "easy_vqa", "--tiers", "huge"), ("huge", "low")),
        (("--model", "nano", "--dataset", "easy_vqa", "--top-k", "99"), ("99",)),
        (("--model", "nano", "--dataset", "easy_vqa", "--num-blocks", "99"), ("99",)),
        (("--model", "nano"), ("--dataset",)),
        (("--model", "nano", "--dataset", "mine=/no/such/file.parquet"), ("/no/such/file.parquet",)),
        (("--model", "nano", "--dataset", "easy_vqa", "--latency-mode", "guess"), ("guess", "blockwise")),
        (("--model", "nano", "--dataset", "easy_vqa", "--importance", "/no/such.json"), ("/no/such.json",)),
        (("--model", "nano", "--dataset", "easy_vqa", "--shard", "3/2"), ("3/2",)),
        (
            ("--model", "nano", "--dataset", "easy_vqa", "--samples", "easy_vqa=2,small_print=3"),
            ("small_print", "samples"),
        ),
    ],
)
def test_what_precompute_cannot_run_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]):
    assert_one_line(run(*PRECOMPUTE, *arguments, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "cache.json").exists()


def test_without_a_gpu_the_device_is_named(tmp_path: Path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", tmp_path / "out")
    assert_one_line(result, "--device cpu")


def test_importance_for_another_number_of_blocks_is_refused(tmp_path: Path):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({str(block): 0.1 for block in range(12)}))
    arguments = ("--model", "nano", "--dataset", "easy_vqa", "--importance", scores, "--out", tmp_path / "out")
    assert_one_line(run(*PRECOMPUTE, *arguments), "scores.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("precompute", "--out", "x"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--shard", "a/b"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--metric", "vqa_simple"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--samples", "0"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--samples", "easy_vqa=0"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--samples", "easy_vqa=2,3"),
        ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--out", "x", "--samples", "many"),
        ("train", "x"),
        ("train", "x", "--out", "y", "--seed", "1", "--seeds", "1,2"),
        ("validate", "x", "--cache", "y", "--budgets", "soon"),
        ("validate", "x", "--cache", "y", "--live-budgets", "nan"),
        ("validate", "x", "--cache", "y", "--live", "--runs", "2"),
        ("compare", "x", "--budgets", "-5"),
        ("compare", "x", "--seed", "-1"),
        ("compare", "x", "--resamples", "0"),
        ("no-such-command",),
    ],
)
def test_malformed_options_exit_with_2(arguments: tuple[str, ...]):
    assert run(*arguments).exit_code == 2


def test_a_cache_that_cannot_be_read_is_one_line(cache: Path, tmp_path: Path):
    assert_one_line(run("inspect", tmp_path / "nowhere"), "nowhere")
    half = tmp_path / "half"
    shutil.copytree(cache, half)
    (half / "cache.json").unlink()
    assert_one_line(run("train", half, "--out", tmp_path / "controllers"), "half")
    newer = tmp_path / "newer"
    shutil.copytree(cache, newer)
    manifest = json.loads((newer / "cache.json").read_text())
    (newer / "cache.json").write_text(json.dumps({**manifest, "version": 2}))
    assert_one_line(run("inspect", newer), "cache.json", "2")
    lacking = tmp_path / "lacking"
    shutil.copytree(cache, lacking)
    next((lacking / "outcomes").glob("*.parquet")).unlink()
    assert_one_line(run("inspect", lacking), "outcomes")


def test_a_changed_byte_is_named(cache: Path):
    assert run("inspect", cache, "--verify").exit_code == 0
    part = next((cache / "outcomes").glob("*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert_one_line(run("inspect", cache, "--verify"), part.name)


def test_training_takes_one_thread_unless_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        once = run("train", cache, "--out", tmp_path / "controllers", "--epochs", 1)
        assert once.exit_code == 0, once.output
        more = run("train", cache, "--out", tmp_path / "controllers", "--epochs", 1, "--threads", 3, "--resume")
        assert_one_line(more, "threads (recorded 1, now 3)")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(had)


def test_more_threads_than_cpus_are_refused_at_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    words = ("1000000 threads", "4 CPUs", "use 1 to 4")
    assert_one_line(run("train", cache, "--out", tmp_path / "out", "--threads", 1_000_000), *words)
    assert_one_line(run("cross-validate", cache, "--threads", 1_000_000), *words)
    nano = ("precompute", "--model", "nano", "--dataset", "easy_vqa", "--device", "cpu", "--out", tmp_path / "out")
    assert_one_line(run(*nano, "--threads", 1_000_000), *words)


def test_train_then_validate_and_compare(cache: Path, tmp_path: Path):
    controllers = tmp_path / "controllers"
    trained = run("train", cache, "--out", controllers, "--epochs", 2, "--log-interval", 7, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["recipe"] == "tuned"
    logged = [json.loads(line) for line in (controllers / "log.jsonl").read_text().splitlines()]
    assert next(line["step"] for line in logged if "grad_norm" in line) == 7
    choices = tmp_path / "choices.parquet"
    validated = run("validate", controllers, "--cache", cache, "--choices", choices, "--resamples", 50, "--json")
    assert validated.exit_code == 0, validated.output
    assert json.loads(validated.stdout)["budgets_ms"]
    assert choices.is_file()
    shown = run("compare", cache, controllers, "--resamples", 50)
    assert shown.exit_code == 0, shown.output
    assert "oracle" in shown.stdout
    budget = run("validate", controllers, "--cache", cache, "--budgets", "12345")
    assert_one_line(budget, "12345")


def test_controllers_go_only_into_their_own_directory(cache: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert_one_line(run("train", cache, "--out", other, "--epochs", 1), "other")
    assert (other / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("option", [("--samples", 5), ("--budgets", "40"), ("--shard", "1/2"), ("--workers", 2)])
def test_options_about_running_the_model_are_refused_without_one(tmp_path: Path, option: tuple[str, object]):
    result = run("precompute", "--from-results", tmp_path, "--out", tmp_path / "imported", *option)
    assert result.exit_code != 0
    assert f"{option[0]} applies to runs of the model" in result.stderr


def test_results_are_imported_without_a_model(tmp_path: Path):
    sample = next(path for path in RESULTS.iterdir() if (path / "text-vqa").is_dir())
    result = run("precompute", "--from-results", sample, "--out", tmp_path / "imported", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outcomes"] > 0
    assert run("compare", tmp_path / "imported", "--resamples", 20).exit_code == 0
    assert_one_line(run("train", tmp_path / "imported", "--out", tmp_path / "controllers"), "cannot be trained")


def test_untimed_results_cannot_be_compared_and_the_message_says_what_helps(tmp_path: Path):
    write_rows(tmp_path / "results", [{**row, "T_total": 0.0} for row in some_rows(8)])
    assert run("precompute", "--from-results", tmp_path / "results", "--out", tmp_path / "imported").exit_code == 0
    result = run("compare", tmp_path / "imported", "--split", "train")
    assert_one_line(
        result, "has no latencies", "T_total", "knobctl precompute --model MODEL --dataset NAME --from-results"
    )
    assert "--budgets" not in result.stderr  # an import takes none


def test_a_cache_without_a_budget_grid_is_one_line(tmp_path: Path):
    write_rows(tmp_path / "results", some_rows(8))
    import_results(tmp_path / "results", tmp_path / "imported", budgets_ms=[])
    assert_one_line(run("compare", tmp_path / "imported", "--split", "train"), "no budget grid", "import", "again")


def test_a_narrow_terminal_gets_whole_tables(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def table(_record: dict) -> Table:
        made = Table()
        for place in range(8):
            made.add_column(f"column {place}", no_wrap=True)
        made.add_row(*["0.123 [0.100, 0.2]"[:12]] * 8)
        return made

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", Terminal())
    emit({}, False, table)
    assert "…" not in sys.stdout.getvalue()
    assert sys.stdout.getvalue().count("0.123 [0.100") == 8
