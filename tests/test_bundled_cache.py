"""`bundled:nano`, the finished cache in the package: intact, small, in the wheel, and usable like any other cache."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest
from click.testing import CliRunner

from knobctl.cli import main
from knobctl.data.cache.location import bundled_caches, cache_directory, cache_name
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.run_record import read_run
from knobctl.data.cache.verify import verify_cache
from knobctl.data.errors import CacheError
from knobctl.data.knobs import KnobSpace
from knobctl.data.paths import BUNDLED_ROOT
from knobctl.tests.support.caches import make_cache
from knobctl.tools.nano.bundled_cache import DROPPED, config_for, differences, pack

ROOT = Path(__file__).resolve().parent.parent
NAME = "bundled:nano"


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache directory; afterwards, nothing in the package may have changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("KNOBCTL_DERIVED_DIR", raising=False)
    before = files_of(BUNDLED_ROOT)
    yield tmp_path / "user"
    assert files_of(BUNDLED_ROOT) == before


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_cache_holds_every_outcome_and_is_intact():
    cache = open_cache(NAME)
    assert cache.accuracy_SX.shape == (600, 375)
    assert cache.present_SX.all()
    assert cache.latency_runs_ms_SXR.shape == (600, 375, 3)
    assert cache.budgets_ms.tolist() == [14.0, 16.0, 18.0, 20.0, 24.0]
    assert cache.tokens.present_STPM.all()
    assert cache.warnings == []
    assert cache.manifest.files is not None
    assert verify_cache(NAME) == []


def test_the_recorded_run_is_that_of_the_committed_configuration():
    request = read_run(cache_directory(NAME))[0]["request"]
    config = config_for(Path("unused"))
    assert {name: record["samples"] for name, record in request["datasets"].items()} == config.samples
    recorded = (request["budgets"], request["runs"], request["seed"], request["latency_mode"])
    assert recorded == (list(config.budgets), config.runs, config.seed, config.latency_mode)
    assert request["knobs"] == KnobSpace().to_dict()


def test_the_card_names_licences_machine_and_command():
    card = (cache_directory(NAME) / "README.md").read_text()
    device = open_cache(NAME, tokens=False).manifest.device
    for words in ("MIT", "Victor Zhou", "Apache-2.0", device["name"], "knobctl.tools.nano.bundled_cache", "2026"):
        assert words in card
    assert "MIT License" in (BUNDLED_ROOT / "easy_vqa/LICENSE").read_text()


def test_the_bundled_files_are_small_and_in_the_wheel():
    sizes = {path: size for path, (size, _) in files_of(BUNDLED_ROOT).items()}
    of_cache = sum(size for path, size in sizes.items() if path.is_relative_to(cache_directory(NAME)))
    assert of_cache <= 16e6
    assert sum(sizes.values()) <= 28e6
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    # As setuptools finds them: files without a leading dot that match, `**` over folders.
    found = {
        Path(path)
        for pattern in patterns["knobctl.data"]
        for path in glob(str(ROOT / "data" / pattern), recursive=True)
        if Path(path).is_file()
    }
    assert found == set(sizes)


def test_names_of_bundled_caches_stand_for_directories_in_the_package(tmp_path: Path):
    assert bundled_caches() == [NAME]
    assert cache_directory(NAME) == BUNDLED_ROOT / "nano_cache"
    assert cache_directory(Path(NAME)) == BUNDLED_ROOT / "nano_cache"
    assert cache_name(cache_directory(NAME)) == NAME
    assert cache_directory(tmp_path) == tmp_path
    assert cache_name(tmp_path) == str(tmp_path)
    with pytest.raises(CacheError, match=r"^bundled:none is not a bundled cache: the package has bundled:nano\.$"):
        open_cache("bundled:none")


def test_unpacked_tokens_go_to_the_users_cache_directory(user_cache: Path):
    cache = open_cache(NAME)
    assert cache.tokens.unpack().is_relative_to(user_cache / "knobctl" / "tokens")
    again = open_cache(cache_directory(NAME))  # by its path, as for a cache in a read-only installation
    assert again.tokens.unpack() == cache.tokens.unpack()


def test_every_command_takes_the_cache_and_live_equals_replay(tmp_path: Path):
    out, rescored = str(tmp_path / "controllers"), str(tmp_path / "rescored")
    assert NAME in run("inspect", NAME, "--verify")
    assert json.loads(run("train", NAME, "--out", out, "--epochs", "1", "--json"))["cache"] == NAME
    live = ("--live", "--device", "cpu", "--live-samples", "2", "--budgets", "16")
    report = json.loads(run("validate", out, "--cache", NAME, "--resamples", "20", "--json", *live))
    assert report["cache"]["path"] == NAME
    found = report["live"]["agreement"]
    assert found["disagreements"] == []
    assert found["answers_compared"] == found["same_answer"] > 0
    assert "budget-only table" in run("compare", NAME, out, "--resamples", "20", "--baseline", "table")
    short = ("--folds", "2", "--seeds", "0", "--epochs", "1", "--resamples", "20", "--baseline", "table")
    assert "cross-validation (2 folds)" in run("cross-validate", NAME, *short)
    run("rescore", NAME, "--metric", "exact_match", "--out", rescored)
    assert (open_cache(rescored).accuracy_SX == open_cache(NAME).accuracy_SX).all()


def test_packing_keeps_every_row_and_drops_the_named_columns(tmp_path: Path):
    source = make_cache(tmp_path / "run", samples=12, budget_encoder=b"encoder")
    pack(source, tmp_path / "packed")
    packed = open_cache(tmp_path / "packed")
    assert differences(open_cache(source), packed) == []
    assert all(packed.outcome_column(name) is None for name in DROPPED)
    assert verify_cache(tmp_path / "packed") == []
    pack(source, tmp_path / "packed")  # replaces it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "run"]


def test_another_content_is_found(tmp_path: Path):
    one, other = (open_cache(make_cache(tmp_path / str(seed), samples=12, seed=seed)) for seed in (0, 1))
    assert {"fingerprint differs", "tokens differs", "latency_ms differs"} <= set(differences(one, other))
