"""Files of choices are checked against the cache; importance files of knobctl's own format can be validated."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import KnobctlError
from knobctl.replay.evaluation.choices import check_choices
from knobctl.tests.support.caches import BUDGETS_MS, make_cache

GOOD = {
    "sample_id": ["s0000", "s0000", "s0003"],
    "budget_ms": [BUDGETS_MS[0], BUDGETS_MS[1], BUDGETS_MS[0]],
    "tier": ["low", "high", "low"],
    "insertion_position": [1, 2, 1],
    "top_k": [2, 4, 2],
    "num_blocks": [3, 4, 4],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("choices") / "cache", samples=5)


def written(folder: Path, **changes: list) -> Path:
    pl.DataFrame({**GOOD, **changes}).write_parquet(folder / "choices.parquet")
    return folder / "choices.parquet"


def test_a_file_of_another_program_is_read(cache: Path, tmp_path: Path):
    found = check_choices(written(tmp_path), open_cache(cache))
    assert (found["choices"], found["samples"], found["budgets_ms"]) == (3, 2, [20.0, 40.0])
    assert found["knobs"]["tier"] == {"high": pytest.approx(1 / 3), "low": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample_id": ["s0000", "s0000", "s9999"]}, r"row 2 .*no such sample.*s9999"),
        ({"budget_ms": [20.0, 41.0, 20.0]}, r"row 1 .*not in the cache's grid.*41"),
        ({"top_k": [2, 3, 2]}, r"row 1 .*no such setting.*top_k 3"),
        ({"insertion_position": [1, None, 1]}, r"row 1 .*no such setting"),
        ({"budget_ms": [20.0, 20.0, 20.0]}, r"row 0 .*two choices"),
        ({"num_blocks": ["a", "b", "c"]}, r"another type"),
    ],
)
def test_what_the_cache_does_not_have_is_refused_with_its_row(cache: Path, tmp_path: Path, changes: dict, said: str):
    with pytest.raises(KnobctlError, match=said):
        check_choices(written(tmp_path, **changes), open_cache(cache))


def test_a_missing_column_or_another_file_is_refused(cache: Path, tmp_path: Path):
    path = written(tmp_path)
    pl.read_parquet(path).drop("tier").write_parquet(path)
    with pytest.raises(KnobctlError, match="tier"):
        check_choices(path, open_cache(cache))
    path.write_text("not Parquet")
    with pytest.raises(KnobctlError, match=r"choices\.parquet cannot be read as choices"):
        check_choices(path, open_cache(cache))


@pytest.mark.parametrize(("scores", "exit_code"), [([0.9, 0.1, 0.02, 0.4], 0), ([0.9, None, 0.02, 0.4], 1)])
def test_an_importance_file_of_the_documented_format_is_validated(tmp_path: Path, scores: list, exit_code: int):
    record = {"format": "knobctl-importance", "version": 1, "n_blocks": 4, "scores": scores, "std": None, "runs": 5}
    (tmp_path / "in.json").write_text(json.dumps(record))
    words = ["importance", "import", str(tmp_path / "in.json"), "--blocks", "4", "--out", str(tmp_path / "out.json")]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == exit_code, result.output
    if not exit_code:
        assert json.loads(result.stdout)["scores"] == scores
