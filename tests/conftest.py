"""Fixtures that several test files share. What they import is imported when they are first used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from knobctl.data.cache.reader import Cache
    from knobctl.precompute.run.config import PrecomputeConfig


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of six random blocks; a test that changes one of its files puts it back."""
    from knobctl.tests.support.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 6, native_top_k=4)


@pytest.fixture(scope="session")
def tiny_importance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of importance scores for the tiny model: a run that is given them measures none."""
    from knobctl.data.importer import save_importance
    from knobctl.tests.support.tiny_model import published_order

    path = tmp_path_factory.mktemp("importance") / "scores.json"
    save_importance(published_order(6), path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    """A finished run of one process. Its importance scores are measured, and kept beside the model."""
    from knobctl.precompute.scale.launch import precompute
    from knobctl.tests.support.tiny_model import run_config

    config = run_config(tiny_model_dir, tmp_path_factory.mktemp("run") / "cache")
    precompute(config)
    return config


@pytest.fixture(scope="session")
def tiny_cache(tiny_run: PrecomputeConfig) -> Cache:
    """The cache of `tiny_run`."""
    from knobctl.data.cache.reader import open_cache

    return open_cache(tiny_run.out)
