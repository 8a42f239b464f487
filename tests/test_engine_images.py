"""A live run finds the images that precompute read: from paths, bytes or both in Parquet, or paths in JSON Lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.errors import CheckpointError, DatasetError
from knobctl.data.knobs import KnobSpace
from knobctl.precompute.run.live_from_cache import live_factory
from knobctl.precompute.scale.launch import precompute
from knobctl.tests.support.dataset_files import png, rows, write_json_lines, write_parquet
from knobctl.tests.support.tiny_model import run_config

COUNT = 3
ONE_SETTING = KnobSpace(("low",), (1,), (2,), (4,), tier_crops=((1, 2),))
PATHS = [f"{i}.png" for i in range(COUNT)]
COLUMNS = {
    "struct": [{"bytes": None, "path": path} for path in PATHS],
    "mixed": [{"bytes": png(0), "path": "0.png"}, *({"bytes": None, "path": path} for path in PATHS[1:])],
    "text": PATHS,
    "bytes": [png(i) for i in range(COUNT)],
}


def write_data(folder: Path, kind: str) -> Path:
    """Writes the table to `folder`/data and the images to `folder`/img, and returns the table's path."""
    (folder / "img").mkdir(parents=True)
    for i, path in enumerate(PATHS):
        (folder / "img" / path).write_bytes(png(i))
    if kind == "jsonl":
        (folder / "data").mkdir()
        entries = [{"image": path, "question": "is it red?", "answers": ["yes"]} for path in PATHS]
        return write_json_lines(folder / "data" / "mine.jsonl", entries)
    table = rows(COUNT, image=COLUMNS[kind], image_id=None, answers=[["yes"]] * COUNT)
    return write_parquet(folder / "data" / "mine.parquet", table)


def precompute_in(model_dir: Path, importance: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs precompute inside `folder`, with relative paths."""
    source = write_data(folder, kind)
    monkeypatch.chdir(folder)
    precompute(
        run_config(
            model_dir,
            folder / "cache",
            datasets=(f"mine={source.relative_to(folder)}",),
            samples=None,
            space=ONE_SETTING,
            budgets=("10",),
            runs=1,
            importance=importance,
            images=None if kind == "bytes" else Path("img"),
            max_new_tokens={"mine": 1},
        )
    )
    monkeypatch.chdir("/")
    return folder / "cache"


def live_images(cache: Path, **options) -> list[bytes]:
    _, samples = live_factory(cache, device="cpu", **options)(open_cache(cache).sample_ids)
    return [samples[name].image.read_bytes() for name in sorted(samples)]


IMAGES = [png(i) for i in range(COUNT)]


@pytest.mark.parametrize("kind", ["struct", "mixed", "text", "bytes", "jsonl"])
def test_images_are_found_without_options_or_after_a_move_with_options(
    tiny_model_dir, tiny_importance, tmp_path, monkeypatch, kind
):
    cache = precompute_in(tiny_model_dir, tiny_importance, tmp_path / "there", kind, monkeypatch)
    record = json.loads((cache / "cache.json").read_text())["datasets"]["mine"]
    assert record["source"] == str(next((tmp_path / "there" / "data").iterdir()))
    assert record["images"] == str(tmp_path / "there" / ("data" if kind == "bytes" else "img"))
    assert live_images(cache) == IMAGES

    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "there" / "data", moved / "data")
    shutil.move(tmp_path / "there" / "img", moved / "img")
    in_parquet = kind in ("struct", "mixed", "bytes")
    images, sources = {"images": moved / "img"}, {"sources": {"mine": moved / "data"}}
    if in_parquet:
        with pytest.raises(DatasetError, match=r"there/data/mine\.parquet.*does not exist.*--dataset mine=FOLDER"):
            live_images(cache, **images)
    if kind != "bytes":
        with pytest.raises(DatasetError, match=r"there/img does not exist .*--images"):
            live_images(cache, **sources)
    assert live_images(cache, **images, **sources) == IMAGES


def test_one_option_suffices_when_data_and_images_share_a_folder(
    tiny_model_dir, tiny_importance, tmp_path, monkeypatch
):
    cache = precompute_in(tiny_model_dir, tiny_importance, tmp_path / "there", "mixed", monkeypatch)
    shutil.move(tmp_path / "there" / "data", tmp_path / "new")
    for path in (tmp_path / "there" / "img").iterdir():
        shutil.move(path, tmp_path / "new")
    (tmp_path / "there" / "img").rmdir()
    assert live_images(cache, images=tmp_path / "new") == IMAGES


def test_errors_for_missing_inputs_suggest_only_options_of_the_live_run(
    tiny_model_dir, tiny_importance, tmp_path, monkeypatch
):
    cache = precompute_in(tiny_model_dir, tiny_importance, tmp_path / "there", "struct", monkeypatch)
    with pytest.raises(DatasetError, match=r"--dataset other: .* has no such dataset, only mine"):
        live_images(cache, sources={"other": tmp_path})
    with pytest.raises(DatasetError, match=r"--dataset mine: .*nowhere does not exist"):
        live_images(cache, sources={"mine": tmp_path / "nowhere"})
    (tiny_model_dir / "config.json").rename(tiny_model_dir / "kept")
    with pytest.raises(CheckpointError, match=r"config\.json.*The cache names this model; .*--model"):
        live_images(cache)
    (tiny_model_dir / "kept").rename(tiny_model_dir / "config.json")
    (tmp_path / "there" / "img" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"1\.png cannot be read .*--images") as error:
        live_images(cache)
    assert "--skip-bad" not in str(error.value)
