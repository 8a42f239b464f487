"""The cards of caches and controllers: what they say, untrusted text in them, and what a user has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard

from knobctl.data.cache.merge import merge_caches
from knobctl.data.cache.reader import open_cache
from knobctl.data.cache.verify import verify_cache
from knobctl.data.cards import CARD_NAME, escaped, write_card
from knobctl.data.errors import KnobctlError
from knobctl.replay.evaluation.validate import validate_controllers
from knobctl.replay.recipes import TUNED
from knobctl.replay.training.train import train_controllers
from knobctl.tests.support.caches import generated_cache, make_cache, write_array_cache
from knobctl.tests.support.random_controllers import random_controllers
from knobctl.tests.support.replay_inputs import QUICK


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache, and controllers trained on it."""
    root = tmp_path_factory.mktemp("cards")
    cache = generated_cache(root / "cache")
    train_controllers(cache.path, root / "controllers", replace(TUNED, **QUICK, seeds=(3,)))
    return root / "cache", root / "controllers"


def test_the_card_of_a_cache_describes_its_content_and_configures_the_hubs_viewer(tmp_path: Path):
    path = make_cache(tmp_path / "cache")
    card = DatasetCard.load(path / CARD_NAME)
    assert [config["config_name"] for config in card.data.configs] == ["outcomes", "samples", "latency_tokens"]
    for config in card.data.configs:
        assert list(path.glob(config["data_files"])), config
    assert card.data.get("license") is None
    assert "# license: (state the licence" in (path / CARD_NAME).read_text()
    for fact in ("of 12 visual questions under 16 settings", "| blocks run | ", "f" * 64, "toy (cpu)", "float32"):
        assert fact in card.text
    counts = open_cache(path).samples.group_by("dataset", "split").len().rows()
    for dataset, split, rows in counts:
        line = next(line for line in card.text.splitlines() if line.startswith(f"| {dataset} |"))
        assert line.split("|")[2 + ("train", "val", "test").index(split)].strip() == str(rows)


def test_a_card_is_no_part_of_a_cache_s_digests_or_identity(tmp_path: Path):
    path = make_cache(tmp_path / "cache")
    before = open_cache(path).fingerprint
    (path / CARD_NAME).write_text("my own words")
    assert (open_cache(path).fingerprint, verify_cache(path)) == (before, [])
    merge_caches([path], tmp_path / "merged")
    assert "12 visual questions" in (tmp_path / "merged" / CARD_NAME).read_text()


def test_text_of_datasets_cannot_add_markdown_or_metadata(tmp_path: Path):
    hostile = "a|b\n---\nlicense: mit\n---\n<script>alert(1)</script> [x](http://evil) `c` ![i](j) <!-- results -->"
    write_array_cache(tmp_path / "c", np.array([[0, 1, 0, 1]]), np.full((1, 4), 5.0), datasets=[hostile])
    card = DatasetCard.load(tmp_path / "c" / CARD_NAME)
    assert card.data.get("license") is None
    assert "<script>" not in card.text
    assert "[x](" not in card.text
    row = next(line for line in card.text.splitlines() if line.startswith("| a"))
    assert row.startswith(r"| a\|b --- license\: mit --- \<script\>alert(1)")


def test_escaped_text_is_one_bounded_line():
    assert escaped("x\n\x1b[31my") == r"x \\x1b\[31my"
    assert len(escaped("x" * 1000)) == 200


def test_a_card_that_the_user_has_changed_is_kept(tmp_path: Path):
    make_cache(tmp_path / "cache")
    card = tmp_path / "cache" / CARD_NAME
    text = card.read_text()
    assert write_card(tmp_path / "cache", "new")
    card.write_text(text.replace("# license: (state", "license: mit  # ("))
    assert not write_card(tmp_path / "cache", "new")
    assert "license: mit" in card.read_text()


def test_the_card_of_controllers_states_results_conditions_and_limits(trained: tuple[Path, Path]):
    card = ModelCard.load(trained[1] / CARD_NAME)
    assert card.data.library_name == "knobctl"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("reward", "val")
    assert f"| controllers | {result.metric_value:.4f} |" in card.text
    for fact in ("budget-only table", "selected on this split", "relative error is", "| blocks run |", "| seed | 3 |"):
        assert fact in card.text


def test_validate_writes_the_figures_of_the_test_split_to_the_card(trained: tuple[Path, Path], tmp_path: Path):
    cache, _ = trained
    path = random_controllers(open_cache(cache), tmp_path / "controllers")
    report = validate_controllers(path, cache, card=True, resamples=50, baselines=("table", "full"))
    card = ModelCard.load(path / CARD_NAME)
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    metrics = report.policies["controllers"].overall.metrics
    assert figures["accuracy"] == pytest.approx(metrics["accuracy"].value, abs=1e-6)
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    verdict = report.compared("controllers", "table").verdict
    assert verdict in ("better", "worse")
    assert f"* controllers are {verdict} than budget-only table" in card.text


def test_a_changed_card_of_controllers_keeps_the_changes_and_gets_new_results(
    trained: tuple[Path, Path], tmp_path: Path
):
    cache, _ = trained
    out = tmp_path / "out"
    train_controllers(cache, out, replace(TUNED, **QUICK))
    card = ModelCard.load(out / CARD_NAME)
    card.data.license = "mit"
    card.text = card.text.replace("## Limits", "## My notes\n\nMine.\n\n## Limits")
    card.save(out / CARD_NAME)
    validate_controllers(out, cache, card=True, resamples=50, baselines=("table",))
    changed = ModelCard.load(out / CARD_NAME)
    assert changed.data.license == "mit"
    assert "Mine." in changed.text
    assert "On split `test`" in changed.text
    assert {result.dataset_split for result in changed.data.eval_results} == {"test"}
    train_controllers(cache, out, replace(TUNED, **QUICK))
    again = ModelCard.load(out / CARD_NAME)
    assert ("Mine." in again.text, "On split `val`" in again.text) == (True, True)
    (out / CARD_NAME).write_text("All mine.")
    with pytest.raises(KnobctlError, match=r"README\.md has been changed and has no section of results"):
        validate_controllers(out, cache, card=True, resamples=50, baselines=("table",))
    assert (out / CARD_NAME).read_text() == "All mine."
