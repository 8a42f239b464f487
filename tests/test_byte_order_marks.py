"""A UTF-8 byte order mark, which some editors write, does not change how a file is read."""

from codecs import BOM_UTF8
from pathlib import Path

import pytest

from knobctl.data.cache.reader import open_cache
from knobctl.data.datasets.sample_set import load_samples
from knobctl.data.errors import CacheError
from knobctl.data.files.bounded_json import parse_json
from knobctl.data.importer import load_importance
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.prompt import PromptTokenizer, SpecialTokens
from knobctl.tests.support.caches import make_cache
from knobctl.tests.support.dataset_files import coco_vqa, text_vqa
from knobctl.tests.support.molmoe_fixtures import FIXTURES, TINY


def mark(path: Path) -> Path:
    path.write_bytes(BOM_UTF8 + path.read_bytes())
    return path


def marked_copy(source: Path, folder: Path) -> Path:
    target = folder / source.name
    target.write_bytes(source.read_bytes())
    return mark(target)


@pytest.mark.parametrize(("name", "write"), [("coco_2014_vqa", coco_vqa), ("text_vqa", text_vqa)])
def test_official_dataset_files_with_a_mark(tmp_path: Path, name: str, write):
    plain = load_samples(name, source=write(tmp_path))
    for path in tmp_path.glob("*.json"):
        mark(path)
    assert load_samples(name, source=tmp_path).fingerprint == plain.fingerprint


def test_importance_scores_with_a_mark(tmp_path: Path):
    source = Path(__file__).parent / "fixtures" / "import" / "importance" / "merged.json"
    assert load_importance(marked_copy(source, tmp_path)) == load_importance(source)


def test_checkpoint_files_with_a_mark(tmp_path: Path):
    assert MolmoeConfig.from_json(marked_copy(TINY / "config.json", tmp_path)) == MolmoeConfig.from_json(
        TINY / "config.json"
    )
    marked_copy(TINY / "token_ids.json", tmp_path)
    assert SpecialTokens.from_directory(tmp_path) == SpecialTokens.from_directory(TINY)
    marked_copy(FIXTURES / "tokenizer.json", tmp_path)
    assert PromptTokenizer.from_directory(tmp_path).special == PromptTokenizer.from_directory(FIXTURES).special


def test_a_manifest_with_a_mark(tmp_path: Path):
    cache = make_cache(tmp_path / "cache")
    plain = open_cache(cache, tokens=False)
    mark(cache / "cache.json")
    assert open_cache(cache, tokens=False).manifest == plain.manifest


def test_a_mark_elsewhere_is_not_white_space():
    with pytest.raises(CacheError, match="is not JSON"):
        parse_json(BOM_UTF8 * 2 + b"{}", "x.json", CacheError)
